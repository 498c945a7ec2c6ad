"""`csm evaluate audio`: the figures of any recording, no model needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csm.cli.console import answer, answer_json, warn
from csm.cli.options import PATH
from csm.cli.target import writable
from csm.errors import CsmError


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--text", help="what is said in it; default: the .txt beside each file")
@click.option("--language", default="en", show_default=True, help="of what is said")
@click.option("--reference", type=PATH, help="recordings of a voice: adds the similarity to it")
@click.option("--json", "json_path", metavar="FILE", help="write the figures as JSON; - is stdout")
def audio(
    files: tuple[Path, ...], text: str | None, language: str, reference: Path | None, json_path: str | None
) -> None:
    """Measure sound FILES: rate, pitch, pauses, energy; each key names its unit."""
    place = json_path if json_path in (None, "-") else str(writable(Path(json_path)))
    against = _voice(reference) if reference else None
    rows = []
    for path in files:
        try:
            rows.append(_figures(path, text, language, against))
        except CsmError as error:
            warn(f"skipped: {error.message}")
    if not rows:
        raise CsmError("None of the files can be measured.")
    if place == "-":
        answer_json({"schema_version": 1, "recordings": rows})
        return
    if place:
        import json

        from evaluation.report import write_text

        document = {"schema_version": 1, "recordings": rows}
        write_text(Path(place), json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    answer(_table(rows))


def _voice(folder: Path) -> Any:
    from evaluation.reference import Reference

    return Reference.from_folder(folder).embedding


def _figures(path: Path, text: str | None, language: str, voice: Any) -> dict[str, Any]:
    from csm.audio import read_audio
    from evaluation.reference import transcript
    from evaluation.sample import Sample, row, sounds

    if path.is_dir():
        raise CsmError(f"{path} is a folder.")
    said = text if text is not None else transcript(path, path.parent)
    sample = Sample(str(path), said, 0, *read_audio(path), language=language)
    measures = sounds(sample)
    if voice is not None:
        from evaluation.speaker import embed, similarity, unusable

        reason = unusable(sample.wave, sample.rate)
        value = None if reason else similarity(embed(sample.wave, sample.rate), voice)
        measures.put("speaker_similarity", value, reason or "")
    found = row(sample, measures)
    return {key: value for key, value in found.items() if key not in ("heard", "seed", "stop_reason", "stopped")}


def _table(rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate

    keys = [key for key, value in rows[0].items() if key not in ("name", "text", "reasons", "notes")]
    cells = [[key, *("–" if row[key] is None else f"{row[key]:.3f}" for row in rows)] for key in keys]
    return tabulate(
        cells,
        ["", *(Path(row["name"]).name for row in rows)],
        disable_numparse=True,
        colalign=["left", *["right"] * len(rows)],
    )
