"""The run folder: recipe, lineage, metrics, checkpoints, and the pointers `best` and `last`.

Whatever can be lost is written beside, flushed to disk, then swapped in; a folder that is half-written is never seen.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from csm.errors import CsmError
from csm.json_file import read_json
from csm.model_folder import pointed_to
from csm.whole_file import whole_file

TRAINER = "trainer"


@dataclass(frozen=True)
class Position:
    """Where a run is: updates done, the best loss so far with its step, and how many validations ago that was.

    The loss is whatever `best` goes by, lower being better; see `csm.training.measure.distance`.
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0


class RunFolder:
    """One fine-tune's folder."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"

    @property
    def exists(self) -> bool:
        return (self.path / "recipe.json").is_file()

    def begin(self, recipe: dict[str, Any], lineage: dict[str, Any]) -> None:
        """Write what the run is.

        Raises:
            CsmError: the folder holds something else already.
        """
        if self.path.exists() and (not self.path.is_dir() or not self._only_begun()):
            raise CsmError(f"{self.path} is there already and is no run.", "Give another --output-dir.")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "lineage.json", lineage)
        write_json(self.path / "recipe.json", recipe)

    def _only_begun(self) -> bool:
        """Whether a kill during `begin` explains all that is here."""
        names = {p.name for p in self.path.iterdir() if not p.name.startswith(".")}
        return names <= {"checkpoints", "lineage.json"}

    def recipe(self) -> dict[str, Any]:
        return read_json(self.path / "recipe.json")

    def lineage(self) -> dict[str, Any]:
        """Where the run comes from.

        Raises:
            CsmError: the file is missing, broken or of another version.
        """
        path = self.path / "lineage.json"
        values = read_json(path)
        if values.get("schema_version") != 1 or not {"parent", "data"} <= values.keys():
            raise CsmError(f"{path} is damaged: it does not say where the run comes from.")
        return values

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out while this one writes.

        Raises:
            CsmError: another process is at it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise CsmError(f"{self.path} is in use by another process.", "Wait for it, or stop it first.") from None
        try:
            yield
        finally:
            lock.release()

    def set_aside(self) -> Path:
        """Move the run to a free name beside itself.

        Raises:
            CsmError: the folder is no run, or another process writes to it.
        """
        if not self.exists and not (self.path.is_dir() and self._only_begun()):
            raise CsmError(
                f"{self.path} is there already and is no run.", "Move it yourself, or give another --output-dir."
            )
        with self.locked():
            pass
        number = 1
        path = self.path.resolve()
        while (target := path.with_name(f"{path.name}.old-{number}")).exists():
            number += 1
        os.rename(path, target)
        return target

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """Steps of whole checkpoints, ascending."""
        names = self.checkpoints.glob("step-*") if self.checkpoints.is_dir() else ()
        return sorted(int(p.name[5:]) for p in names if p.name[5:].isdigit())

    def save(
        self, position: Position, fill_model: Callable[[Path], None], fill_trainer: Callable[[Path], None]
    ) -> Path:
        """Write a checkpoint beside and swap it in, point `last` (and `best`) at it, drop older trainer states."""
        target, beside = self.checkpoint(position.step), self.checkpoints / ".part"
        shutil.rmtree(beside, ignore_errors=True)
        (beside / TRAINER).mkdir(parents=True)
        try:
            fill_model(beside)
            fill_trainer(beside / TRAINER)
            write_json(beside / TRAINER / "position.json", vars(position))
            _flush(beside)
            if target.exists():
                shutil.rmtree(target)
            os.rename(beside, target)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        self._point(position)
        for step in self.steps():
            if step != position.step:
                shutil.rmtree(self.checkpoint(step) / TRAINER, ignore_errors=True)
        return target

    def _point(self, position: Position) -> None:
        self.point("last", position.step)
        self.point("best", position.best_step or position.step)

    def prune(self, keep: int) -> None:
        """Drop all checkpoints but the newest `keep` and those that `best` and `last` name; each goes whole."""
        named = {(self.path / name).read_text().strip() for name in ("best", "last") if (self.path / name).is_file()}
        for step in self.steps()[:-keep]:
            if self.checkpoint(step).name not in named:
                leaving = self.checkpoints / ".leaving"
                shutil.rmtree(leaving, ignore_errors=True)
                os.rename(self.checkpoint(step), leaving)
                shutil.rmtree(leaving)

    def point(self, name: str, step: int) -> None:
        """Make `best` or `last` name the checkpoint of `step`."""
        write_text(self.path / name, f"step-{step:06d}\n")

    def latest(self) -> tuple[Path, Position] | None:
        """The newest checkpoint that can be resumed, and where it stands.

        A kill between a checkpoint and its pointers leaves `last` behind: then both are set right.
        """
        for step in reversed(self.steps()):
            folder = self.checkpoint(step)
            if (folder / TRAINER / "position.json").is_file():
                position = _read_position(folder / TRAINER / "position.json")
                if not (self.path / "last").is_file() or pointed_to(self.path, "last") != folder:
                    self._point(position)
                return folder, position
        return None


def _read_position(path: Path) -> Position:
    values = {"stale": 0, **read_json(path)}  # older runs lack it
    kinds = {"step": int, "best_loss": float | int | None, "best_step": int, "stale": int}
    if (
        values.keys() != kinds.keys()
        or not all(isinstance(values[key], kind) for key, kind in kinds.items())
        or (min(values["step"], values["best_step"], values["stale"]) < 0)
    ):
        raise CsmError(f"{path} is damaged: it does not say where the run stands.")
    return Position(**values)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON as a whole file."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def now() -> str:
    """UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as a whole file."""
    with whole_file(path) as file:
        file.write(text.encode())


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
