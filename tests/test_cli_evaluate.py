"""`csm evaluate` and its run: the base must be the one that was trained from; the report tells the whole training."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import ASSETS

from csm.cli.finetune import main as finetune
from csm.cli.main import main as csm

VOICE = Path(__file__).parents[1] / "examples" / "voice"


def invoke(command: Any, *words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Path:
    """`model` (csm-tiny), `run` of csm-tiny and `of_model` of that folder, three steps each, saved at the third alone."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(ASSETS, work / "model")
    for out, model in (("run", "csm-tiny"), ("of_model", work / "model")):
        words = ["--model-path", model, "--data-path", clip_folder, "--speaker-id", 5, "--output-dir", work / out]
        steps = ["--max-steps", 3, "--save-every", 3, "--cache-dir", work / "cache", "--threads", 1]
        done = invoke(finetune, "voice-adapt", *words, *steps)
        assert done.exit_code == 0, done.stderr
    (work / "reference").mkdir()
    shutil.copyfile(VOICE / "audio" / "001.flac", work / "reference" / "001.flac")
    (work / "texts.txt").write_text("hello.\n")
    return work


@pytest.fixture
def copy(work: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a run, for a test to spoil; the names in it of what it was made from stay."""

    def make(name: str) -> Path:
        shutil.copytree(work / name, tmp_path / name, symlinks=True)
        return tmp_path / name

    return make


def evaluate(work: Path, run: Path, *words: object) -> Result:
    how = ["--reference", work / "reference", "--texts", work / "texts.txt", "--samples-per-text", 1, "--threads", 1]
    return invoke(csm, "evaluate", run, *how, *words)


def parent(run: Path, **changes: str) -> dict[str, Any]:
    """The parent of a run's lineage, after changes."""
    lineage = json.loads((run / "lineage.json").read_text())
    lineage["parent"] |= changes
    (run / "lineage.json").write_text(json.dumps(lineage))
    return lineage["parent"]


def refused(done: Result, *says: str) -> None:
    assert (done.exit_code, done.stdout) == (1, ""), done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [word for word in says if word not in sentence] == []


def test_a_base_that_changed_or_is_gone_is_refused(work: Path, copy: Callable[[str], Path], tmp_path: Path) -> None:
    run, model = copy("of_model"), tmp_path / "model"
    shutil.copytree(work / "model", model)
    parent(run, path=str(model), beside=str(model))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_version": "another"}))
    refused(evaluate(work, run), "the base of this run has changed", str(model))
    shutil.rmtree(model)
    refused(evaluate(work, run), "the base of this run is gone", str(model))
    assert not (run / "samples").exists()
    assert not (run / "report").exists()


def test_an_embedded_base_is_found_wherever_it_is_installed(
    work: Path, copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, or by the path of another installation; a folder of that name where one stands is not meant."""
    run = copy("run")
    elsewhere = "/opt/lost/site-packages/csm/assets/csm-tiny"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "csm-tiny").mkdir()
    documents = []
    for path, beside in (("csm-tiny", str(ASSETS)), (elsewhere, elsewhere), ("csm-tiny", elsewhere)):
        parent(run, path=path, beside=beside)
        done = evaluate(work, run, "--json", "-")
        assert done.exit_code == 0, done.stderr
        documents.append(json.loads(done.stdout))
    assert documents[0] == documents[1] == documents[2]
    parent(run, path="/opt/lost/other", beside="/opt/lost/other")
    refused(evaluate(work, run), "is gone: /opt/lost/other")


def test_the_report_tells_every_step_of_the_training(work: Path, copy: Callable[[str], Path]) -> None:
    """First, lowest and last training loss are those of metrics.jsonl, also of steps without a validation."""
    run = copy("run")
    losses = [0.9, 0.2, 0.5]
    records = [{"step": 0, "validation_loss": 1.0}, *({"step": n, "loss": x} for n, x in enumerate(losses, 1))]
    records[3]["validation_loss"] = 0.8
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = evaluate(work, run, "--markdown", "-").stdout
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:5]] for row in text.splitlines()
             if re.match(r"\| (training|validation) loss", row)}  # fmt: skip
    assert cells == {
        "training loss": ["0.9000 (step 1)", "0.2000 (step 2)", "0.5000 (step 3)"],
        "validation loss": ["1.0000 (step 0)", "0.8000 (step 3)", "0.8000 (step 3)"],
    }


def test_a_folder_has_no_best(work: Path) -> None:
    done = invoke(csm, "evaluate", work / "reference", "--reference", work / "reference")
    assert done.exit_code == 0, done.stderr
    assert "similarity" in done.stdout
    assert "best" not in done.stdout
    assert "step-000003 has a mean" in evaluate(work, work / "run").stdout


# Voices, and other things to compare with


def scored(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def kinds(document: dict[str, Any]) -> dict[str, str]:
    return {system["name"]: system["kind"] for system in document["systems"]}


def test_a_voice_is_scored_by_its_name_with_what_its_run_spoke(
    work: Path, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    run, db = copy("run"), tmp_path / "voices.json"
    made = invoke(csm, "voice", "--db", db, "create", "Ann", 5, "a voice", "--model-path", run)
    assert made.exit_code == 0, made.stderr
    of_run = scored(evaluate(work, run, "--json", "-"))
    spoken = {path: path.stat().st_mtime_ns for path in run.glob("samples/[bs]*/*.wav")}
    of_voice = scored(evaluate(work, "ann", "--db", db, "--json", "-"))
    assert kinds(of_voice) == {"base": "base", "codec": "codec", "Ann": "checkpoint"}
    assert of_voice["best"] == "Ann"
    by_name = {system["name"]: system["summary"] for system in of_run["systems"]}
    assert by_name["step-000003"] == next(one["summary"] for one in of_voice["systems"] if one["name"] == "Ann")
    assert {path: path.stat().st_mtime_ns for path in run.glob("samples/[bs]*/*.wav")} == spoken, "nothing anew"
    refused(evaluate(work, "Bob", "--db", db), "Bob", "neither a run nor a folder", str(db))
    refused(evaluate(work, "Ann", "--db", db, "--set-best"), "--set-best is for a run")
    shutil.rmtree(run)
    refused(evaluate(work, "Ann", "--db", db), "'Ann' is gone", str(run))


def test_another_run_or_a_folder_stands_in_the_bases_place(
    work: Path, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    run, other = copy("run"), copy("of_model")
    document = scored(evaluate(work, run, "--against", other, "--json", "-"))
    against = "of_model/step-000003"
    assert kinds(document) == {against: "base", "codec": "codec", "step-000003": "checkpoint"}
    assert {one["against"] for one in document["comparisons"]} == {against}
    markdown = evaluate(work, run, "--against", other, "--markdown", "-").stdout
    assert f"## Against {against}" in markdown.replace("\\", "")

    shutil.copytree(other / "samples" / "step-000003", tmp_path / "spoken")
    page = tmp_path / "page.html"
    by_folder = scored(evaluate(work, run, "--against", tmp_path / "spoken", "--html", page, "--json", "-"))
    assert kinds(by_folder)["spoken"] == "base"
    assert page.read_text().count("<audio") == 3, "the codec's, the folder's and the run's"
    ours, theirs = ({one["metric"]: one["mean_difference"] for one in d["comparisons"]} for d in (document, by_folder))
    assert ours == theirs, "text and seed of the folder's samples stand in their notes"

    others = (("--against", run / "samples" / "step-000003"), ("--against", run, "--texts", work / "texts.txt"))
    how = ("--reference", work / "reference", "--json", "-")
    folders = [invoke(csm, "evaluate", tmp_path / "spoken", *how, *more) for more in others]
    assert kinds(scored(folders[0])) == {"step-000003": "base", "spoken": "folder"}
    assert kinds(scored(folders[1]))["run/step-000003"] == "base"
    refused(evaluate(work, run, "--against", tmp_path / "nowhere"), "neither a run nor a folder", "nowhere")
    refused(
        invoke(csm, "evaluate", tmp_path / "spoken", "--reference", work / "reference", "--against", "base"), "no base"
    )
    refused(evaluate(work, run, "--against", tmp_path / "spoken", "--forgetting", "0"), "--forgetting needs a base")


def test_forgetting_junit_and_style_are_written_everywhere(
    work: Path, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    run = copy("run")
    words = ["--forgetting", "1", "--style", work / "reference", "--asr-model", "none", "--no-mos"]
    places = {"json": tmp_path / "s.json", "markdown": tmp_path / "r.md", "html": tmp_path / "r.html"}
    places["junit"] = tmp_path / "j.xml"
    written = [word for kind, path in places.items() for word in (f"--{kind}", path)]
    done = evaluate(work, run, *words, *written)
    assert done.exit_code == 0, done.stderr
    document = json.loads(places["json"].read_text())
    found = [(row["speaker"], row["system"], row["is_target"]) for row in document["forgetting"]]
    assert found == [(n, s, n == 5) for n in (5, 1) for s in ("base", "step-000003")]
    assert document["reference"]["style"]["name"] == str(work / "reference")
    assert "spoken as" in done.stdout
    assert "## Forgetting" in places["markdown"].read_text()
    assert "<h2>Forgetting</h2>" in places["html"].read_text()
    assert 'classname="step-000003"' in places["junit"].read_text()
    refused(evaluate(work, run, "--terms", work / "texts.txt", "--asr-model", "none"), "--terms needs a recogniser")


# Gate, calibrate, listen, collect, audio from outside


def scores_file(place: Path, name: str, level: float, seeds: int = 3) -> Path:
    """A scores.json of one folder, whose similarity moves by 0.01 from seed to seed around `level`."""
    rows = [
        {
            "name": f"{n}-{s}",
            "text": f"text {n}",
            "seed": s,
            "speaker_similarity": level + 0.01 * (s - 1),
            "reasons": {},
        }
        for n in range(8)
        for s in range(seeds)
    ]
    system = {"name": "tuned", "kind": "folder", "samples": rows, "summary": {}, "reasons": {}}
    document = {"schema_version": 1, "reference": {}, "systems": [system], "comparisons": [], "best": None}
    (place / name).write_text(json.dumps({**document, "best_reason": ""}))
    return place / name


def test_the_gate_says_0_3_or_4(tmp_path: Path) -> None:
    good, bad = scores_file(tmp_path, "good.json", 0.9), scores_file(tmp_path, "bad.json", 0.8)
    noise, rules = tmp_path / "noise.json", tmp_path / "rules.toml"
    assert invoke(csm, "evaluate", "calibrate", good, "--output", noise).exit_code == 0
    limit = '[[rule]]\nmetric = "speaker_similarity"\nat_least = 0.85\n'
    fall = '[[rule]]\nmetric = "speaker_similarity"\ncatch = 0.05\n'
    rules.write_text(limit + fall)

    def gate(scores: Path, *words: object) -> Result:
        return invoke(csm, "evaluate", "gate", scores, "--rules", rules, *words)

    known = ("--baseline", good, "--noise", noise)
    codes = [gate(good, *known).exit_code, gate(bad, *known).exit_code, gate(bad, "--baseline", good).exit_code]
    assert codes == [0, 3, 4]
    lines = gate(bad, *known).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["FAILED", "FAILED"], "one line a rule"
    refused(gate(good, "--noise", noise), "needs earlier scores")
    for spoiled in ("{", '{"schema_version": 7}', "[]"):
        (tmp_path / "spoiled.json").write_text(spoiled)
        refused(gate(tmp_path / "spoiled.json", *known))
        refused(gate(good, "--baseline", tmp_path / "spoiled.json", "--noise", noise))
        refused(gate(good, "--baseline", good, "--noise", tmp_path / "spoiled.json"))
        refused(invoke(csm, "evaluate", "calibrate", tmp_path / "spoiled.json"))
    refused(gate(tmp_path / "none.json", *known), "none.json is not there")
    for broken in ("", "[[rule]\n", "[[rule]]\nmetric = 'beauty'\nat_least = 1\n", "[[rule]]\nmetric = 3\n"):
        rules.write_text(broken)
        refused(gate(good, *known), str(rules))
    refused(invoke(csm, "evaluate", "calibrate", scores_file(tmp_path, "once.json", 0.9, 1)), "too few repeats")


def test_listen_collect_and_audio_refuse_in_one_sentence(
    work: Path, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    run = copy("run")
    shutil.rmtree(run / "report", ignore_errors=True)
    refused(invoke(csm, "evaluate", "listen", run, "--output", tmp_path / "page.html"), "scores.json is not there")
    assert evaluate(work, run, "--asr-model", "none", "--no-mos").exit_code == 0
    made = invoke(csm, "evaluate", "listen", run, "--output", tmp_path / "page.html")
    assert made.stdout == f"{tmp_path / 'page.html'}\n"
    key = tmp_path / "page.key.json"
    items = json.loads(key.read_text())["items"]
    assert {one["system"] for one in items.values()} == {"base", "step-000003"}
    refused(
        invoke(csm, "evaluate", "listen", run, "--output", tmp_path / "p.html", "--system", "x"), "no scored system 'x'"
    )
    refused(
        invoke(csm, "evaluate", "listen", run / "report" / "scores.json", "--output", tmp_path / "p.html"), "is a file"
    )
    shutil.copytree(run, tmp_path / "other" / run.name)
    words = ("evaluate", "listen", run, run, tmp_path / "other" / run.name, "--output", tmp_path / "p.html")
    assert invoke(csm, *words).exit_code == 0
    both = json.loads((tmp_path / "p.key.json").read_text())["items"]
    assert len({one["system"] for one in both.values()}) == 4, "runs of one name are told apart"
    refused(invoke(csm, "evaluate", "collect", key), "1 keys and 0 files of answers")
    answers = {"schema_version": "listening-answers-1", "test": json.loads(key.read_text())["test"], "pairs": {}}
    for wrong in ({"ratings": {next(iter(items)): 6}}, {"ratings": {"x": 1}}, {"ratings": []}, {}):
        (tmp_path / "a.json").write_text(json.dumps({**answers, **wrong}))
        refused(invoke(csm, "evaluate", "collect", key, tmp_path / "a.json"), "a.json")
    (tmp_path / "a.json").write_text(json.dumps({**answers, "ratings": {next(iter(items)): 4}}))
    assert "4.00" in invoke(csm, "evaluate", "collect", key, tmp_path / "a.json").stdout
    (tmp_path / "broken.key.json").write_text('{"schema_version": "listening-key-1"}')
    refused(invoke(csm, "evaluate", "collect", tmp_path / "broken.key.json", tmp_path / "a.json"), "not the whole key")
    refused(invoke(csm, "evaluate", "audio", "."), "None of the files")
    (tmp_path / "no.wav").write_text("no sound")
    refused(invoke(csm, "evaluate", "audio", tmp_path / "no.wav"), "None of the files")
    figures = scored(invoke(csm, "evaluate", "audio", VOICE / "audio" / "001.flac", "--language", "fr", "--json", "-"))
    (row,) = figures["recordings"]
    assert row["characters_per_second_speech"] > 5
    assert row["syllables_per_second_speech"] is None
