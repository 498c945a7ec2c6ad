"""Where `csm evaluate` writes what it found: JSON, Markdown, HTML and JUnit, to files or to stdout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csm.cli.console import answer, answer_json
from csm.cli.target import writable

if TYPE_CHECKING:
    import numpy as np

    from csm.cli.contest import Contest
    from evaluation.score import Scores


@dataclass(frozen=True)
class Reports:
    """Files to be written about one target, by kind; `-` is stdout, None is none.

    Args:
        contest: what was scored.
        recordings: the folder of the reference.
        places: by `json`, `markdown`, `html`, `junit`.
    """

    contest: Contest
    recordings: Path
    places: dict[str, str | None]

    @classmethod
    def planned(cls, contest: Contest, recordings: Path, **places: str | None) -> Reports:
        """Links followed; what could not be written is refused before the work.

        Raises:
            click.UsageError: two reports name one place.
            CsmError: a place cannot be written.
        """
        found = {kind: path if path in (None, "-") else str(writable(Path(path))) for kind, path in places.items()}
        named = [path for path in found.values() if path]
        if len(named) != len(set(named)):
            twice = [kind for kind, path in found.items() if path and named.count(path) > 1]
            raise click.UsageError(f"{' and '.join(f'--{kind}' for kind in twice)} name the same place.")
        return cls(contest, recordings, found)

    @property
    def answers(self) -> bool:
        """Whether one of them is the answer on stdout."""
        return "-" in self.places.values()

    def write(self, scores: Scores) -> None:
        """Write them all, each whole or not at all."""
        from evaluation.junit import comparisons_document
        from evaluation.report import markdown_report, write_json, write_markdown, write_text

        samples, curves = self.contest.samples, _curves(self.contest)
        for kind, place in self.places.items():
            if place is None:
                continue
            if kind == "json":
                answer_json(scores.to_json()) if place == "-" else write_json(scores, place)
            elif kind == "markdown" and place == "-":
                answer(markdown_report(scores, samples, curves))
            elif kind == "markdown":
                write_markdown(scores, place, samples, curves)
            else:
                text = self._page(scores) if kind == "html" else comparisons_document(scores)
                answer(text) if place == "-" else write_text(Path(place), text)

    def _page(self, scores: Scores) -> str:
        from csm.audio import read_audio
        from evaluation.page import html_report

        sounds = self.contest.sounds

        def wave_of(system: str, row: Any) -> tuple[np.ndarray, int] | None:
            path = (self.recordings if system == "reference" else sounds[system]) / row["name"]
            return read_audio(path) if path.is_file() else None

        return html_report(scores, wave_of)


def _curves(contest: Contest) -> dict[str, list[tuple[int, float]]]:
    """Training and validation loss by step, where the target is a run."""
    from csm.training.metrics import MetricsFile

    if contest.run is None:
        return {}
    records = MetricsFile(contest.run.path / "metrics.jsonl").read()
    keys = {"training loss": "loss", "validation loss": "validation_loss"}
    curves = {name: [(r["step"], r[key]) for r in records if key in r] for name, key in keys.items()}
    return {name: points for name, points in curves.items() if points}
