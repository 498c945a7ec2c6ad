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
