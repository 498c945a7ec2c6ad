"""Samples that are there already: whose they are counts, since several speakers may stand in one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csm.generator import load_generator
from csm.samples import speak_samples, spoken_before
from evaluation.memory import Memory

TEXT = ("hello there.",)


def test_another_speakers_sample_of_the_same_text_and_seed_is_not_taken(tmp_path: Path) -> None:
    """As `csm evaluate RUN --speaker 1` leaves it beside the base's samples, that a training comes back to."""
    generator = load_generator("csm-tiny")
    spoken = {speaker: speak_samples(generator, TEXT, speaker, (0,), tmp_path) for speaker in (0, 1)}
    for speaker in (0, 1):
        assert spoken_before(tmp_path, TEXT, (0,), speaker) == spoken[speaker]
    assert spoken_before(tmp_path, TEXT, (0,), 2) is None
    path = spoken[0][0].path
    assert path
    note = json.loads(path.with_suffix(".json").read_text())
    del note["speaker"]  # as notes were before
    path.with_suffix(".json").write_text(json.dumps(note))
    assert spoken_before(tmp_path, TEXT, (0,), 1) == spoken[1]
    found = spoken_before(tmp_path, TEXT, (0,), 0)
    assert found
    assert found[0].path == path


@pytest.mark.parametrize("damaged", ['{"schema_version": 1}', '{"schema_version": 1, "answers": []}', "[]", "{"])
def test_a_damaged_memory_is_begun_anew(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "judged.json").write_text(damaged)
    assert Memory(tmp_path / "judged.json")._answers == {}
