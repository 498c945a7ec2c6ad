"""Watchers: the functions that a caller hands to a run, so that training itself neither prints, speaks nor scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Report = Callable[[int, int, dict[str, float]], None]
Begun = Callable[[int, Path | None], None]
Saved = Callable[[int, Path], None]
Listen = Callable[[Path, int], dict[str, float]]


def _nothing(*_: object) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Watchers:
    """Who is told what.

    Attributes:
        report: (step, steps, values) after every update.
        notice: a sentence that the user should read.
        listen: (model folder, step) where samples are due: speaks the fixed prompts with it and gives figures, among
            them `speaker_similarity`. None where a run neither speaks nor chooses by its sound.
        begun: (step, old run) before the first update: where it goes on from, and where --fresh moved an older run.
        saved: (step, folder) after every checkpoint.
    """

    report: Report = _nothing
    notice: Callable[[str], None] = _nothing
    listen: Listen | None = None
    begun: Begun = _nothing
    saved: Saved = _nothing
