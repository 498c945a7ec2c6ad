"""Lineage: which run came from which, read from the folders that the runs left."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.errors import CsmError
from csm.json_file import read_json
from csm.training.metrics import MetricsFile
from csm.training.run_folder import RunFolder

DEPTH = 4  # folders below the one that is named


def run_id(identity: dict[str, Any]) -> str:
    """A short name of what a run is (its recipe.json): the same wherever its folder is moved."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def parent_run(model: Path) -> dict[str, Any] | None:
    """The run that a model folder is a checkpoint of, for its children's lineage; None for any other model."""
    run = RunFolder(model.resolve().parent.parent)
    if model.resolve().parent.name != "checkpoints" or not run.exists:
        return None
    return {"id": run_id(run.recipe()), "checkpoint": model.resolve().name}


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder says of it; `parent` is the id of the run it began from, None where it began from a model."""

    id: str
    parent: str | None
    facts: dict[str, Any]


def find_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Every run in the folders and down to four below them, by path.

    Raises:
        CsmError: a folder is missing, or a run's files are broken.
    """
    found: dict[Path, RunRecord] = {}
    for folder in folders:
        if not folder.is_dir():
            raise CsmError(f"{folder} is not a folder.", "Name a folder that holds runs.")
        for place in _run_folders(folder):
            found.setdefault(place.resolve(), read_run(place))
    return [found[path] for path in sorted(found)]


def _run_folders(folder: Path) -> Iterator[Path]:
    base = len(folder.parts)
    for place, below, files in os.walk(folder):
        if {"recipe.json", "lineage.json"} <= set(files):
            below.clear()
            yield Path(place)
        elif len(Path(place).parts) - base >= DEPTH:
            below.clear()
        below[:] = sorted(name for name in below if not name.startswith("."))


def read_run(path: Path) -> RunRecord:
    """The record of one run folder."""
    run = RunFolder(path)
    identity, lineage = run.recipe(), run.lineage()
    parent = lineage["parent"]
    best = (path / "best").read_text().strip() if (path / "best").is_file() else None
    facts = {
        "path": str(path),
        "preset": identity["preset"],
        "parent": {"path": parent["path"], "hash": parent["hash"], **(parent.get("run") or {})},
        "data": {k: lineage["data"].get(k) for k in ("fingerprint", "clips", "minutes", "speakers")},
        "recipe": identity["recipe"],
        "program": lineage["program"],
        "started": lineage["started"],
        "checkpoints": len(run.steps()),
        "best": best,
        "scores": scores_of(path, best),
    }
    return RunRecord(run_id(identity), (parent.get("run") or {}).get("id"), facts)


def scores_of(run: Path, checkpoint: str | None) -> dict[str, float]:
    """What is known of a checkpoint: its validation loss, and the similarity of `csm evaluate`, else of its samples."""
    if checkpoint is None:
        return {}
    step, scores = int(checkpoint.removeprefix("step-")), dict[str, float]()
    for record in MetricsFile(run / "metrics.jsonl").read():
        if record["step"] == step:
            scores |= {key: record[key] for key in ("validation_loss", "speaker_similarity") if key in record}
    report = run / "report" / "scores.json"
    for system in read_json(report).get("systems", []) if report.is_file() else []:
        value = system["summary"].get("speaker_similarity") if system["name"] == checkpoint else None
        if value is not None:
            scores["speaker_similarity"] = value
    return scores


def tree(runs: Sequence[RunRecord]) -> list[tuple[int, RunRecord]]:
    """The runs with their depth, each under the one it began from; those whose parent is not among them are roots."""
    ids = {run.id for run in runs}
    out: list[tuple[int, RunRecord]] = []

    def walk(run: RunRecord, depth: int) -> None:
        out.append((depth, run))
        for child in runs:
            if child.parent == run.id:
                walk(child, depth + 1)

    for run in runs:
        if run.parent not in ids:
            walk(run, 0)
    return out
