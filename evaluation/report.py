"""Scores for people: a table for the terminal, a report in Markdown; and every file written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from csm.audio import SUFFIXES
from evaluation.columns import cell, shown
from evaluation.compare import METRICS, PHRASES, in_words
from evaluation.forgetting import HEADS, forgetting_lines, forgetting_rows
from evaluation.remarks import TERM_HEADS, remarks, term_rows
from evaluation.score import Scores, SystemScores

Curves = Mapping[str, Sequence[tuple[int, float]]]


def terminal_table(scores: Scores, format: str = "simple") -> str:
    """Base, checkpoints and folders, then the reference: similarity, rate, pitch and pauses, the best one marked.

    Args:
        format: any of tabulate's formats; `github` for Markdown.
    """
    from tabulate import tabulate

    summaries = [*(system.summary for system in scores.systems), scores.reference["summary"]]
    columns = shown(summaries)
    rows = [
        [_system_name(system, scores), *(cell(system.summary, key) for key in columns)]
        for system in _ordered(scores.systems)
    ]
    recordings = f"reference ({scores.reference['recordings']})"
    rows.append([recordings, *(cell(scores.reference["summary"], key) for key in columns)])
    is_markdown = format in ("github", "pipe")
    if is_markdown:
        rows = [[_escape(row[0]), *row[1:]] for row in rows]
    between = "\n" if format in ("simple", "plain", "grid", "rounded_grid") else " "
    heads = ["", *(between.join((head, unit)).rstrip(" ") for head, unit, _ in columns.values())]
    align = ("left", *["right"] * len(columns))
    return tabulate(rows, headers=heads, tablefmt=format, disable_numparse=True, colalign=align)


def term_table(scores: Scores, format: str = "simple") -> str:
    """Each term's hit rate by system, and what was heard instead."""
    return _lines(term_rows(scores), TERM_HEADS, 2, format)


def forgetting_table(scores: Scores, format: str = "simple") -> str:
    """What each system still does as other speakers and on other texts."""
    return _lines(forgetting_rows(scores.forgetting), HEADS, 2, format)


def _lines(rows: list[list[str]], heads: Sequence[str], names: int, format: str) -> str:
    """A table whose first columns, `names` of them, and last are words."""
    from tabulate import tabulate

    if format in ("github", "pipe"):
        rows = [[_escape(cell) for cell in row] for row in rows]
    align = ["left"] * names + ["right"] * (len(heads) - names - 1) + ["left"]
    return tabulate(rows, headers=list(heads), tablefmt=format, disable_numparse=True, colalign=align)


def markdown_report(
    scores: Scores,
    samples_folder: str | Path | None = None,
    curves: Curves | None = None,
    links_from: str | Path | None = None,
) -> str:
    """The whole report: table, comparison in words, ceiling, curves, samples to listen to, what could not be scored.

    Args:
        samples_folder: sound files below it that were scored, or tell of forgetting, are listed as links.
        curves: training curves by name, each `(step, value)` in order.
        links_from: the folder the report will stand in, which links are relative to; the current one if None.
    """
    parts = [
        f"# Scores against {_escape(scores.reference['name'])}",
        terminal_table(scores, "github"),
        "Similarity is the cosine of speaker embeddings, per sample and pooled over pieces of 3 s and more; rate is "
        "syllables (other languages than English: letters) per second of sounding time; spread is in semitones about the "
        "median pitch.",
        "\n".join(f"- {_escape(line)}" for line in remarks(scores)) or None,
        "\n".join(["## Best", "", _escape(scores.best_reason)]),
        "\n".join(
            [
                f"## Against {_escape(compared_with(scores))}",
                "",
                *(f"- {_escape(line)}" for line in comparison_lines(scores)),
            ]
        ),
        "\n".join(["## What is possible", "", _ceiling(scores.reference)]),
    ]
    if scores.terms:
        parts.append("\n".join(["## Terms", "", term_table(scores, "github")]))
    if scores.forgetting:
        lines = "\n".join(f"- {_escape(line)}" for line in forgetting_lines(scores.forgetting))
        parts.append("\n\n".join(["## Forgetting", forgetting_table(scores, "github"), lines]))
    if curves:
        parts.append("\n".join(["## Training", "", _curve_table(curves)]))
    if samples_folder is not None:
        links = _sample_links(scores, Path(samples_folder), Path(links_from or "."))
        parts.append("\n".join(["## Samples", "", *(links or ["There are none."])]))
    if absences := list(_absences(scores)):
        parts.append("\n".join(["## Not scored", "", *absences]))
    return "\n\n".join(part for part in parts if part) + "\n"


def write_json(scores: Scores, path: str | Path) -> None:
    """Write `scores.json`, whole or not at all.

    Raises:
        OSError: the folder cannot be written or the disk is full; what stood there before still does.
    """
    write_text(Path(path), json.dumps(scores.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_markdown(
    scores: Scores, path: str | Path, samples_folder: str | Path | None = None, curves: Curves | None = None
) -> None:
    """Write `markdown_report` with links relative to the report, whole or not at all. Raises as `write_json`."""
    path = Path(path)
    write_text(path, markdown_report(scores, samples_folder, curves, links_from=path.parent))


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all. Raises as `write_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def _ordered(systems: Sequence[SystemScores]) -> list[SystemScores]:
    return sorted(systems, key=lambda system: system.kind != "base")  # stable: the rest keep their order


def _system_name(system: SystemScores, scores: Scores) -> str:
    return f"{system.name} (best)" if system.name == scores.best else system.name


def compared_with(scores: Scores) -> str:
    """Whom the systems are compared with, as a heading says it."""
    name = next((system.name for system in scores.systems if system.kind == "base"), "base")
    return "the base" if name == "base" else name


def comparison_lines(scores: Scores) -> Iterator[str]:
    """The systems against the base, or what stands in its place, in words.

    Every metric for the best system, only the similarity for the others.
    """
    if not any(system.kind == "base" for system in scores.systems):
        yield "No base was scored, so nothing is compared."
        return
    by_key = {(comparison["system"], comparison["metric"]): comparison for comparison in scores.comparisons}
    for system in _ordered(scores.systems):
        if system.kind not in ("base", "codec"):
            metrics = METRICS if scores.best in (system.name, None) else METRICS[:1]
            for metric in metrics:
                found = by_key.get((system.name, metric))
                if found is None and all(one.summary.get(metric) is None for one in scores.systems):
                    continue  # nobody was asked
                words = in_words(found) if found else _not_compared(system.name, metric, compared_with(scores))
                yield words[0].upper() + words[1:]


def _not_compared(system: str, metric: str, other: str) -> str:
    return f"{PHRASES[metric][0]}: {system} and {other} share no text and seed that has it on both sides."


def _ceiling(reference: dict[str, Any]) -> str:
    summary = reference["summary"]
    if summary.get("speaker_similarity") is None:
        return reference["reasons"].get("speaker_similarity", "The reference has no ceiling.")
    sentence = (
        f"The reference's own recordings ({reference['recordings']}, {reference['seconds']:.0f} s) resemble each other "
        f"by {summary['speaker_similarity']:.3f} one by one"
    )
    if summary.get("speaker_similarity_pooled") is not None:
        sentence += f", {summary['speaker_similarity_pooled']:.3f} in pieces of 3 s and more"
    return f"{sentence}, {summary['self_similarity']:.3f} half against half. No system can be expected to pass that."


def _curve_table(curves: Curves) -> str:
    from tabulate import tabulate

    rows = []
    for name, points in curves.items():
        if points:
            lowest = min(points, key=lambda point: point[1])
            shown = [f"{value:.4f} (step {step})" for step, value in (points[0], lowest, points[-1])]
            rows.append([_escape(name), *shown])
    return tabulate(rows, headers=["", "first", "lowest", "last"], tablefmt="github", disable_numparse=True)


def _sample_links(scores: Scores, folder: Path, links_from: Path) -> list[str]:
    texts = {row["name"]: row["text"] for system in scores.systems for row in system.samples}
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        name = path.relative_to(folder).as_posix()
        target = quote(Path(os.path.relpath(path, links_from)).as_posix())
        scored = next((one for one in (name, name.removesuffix(path.suffix)) if one in texts), None)
        if scored is None and not (scores.forgetting and "/forgetting-" in name):
            continue  # of an earlier evaluation, with other texts or seeds
        text = texts.get(scored) if scored else None
        lines.append(f"- [{_escape(name)}]({target})" + (f": {_escape(text)}" if text else ""))
    return lines


def _absences(scores: Scores) -> Iterator[str]:
    for system in scores.systems:
        for row in system.samples:
            if reason := row["reasons"].get("speaker_similarity"):
                yield f"- {_escape(system.name)}, {_escape(row['name'])}, seed {row['seed']}: {reason}"
    for name, reason in scores.reference["skipped"].items():
        yield f"- reference, {_escape(name)}: {_escape(reason)}"


def _escape(text: str) -> str:
    for mark in "\\|[]<>*_`":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
