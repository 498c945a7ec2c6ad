"""The report as one HTML file that works offline: the pick and why, scores by checkpoint, every sample to hear and see.

Sounds are embedded as MP3, drawings as SVG and bytes, texts are escaped; nothing is fetched.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from csm.audio import resample
from evaluation.columns import cell, shown
from evaluation.compare import interval_of_mean
from evaluation.drawings import Point, curve, pitch_contour, spectrogram, waveform
from evaluation.forgetting import HEADS, forgetting_lines, forgetting_rows
from evaluation.remarks import TERM_HEADS, remarks, term_rows
from evaluation.report import compared_with, comparison_lines
from evaluation.score import Scores, SystemScores

Wave = tuple[np.ndarray, int]
FindWave = Callable[[str, Mapping[str, Any]], Wave | None]
"""From a system's name (`reference` for the recordings) and a row to the sound that was scored, None where it is gone."""

CURVES = {
    "speaker_similarity": "Speaker similarity",
    "word_error_rate": "Word error rate",
    "predicted_mos": "Predicted opinion, 1 to 5",
    "stopped": "Stopped by itself, share",
}


def html_report(scores: Scores, wave_of: FindWave) -> str:
    """The whole page.

    Args:
        scores: what was found out.
        wave_of: gives the sounds.
    """
    name = html.escape(scores.reference["name"])
    parts = [
        f"<h1>Scores against {name}</h1>",
        f'<p class="pick">{html.escape(scores.best_reason)}</p>',
        f'<div class="scroll">{_table(scores)}</div>',
        _list(remarks(scores), "remarks"),
        f"<h2>Against {html.escape(compared_with(scores))}</h2>",
        _list(comparison_lines(scores)),
        *_more(scores),
        "<h2>By checkpoint</h2>",
        f'<div class="curves">{_curves(scores)}</div>',
        "<h2>Samples</h2>",
        "<p>Blue is the sample's own pitch, orange the reference recording's of the same text, over the sound's length.</p>",
        *_samples(scores, wave_of),
    ]
    return page(f"Scores against {name}", "\n".join(parts))


def _list(lines: Iterable[str], kind: str = "") -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _more(scores: Scores) -> Iterator[str]:
    """Terms and forgetting, where there are any."""
    if scores.terms:
        yield "<h2>Terms</h2>" + _words_table(TERM_HEADS, term_rows(scores))
    if scores.forgetting:
        yield "<h2>Forgetting</h2>" + _words_table(HEADS, forgetting_rows(scores.forgetting))
        yield _list(forgetting_lines(scores.forgetting))


def _words_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="words"><tr>{top}</tr>{body}</table></div>'


def page(title: str, body: str, *scripts: str) -> str:
    """A page of its own with the house's style; `title` and `body` are HTML, `scripts` JavaScript that comes last."""
    assets = files("evaluation") / "assets"
    style = (assets / "page.css").read_text(encoding="utf-8")
    script = "\n".join([(assets / "page.js").read_text(encoding="utf-8"), *scripts])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{style}</style></head>\n<body>{body}<script>{script}</script></body></html>\n"
    )


def player(wave: np.ndarray, rate: int) -> str:
    """The sound as an audio element that holds it, as MP3; `wave` is `(samples,)`."""
    import soundfile

    encoded = io.BytesIO()
    soundfile.write(
        encoded, np.clip(resample(wave, rate, 24_000), -1, 1), 24_000, format="MP3", subtype="MPEG_LAYER_III"
    )
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<audio controls preload="metadata" src="data:audio/mpeg;base64,{data}"></audio>'


def _table(scores: Scores) -> str:
    columns = shown([*(system.summary for system in scores.systems), scores.reference["summary"]])
    heads = "".join(f"<th>{html.escape(head)}<br>{html.escape(unit)}</th>" for head, unit, _ in columns.values())
    rows = []
    for system in _ordered(scores):
        best = ' class="best"' if system.name == scores.best else ""
        cells = "".join(f"<td>{cell(system.summary, key)}</td>" for key in columns)
        rows.append(f"<tr{best}><td>{html.escape(system.name)}{' (best)' if best else ''}</td>{cells}</tr>")
    cells = "".join(f"<td>{cell(scores.reference['summary'], key)}</td>" for key in columns)
    rows.append(f"<tr><td>reference ({scores.reference['recordings']})</td>{cells}</tr>")
    return f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"


def _curves(scores: Scores) -> str:
    drawn = []
    for key, title in CURVES.items():
        points = []
        for system in (system for system in _ordered(scores) if system.kind != "codec"):
            if (value := system.summary.get(key)) is not None:
                points.append(Point(system.name, value, interval_of_mean(system.samples, key)))
        levels = [(system.name, system.summary.get(key)) for system in scores.systems if system.kind == "codec"]
        levels.append(("recordings", scores.reference["summary"].get(key)))
        if points:
            drawn.append(curve(title, points, [(name, level) for name, level in levels if level is not None]))
    return "".join(drawn) or '<p class="empty">Nothing was scored.</p>'


def _samples(scores: Scores, wave_of: FindWave) -> list[str]:
    """One section a text: the recording of it, where there is one, then every system's samples."""
    recordings = {row["text"]: row for row in reversed(scores.reference["samples"]) if row["text"]}
    texts: dict[str | None, list[tuple[str, Mapping[str, Any]]]] = {}
    for system in _ordered(scores):
        for row in system.samples:
            texts.setdefault(row["text"], []).append((system.name, row))
    parts = []
    for text, found in texts.items():
        recording = recordings.get(text)
        own = wave_of("reference", recording) if recording else None
        cards = [_card("recording", recording, own, None, "sound is-reference")] if recording else []
        cards += [_card(system, row, wave_of(system, row), own, "sound") for system, row in found]
        heading = html.escape(text) if text else "(text not known)"
        parts.append(f'<h3>{heading}</h3><div class="sounds">{"".join(cards)}</div>')
    return parts


def _card(name: str, row: Mapping[str, Any], sound: Wave | None, reference: Wave | None, kind: str) -> str:
    told = [
        f"{head} {cell(row, key)} {unit}".strip()
        for key, (head, unit, _) in shown([row]).items()
        if row.get(key) is not None
    ]
    if row.get("heard") is not None:
        told.append(f"heard: “{row['heard']}”")
    if row.get("stop_reason"):
        told.append(f"ended by: {row['stop_reason']}")
    if sound is None or len(sound[0]) == 0:
        media = '<p class="empty">There is no sound.</p>'
    else:
        wave, rate = sound
        media = player(wave, rate) + waveform(wave) + spectrogram(wave, rate) + pitch_contour(wave, rate, reference)
    title = f"{name}, seed {row['seed']}" if kind == "sound" else name
    return f'<div class="{kind}"><h4>{html.escape(title)}</h4>{media}<p>{html.escape("; ".join(told))}</p></div>'


def _ordered(scores: Scores) -> list[SystemScores]:
    return sorted(scores.systems, key=lambda system: system.kind != "base")
