"""The nearest other voice, from what the registry's runs have said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from csm.audio import read_audio, write_wave
from csm.cli.main import main as csm
from csm.cli.neighbours import registered_voices
from evaluation.speaker import similarity
from profiles.registry import Registry

VOICE = sorted((Path(__file__).parents[1] / "examples" / "voice" / "audio").glob("*.flac"))


def run(folder: Path, faster: float) -> Path:
    """A run's folder whose best checkpoint has said three sentences, in the example voice played so much faster."""
    (folder / "checkpoints" / "step-000010").mkdir(parents=True)
    (folder / "best").write_text("step-000010\n")
    for number, path in enumerate(VOICE[:3]):
        wave, rate = read_audio(path)
        at = np.arange(0, len(wave) - 1, faster)
        sound = np.interp(at, np.arange(len(wave)), wave).astype(np.float32)
        write_wave(folder / "samples" / "step-000010" / f"{number}.wav", sound, rate)
    return folder


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Three voices of runs and one of a model alone."""
    registry = Registry(tmp_path / "voices.json")
    for name, faster in (("Same", 1.0), ("Higher", 1.25), ("Mouse", 1.5)):
        registry.create(name, 5, "a voice", run(tmp_path / name.lower(), faster))
    registry.create("Model", 5, "never scored", "csm-tiny")
    return tmp_path / "voices.json"


def test_each_scored_voice_is_heard_and_the_target_is_none(database: Path) -> None:
    voices = registered_voices(database, database.parent / "higher")
    assert set(voices) == {"Same", "Mouse"}
    assert similarity(voices["Same"], voices["Mouse"]) < 0.8


def test_a_voice_is_no_other_of_its_own_however_it_is_called(database: Path) -> None:
    """By its name in another case, its id, its speaker id, or as a second voice of the same run."""
    registry = Registry(database)
    run_of_same = database.parent / "same"
    pinned = registry.create("Pinned", 9, "a voice", run_of_same / "checkpoints" / "step-000010")
    for key in ("same", registry.find("Same").id, "pinned", pinned.id, "9"):
        assert set(registered_voices(database, key)) == {"Higher", "Mouse"}, key


def test_no_registry_holds_nobody(tmp_path: Path) -> None:
    assert registered_voices(tmp_path / "none.json", tmp_path) == {}


def test_evaluate_names_how_near_the_nearest_is(database: Path) -> None:
    """A folder of the example voice: the registry's copy of it is the nearest, as near as the voice is to itself."""
    flags = ["--asr-model", "none", "--no-mos", "--json", "-", "--db", str(database)]
    folder = str(database.parent / "same" / "samples")
    done = CliRunner().invoke(csm, ["evaluate", folder, "--reference", folder, *flags])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["systems"][0]["summary"]["nearest_other_similarity"] > 0.97
