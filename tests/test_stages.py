"""Stages in one go, each from the best of the one before; and the tree of what came from what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import finetune
from test_run import final_state

from csm.errors import CsmError
from csm.training.interrupt import Interrupted
from csm.training.lineage import find_runs, tree


def write_stages(folder: Path, model: Path, clips: Path, **of_style: Any) -> Path:
    """Voice, style, domain on the toy model, two updates each; YAML is a superset of JSON."""
    data = {"data_path": str(clips), "speaker_id": 5}
    few = {"max_steps": 2, "save_every": 1, "learning_rate": 1e-3, "val_split": 0.2}
    document = {
        "base": str(model),
        "output_dir": "out",
        "stages": [
            {"name": "voice", "preset": "voice-adapt", **data, "recipe": few},
            {"preset": "style-tune", **data, "recipe": {**few, "style_name": "calm"}, **of_style},
            {"name": "domain", "preset": "domain", **data, "recipe": few, "terms": "terms.txt"},
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "terms.txt").write_text("fox\n")
    (folder / "stages.yaml").write_text(json.dumps(document))
    return folder / "stages.yaml"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def staged(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("staged")
    done = finetune("run", write_stages(root, toy_folder, clip_folder), "--cache-dir", cache, "--threads", 1)
    best = root / "out" / "domain" / "checkpoints" / (root / "out" / "domain" / "best").read_text().strip()
    assert done.stdout == f"{best}\n"
    return root


def test_each_stage_begins_from_the_best_of_the_one_before(staged: Path) -> None:
    for earlier, later in (("voice", "style-tune"), ("style-tune", "domain")):
        parent = json.loads((staged / "out" / later / "lineage.json").read_text())["parent"]
        best = (staged / "out" / earlier / "best").read_text().strip()
        assert Path(parent["path"]) == staged / "out" / earlier / "checkpoints" / best
        assert parent["run"]["checkpoint"] == best
    recipe = json.loads((staged / "out" / "domain" / "recipe.json").read_text())["recipe"]
    assert (recipe["terms"], recipe["max_steps"], recipe["freeze_decoder"]) == (["fox"], 2, True)


@pytest.mark.parametrize("stop", [("voice", 1), ("style-tune", 1), ("style-tune", 2), ("domain", 1)])
def test_a_stopped_run_of_stages_ends_as_one_that_never_stopped(
    toy_folder: Path, clip_folder: Path, cache: Path, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stop: tuple[str, int],
) -> None:  # fmt: skip
    """The stage's save at that step is followed by a signal's exit."""
    import csm.training.loop as loop

    real = loop.save

    def save(parts: Any, position: Any, values: Any) -> None:
        real(parts, position, values)
        if (parts.run.path.name, position.step) == stop:
            raise Interrupted("stopped", 2)

    monkeypatch.setattr(loop, "save", save)
    words = ["run", write_stages(tmp_path, toy_folder, clip_folder), "--cache-dir", cache, "--threads", 1]
    assert "stopped" in finetune(*words, code=130).stderr
    monkeypatch.undo()
    finetune(*words)
    for stage in ("voice", "style-tune", "domain"):
        one, two = final_state(staged / "out" / stage, 2), final_state(tmp_path / "out" / stage, 2)
        assert all(np.array_equal(one[key], two[key]) for key in one), stage


def test_the_tree_survives_a_move(staged: Path, tmp_path: Path) -> None:
    shutil.copytree(staged / "out", tmp_path / "moved")
    for folder in (staged / "out", tmp_path / "moved"):
        shown = [(depth, Path(run.facts["path"]).name) for depth, run in tree(find_runs([folder]))]
        assert shown == [(0, "voice"), (1, "style-tune"), (2, "domain")]


def test_stages_are_listed_as_text_and_json(staged: Path, toy_folder: Path) -> None:
    lines = finetune("stages", staged).stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{toy_folder.name} -> {staged}/out/voice: voice-adapt; 10 clips")
    assert lines[1].startswith("└─ ")
    assert lines[2].startswith("   └─ ")
    assert all("validation loss" in line and "csm-finetune" in line for line in lines)
    listed = json.loads(finetune("stages", staged, "--json").stdout)
    assert [run["depth"] for run in listed] == [0, 1, 2]
    assert listed[1]["parent_run"] == listed[0]["id"]
    assert {"parent", "data", "recipe", "program", "scores", "best"} <= listed[0].keys()
    assert len({run["data"]["fingerprint"] for run in listed}) == 1
    assert json.loads(finetune("stages", staged / "out" / "voice" / "checkpoints", "--json").stdout) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 3}, "unknown key 'epochs'.*under `recipe:`"),
        ({"preset": "voice"}, "no preset 'voice'.*voice-adapt"),
        ({"recipe": {}}, "no style_name"),
        ({"recipe": {"style_name": "x", "epoch": 1}}, "stage style-tune: unknown key 'epoch'"),
        ({"name": "voice"}, "two stages with the name voice"),
        ({"speaker_id": "x"}, "stage 2.*speaker_id is 'x'; it is a whole number"),
        ({"speaker_id": -1}, "speaker_id is -1; it goes from 0"),
        ({"piece_seconds": "ten"}, "piece_seconds is 'ten'; it is a number"),
        ({"align": "no"}, "align is 'no'; it is true or false"),
        ({"denoise": 1}, "denoise is 1; it is true or false"),
    ],
)
def test_a_fault_of_the_file_names_its_stage(
    toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    import re

    file = write_stages(tmp_path, toy_folder, clip_folder, **change)
    told = finetune("run", file, "--cache-dir", cache, "--threads", 1, "--dry-run", code=1).stderr
    assert re.search(sentence, " ".join(told.split())), told


def test_a_dry_run_of_stages_writes_nothing(toy_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    file = write_stages(tmp_path, toy_folder, clip_folder)
    shown = finetune("run", file, "--threads", 1, "--dry-run").stdout
    assert shown.count("stages.yaml, stage") >= 9
    assert "calm" in shown
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CsmError, match="is not a folder"):
        find_runs([tmp_path / "none"])


def test_a_stage_names_data_of_any_layout(toy_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    """Paths start at the file's folder, addresses stay as they are, format and language go along."""
    from csm.cli.stages import read_stages

    mixed = {"data_path": ["talks.json", "hf://owner/name"], "format": "huggingface", "language": "de"}
    _, stages = read_stages(write_stages(tmp_path, toy_folder, clip_folder, **mixed))
    assert stages[1].data["data_paths"] == [str(tmp_path / "talks.json"), "hf://owner/name"]
    assert (stages[1].data["data_format"], stages[1].data["language"]) == ("huggingface", "de")
    assert (stages[0].data["data_format"], stages[0].data["language"]) == (None, "en")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"recipe": {"style_name": "calm", "epoch": 3}}, "epochs"),
        ({"recipe": {"style_name": "calm", "epochs": 0}}, "epochs is 0"),
        ({"terms": "none.txt"}, "none.txt"),
        ({"data_path": "nowhere"}, "nowhere is not there"),
    ],
)
def test_a_later_stage_is_looked_at_before_the_first_trains(
    wrong: dict[str, Any], problem: str, toy_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    done = finetune("run", write_stages(tmp_path, toy_folder, clip_folder, **wrong), "--threads", 1, code=1)
    assert problem in done.stderr
    assert not (tmp_path / "out").exists()
