"""`csm voice` at its border: what stands on stdout, what on stderr, what each mistake is told, and what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import ASSETS
from safetensors.numpy import save_file

from csm.audio import read_audio
from csm.cli.main import main
from profiles.registry import Registry

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "mlx", "transformers", "numpy", "scipy", "parselmouth", "soundfile"}


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "db" / "voices.json"


@pytest.fixture
def csm(db: Path) -> Any:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["voice", "--db", str(db), *arguments])

    return run


@dataclass
class FakeGenerator:
    """Speaks a tone of 0.5 s and remembers what it was asked."""

    loaded: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sample_rate: int = 24_000
    seconds: float = 0.5
    seed: int = 7
    stop_reason: str = "end"
    unread: str = ""

    @property
    def wave(self) -> np.ndarray:
        return (0.3 * np.sin(np.arange(12_000) * 0.05)).astype(np.float32)

    def load(self, model_path: str, **placement: Any) -> FakeGenerator:
        self.loaded.append((model_path, placement))
        return self

    def speak(self, text: str, **how: Any) -> FakeGenerator:
        self.asked.append((text, how))
        return self


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> FakeGenerator:
    fake, module = FakeGenerator(), ModuleType("csm.generator")
    module.load_generator = fake.load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "csm.generator", module)
    return fake


def test_the_documented_create_keeps_what_it_was_given(csm: Any, db: Path) -> None:
    model = Path("tuned")
    model.symlink_to(ASSETS)
    made = csm(
        *("create", "John", "3", "Professional male voice", "--gender", "male", "--age-range", "30-40"),
        *("--accent", "North American", "--model-path", "tuned"),
    )
    assert made.exit_code == 0, made.output
    (voice,) = Registry(db).list()
    assert made.stdout == voice.id + "\n"
    assert (voice.name, voice.speaker_id, voice.description) == ("John", 3, "Professional male voice")
    assert (voice.gender, voice.age_range, voice.accent) == ("male", "30-40", "North American")
    assert voice.model_path == str(model.absolute())


def test_list_shows_a_table_and_json(csm: Any, db: Path) -> None:
    csm("create", "zoe", "4", "")
    csm("create", "John", "3", "A voice", "--gender", "male", "--age-range", "30-40", "--accent", "North American")
    john = Registry(db).find("John")
    Registry(db).update(john.id, scores={"speaker_similarity": 0.78125})
    head, _, *rows = csm("list").stdout.splitlines()
    assert head.split() == ["name", "speaker", "gender", "age", "accent", "model", "similarity"]
    assert rows[0].split() == ["John", "3", "male", "30-40", "North", "American", "csm-tiny", "0.781"]
    assert rows[1].split() == ["zoe", "4", "csm-tiny"]
    listed = csm("list", "--json")
    assert listed.stderr == ""
    assert json.loads(listed.stdout) == [Registry(db).find(name).to_dict() for name in ("John", "zoe")]


def test_an_empty_registry_says_so_beside_the_answer(csm: Any, db: Path) -> None:
    listed = csm("list")
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "No voices yet" in listed.stderr
    assert json.loads(csm("list", "--json").stdout) == []
    assert not db.parent.exists()


def test_show_by_name_id_and_speaker_id(csm: Any, db: Path) -> None:
    csm("create", "John", "3", "A voice")
    john = Registry(db).find("John")
    Registry(db).update(john.id, scores={"speaker_similarity": 0.5}, lineage={"base": {"name": "csm-tiny"}})
    john = Registry(db).find("John")
    for key in ("john", "3", john.id):
        assert json.loads(csm("show", key, "--json").stdout) == john.to_dict()
    shown = dict(line.split(None, 1) for line in csm("show", "John").stdout.splitlines())
    assert shown["id"] == john.id
    assert shown["speaker_id"] == "3"
    assert shown["lineage.base.name"] == "csm-tiny"
    assert shown["scores.speaker_similarity"] == "0.5"
    assert "gender" not in shown


def test_sample_hands_the_voice_to_the_generator(csm: Any, generator: FakeGenerator) -> None:
    model = Path("model")
    model.symlink_to(ASSETS)
    csm("create", "John", "3", "", "--model-path", "model")
    said = csm("sample", "3", "--text", "Hello there.", "--output", "out/hello.wav", "--seed", "7", "--threads", "1")
    assert said.exit_code == 0, said.output
    assert said.stdout == f"{Path('out/hello.wav')}\n"
    assert "seed 7" in said.stderr
    assert generator.loaded == [
        (str(model.absolute()), {"device": "auto", "dtype": "auto", "threads": 1, "base": None})
    ]
    how = {"speaker": 3, "seed": 7, "temperature": None, "top_k": None, "max_audio_length_ms": None}
    assert generator.asked == [("Hello there.", how)]
    wave, rate = read_audio("out/hello.wav")
    assert rate == 24_000
    np.testing.assert_allclose(wave, generator.wave, atol=1e-4)


def test_sampling_is_the_flags_then_the_voices(csm: Any, db: Path, generator: FakeGenerator) -> None:
    Registry(db).create("John", 3, "", "csm-tiny", sampling={"temperature": 0.3, "top_k": 20})
    csm("sample", "John")
    csm("sample", "John", "--temperature", "0")
    csm("sample", "John", "--top-k", "5", "--temperature", "0.9")
    settings = [(how["temperature"], how["top_k"]) for _, how in generator.asked]
    assert settings == [(0.3, 20), (0, 20), (0.9, 5)]


def test_sample_warns_of_a_cut_and_of_what_the_model_cannot_read(csm: Any, generator: FakeGenerator) -> None:
    csm("create", "John", "3", "")
    assert "warning" not in csm("sample", "John").stderr
    generator.stop_reason, generator.unread = "length", "7€"
    said = csm("sample", "John")
    assert said.exit_code == 0
    assert "'7 €'" in said.stderr
    assert "length budget" in said.stderr


def test_sample_names_its_file_after_the_voice_and_spares_others(csm: Any, generator: FakeGenerator) -> None:
    csm("create", "Dr. John: the 2nd?", "3", "")
    Path("Dr._John_the_2nd.wav").write_text("a recording of mine")
    said = [csm("sample", "3").stdout for _ in range(2)]
    assert said == ["Dr._John_the_2nd-2.wav\n", "Dr._John_the_2nd-3.wav\n"]
    assert Path("Dr._John_the_2nd.wav").read_text() == "a recording of mine"
    text, _ = generator.asked[0]
    assert text.strip()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sample", "3", "--text", ""), "the text is empty"),
        (("sample", "3", "--text", " \n"), "the text is empty"),
        (("sample", "3", "--output", "out.mp3"), "suffix"),
        (("sample", "Jon"), "'John'"),
        (("show", "Jon"), "'John'"),
        (("show", "9"), "speaker 3"),
        (("sample", "gone"), "is gone"),
        (("create", "JOHN", "4", ""), "Choose another name"),
        (("create", "42", "4", ""), "all digits"),
        (("create", " ", "4", ""), "needs a name"),
        (("create", "a/b", "4", ""), "separates folders"),
        (("create", "Anna", "4", "", "--model-path", "nowhere"), "no model 'nowhere'"),
        (("create", "Anna", "99", ""), "no symbol for speaker 99"),
        (("sample", "3", "--output", "/dev/full"), "not a regular file"),
    ],
)
def test_a_mistake_ends_in_a_sentence_and_1(
    csm: Any, db: Path, generator: FakeGenerator, arguments: tuple[str, ...], says: str
) -> None:
    Registry(db).create("John", 3, "", "csm-tiny")
    gone = Path("model")
    gone.mkdir()
    Registry(db).create("gone", 3_000, "", gone)
    gone.rmdir()
    before = Registry(db).list()
    done = csm(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert generator.loaded == []
    assert Registry(db).list() == before
    assert [file.name for file in Path().iterdir()] == ["db"]


def junk(folder: Path) -> None:
    """Models that could not speak."""
    (folder / "empty").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "notes.txt").write_text("hello")
    (folder / "sound.wav").write_bytes(b"RIFF")
    (folder / "model.pkl").write_bytes(b"")
    torch.save({"model": object}, folder / "code.pt")
    save_file({"a": np.zeros(3, np.float32)}, folder / "alone.safetensors")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "recipe.json").write_text("{}")
    (folder / "config").mkdir()
    (folder / "config" / "config.json").write_text((ASSETS / "config.json").read_text())


def test_a_model_that_cannot_speak_is_refused(csm: Any, db: Path, tmp_path: Path) -> None:
    junk(tmp_path)
    models = sorted(path.name for path in tmp_path.iterdir())
    assert len(models) == 8
    for name in models:
        done = csm("create", "Anna", "4", "", "--model-path", name)
        assert (done.exit_code, done.stdout) == (1, ""), name
        assert [line[:7] for line in done.stderr.splitlines()].count("error: ") == 1
        assert name in done.stderr
    assert not db.parent.exists()


def test_a_voice_of_weights_that_stand_alone_keeps_its_base(csm: Any, db: Path, generator: FakeGenerator) -> None:
    Path("alone").mkdir()
    Path("alone/weights.safetensors").symlink_to(ASSETS / "model.safetensors")
    Path("base").symlink_to(ASSETS)
    weights = ("--model-path", "alone/weights.safetensors")
    refused = csm("create", "Anna", "4", "", *weights)
    assert refused.exit_code == 1
    assert "--base FOLDER" in refused.stderr
    assert csm("create", "Anna", "4", "", *weights, "--base", "base").exit_code == 0
    assert Registry(db).find("Anna").base == str(Path("base").absolute())
    for flags in ((), ("--base", str(ASSETS))):
        assert csm("sample", "Anna", *flags).exit_code == 0
    assert [placement["base"] for _, placement in generator.loaded] == [str(Path("base").absolute()), ASSETS]
    Path("base").unlink()
    gone = csm("sample", "Anna")
    assert gone.exit_code == 1
    assert f"is gone: {Path('base').absolute()}" in gone.stderr


def test_a_registry_older_than_bases_is_read(csm: Any, db: Path) -> None:
    csm("create", "Anna", "4", "")
    db.write_text(db.read_text().replace('"base": null,', ""))
    assert "base" not in db.read_text()
    assert Registry(db).find("Anna").base is None


def write_run(folder: Path, speaker: int) -> dict[str, Any]:
    """A run of csm-tiny trained on one speaker and scored; returns the scores of its best."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-000002").symlink_to(ASSETS)
    (folder / "best").write_text("step-000002\n")
    (folder / "report").mkdir()
    data = {
        "fingerprint": "f",
        "clips": 2,
        "minutes": 0.1,
        "speakers": [speaker],
        "training": ["a"],
        "validation": ["b"],
    }
    lineage = {"schema_version": 1, "parent": {"path": "csm-tiny", "hash": "h"}, "data": data, "recipe_sources": {}}
    summary = {"speaker_similarity": 0.75}
    rows = [{"name": n, "kind": "checkpoint", "samples": [], "summary": s, "reasons": {}}
            for n, s in (("step-000001", {}), ("step-000002", summary))]  # fmt: skip
    scores = {"schema_version": 1, "reference": {}, "comparisons": [], "best": "", "best_reason": "", "systems": rows}
    contents = {"recipe": {"preset": "voice-adapt"}, "lineage": lineage, "report/scores": scores}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return summary


def test_a_runs_voice_keeps_where_it_comes_from_and_its_scores(csm: Any, db: Path) -> None:
    summary = write_run(Path("run"), speaker=5)
    made = csm("create", "John", "5", "", "--model-path", "run")
    assert (made.exit_code, "warning" in made.stderr) == (0, False), made.stderr
    voice = Registry(db).find("John")
    assert voice.scores == summary
    assert voice.lineage == {
        "parent": {"path": "csm-tiny", "hash": "h"},
        "data": {"fingerprint": "f", "clips": 2, "minutes": 0.1, "speakers": [5]},
        "preset": "voice-adapt",
    }


def test_another_speaker_than_the_runs_is_warned_of_and_has_no_scores(csm: Any, db: Path) -> None:
    write_run(Path("run"), speaker=5)
    made = csm("create", "John", "3", "", "--model-path", "run")
    assert made.exit_code == 0
    (warning,) = [line for line in made.stderr.splitlines() if line.startswith("warning: ")]
    assert "speaker 5" in warning
    assert "3" in warning
    voice = Registry(db).find("John")
    assert (voice.scores, voice.lineage["data"]["speakers"]) == ({}, [5])


def test_a_hub_id_is_kept_as_given(csm: Any, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is asked, and what it gives is checked like any other model."""
    asked: list[str] = []

    def give(name: str, **_: object) -> str:
        asked.append(name)
        return str(ASSETS)

    monkeypatch.setattr("huggingface_hub.snapshot_download", give)
    assert csm("create", "John", "3", "", "--model-path", "someone/csm-2b").exit_code == 0
    assert asked == ["someone/csm-2b"]
    assert Registry(db).find("John").model_path == "someone/csm-2b"
    assert csm("create", "Mary", "99", "", "--model-path", "someone/csm-2b").exit_code == 1
    assert [voice.name for voice in Registry(db).list()] == ["John"]


def test_create_imports_no_torch(db: Path) -> None:
    command = ["-X", "importtime", "-m", "csm.cli.main", "voice", "--db", str(db), "create", "John", "3", ""]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    talk = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=True
    ).stderr
    imported = {line.split("|")[-1].strip().split(".")[0] for line in talk.splitlines() if "|" in line}
    assert "tokenizers" in imported
    assert not imported & {"torch", "transformers", "scipy", "soundfile"}


def test_a_speaker_id_of_two_voices_is_refused_with_both(csm: Any, generator: FakeGenerator) -> None:
    for name in ("John", "Mary"):
        csm("create", name, "3", "")
    said = csm("sample", "3")
    assert said.exit_code == 1
    assert "'John'" in said.stderr
    assert "'Mary'" in said.stderr
    assert generator.loaded == []
    assert csm("sample", "Mary").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [("create", "John", "three", ""), ("create", "John"), ("sample", "3", "--top-k", "-1"), ("lost",)]
)
def test_a_wrong_command_line_exits_2(csm: Any, arguments: tuple[str, ...]) -> None:
    assert csm(*arguments).exit_code == 2


@pytest.mark.parametrize("content", ["", '{"schema_version": 1, "voi', '{"schema_version": 99}'])
def test_a_file_that_cannot_be_read_exits_1_and_stays(csm: Any, db: Path, content: str) -> None:
    db.parent.mkdir()
    db.write_text(content)
    for arguments in (("list",), ("show", "John"), ("create", "John", "3", ""), ("sample", "John")):
        done = csm(*arguments)
        assert (done.exit_code, done.stdout) == (1, "")
        assert str(db) in done.stderr
    assert db.read_text() == content


def test_list_answers_at_once_and_imports_nothing_heavy(db: Path) -> None:
    for number in range(20):
        Registry(db).create(f"voice {number}", number, "", "csm-tiny")
    command = ["-m", "csm.cli.main", "voice", "--db", str(db), "list"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        listed = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert len(listed.stdout.splitlines()) == 22
    assert min(seconds) < 0.5
    watched = [sys.executable, "-X", "importtime", *command]
    talk = subprocess.run(watched, env=environment, capture_output=True, text=True, check=True).stderr
    imported = {line.split("|")[-1].strip().split(".")[0] for line in talk.splitlines() if "|" in line}
    assert {"click", "tinydb", "tabulate"} <= imported
    assert not imported & HEAVY
