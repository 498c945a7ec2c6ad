"""What `csm-finetune check` found, as one page with plots and players, for a person to look at and listen.

The page needs no network and no other file, but for sounds that it only links to: the clips with a finding are inside it as
MP3 while they fit `INSIDE_BYTES`, all others (and those) play from where they lie, when asked, by a path relative to the page.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from csm.cli.check_plots import Point, histogram, scatter
from csm.cli.check_table import METHODS, figures
from csm.data.row import is_copy

if TYPE_CHECKING:
    import numpy as np

    from csm.cli.check import Diagnosis
    from csm.data.doctor.survey import Record
    from csm.data.row import Row

INSIDE_BYTES = 12_000_000
LISTED = 2_000  # clips with a line of their own; a browser is slow with more
PLAYED_RATE = 24_000
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 1080px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .8rem .3rem 0;
border-bottom: 1px solid #e4e4e4; vertical-align: top; overflow-wrap: anywhere; } th { font-weight: 600; }
.figures td:first-child { white-space: nowrap; color: #666; width: 11rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 1rem 2rem; }
.plot text { font: 11px system-ui, sans-serif; fill: #555; } .plot .title { font-weight: 600; font-size: 13px; fill: #222; }
.plot line { stroke: #e4e4e4; } .finding { border-left: 4px solid #e69f00; padding: .1rem 0 .1rem .9rem; margin: 1rem 0; }
.finding.error { border-color: #d55e00; } .finding p { margin: .25rem 0; overflow-wrap: anywhere; }
.kind { font-weight: 600; } .clip { margin: .5rem 0; max-height: 8rem; overflow-y: auto; }
.clip audio { height: 32px; vertical-align: middle; width: 300px; }
.quiet { color: #666; font-size: 13px; } button { font: inherit; cursor: pointer; }
.num { text-align: right; white-space: nowrap; }
"""
SCRIPT = """
document.addEventListener('click', function (event) {
  var button = event.target.closest('button[data-src]');
  if (!button) return;
  var player = document.createElement('audio');
  player.controls = true;
  player.src = button.dataset.src;
  button.replaceWith(player);
  player.play().catch(function () { player.title = 'this sound cannot be played from here'; });
});
"""
POLICY = "; ".join(
    ("default-src 'none'", "style-src 'unsafe-inline'", "script-src 'unsafe-inline'", "img-src data:",
     "media-src data: file: 'self'")
)  # fmt: skip


def write_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the page to `path`: beside it first, then swapped in."""
    from csm.data.remote import write_whole

    write_whole(path, [_document(diagnosis, path).encode(errors="replace")])


def _document(diagnosis: Diagnosis, path: Path) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in figures(diagnosis))
    notes = "".join(f"<p class=quiet>{escape(sentence)}</p>" for sentence in diagnosis.absent)
    parts = [
        f"<h1>The data for {escape(diagnosis.preset)}</h1><table class=figures>{rows}</table>{notes}",
        f'<h2>Plots</h2><div class="plots">{"".join(_plots(diagnosis))}</div>',
        '<p class="quiet">Orange points are clips that something was found about. A point says its name.</p>',
        *_findings(diagnosis, path),
        *_clips(diagnosis, path),
        f'<p class="quiet">{escape(METHODS)}</p>',
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>csm-finetune check: {escape(diagnosis.preset)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )


def _plots(diagnosis: Diagnosis) -> list[str]:
    records = diagnosis.survey.records
    marked = {number for finding in diagnosis.findings for number in finding.clips}
    heard = [(number, record) for number, record in enumerate(records) if record.sound]
    sounds = [record.sound for _, record in heard if record.sound]
    order = {speaker: place for place, speaker in enumerate(diagnosis.summary.speakers)}
    pace = [
        Point(len(r.row.text), r.speech, order.get(r.row.speaker, 0), _name(r), number in marked)
        for number, r in heard
        if not r.fault  # a text that cannot belong to its clip would squeeze all others into a corner
    ]
    voiced = [(number, record) for number, record in heard if record.voice is not None]
    return [
        histogram([sound.seconds for sound in sounds], "Durations", "seconds"),
        histogram([s.loudness for s in sounds if s.loudness is not None], "Loudness as recorded", "LUFS"),
        histogram([sound.snr for sound in sounds if sound.snr is not None], "Speech over noise", "dB"),
        scatter(pace, "Length of text and of speech", ("characters", "seconds")),
        _map(voiced, marked, order),
    ]


def _map(voiced: Sequence[tuple[int, Record]], marked: set[int], order: dict[int, int]) -> str:
    import numpy as np

    if len(voiced) < 3:
        return ""
    flat = plane(np.stack([record.voice for _, record in voiced if record.voice is not None]))
    points = [
        Point(x, y, order.get(record.row.speaker, 0), _name(record), number in marked)
        for (x, y), (number, record) in zip(flat.tolist(), voiced, strict=True)
    ]
    return scatter(points, "Voices, by principal components", ("first component", "second component"))


def plane(voices: np.ndarray) -> np.ndarray:
    """Embeddings `(n, d)` along their two principal components, `(n, 2)`."""
    import numpy as np

    centred = voices.astype(np.float64) - voices.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return centred @ vectors[:, [-1, -2]]


def _name(record: Record) -> str:
    return f"{_file(record.row)}, speaker {record.row.speaker}: {record.row.text[:80]}"


def _file(row: Row) -> str:
    """The file's name; of a copy in the cache the name that the data give it."""
    return row.name if is_copy(row.audio) and not is_copy(row.name) else row.audio.name


def _findings(diagnosis: Diagnosis, path: Path) -> list[str]:
    records, room, out = diagnosis.survey.records, INSIDE_BYTES, []
    for title, findings in (("Errors", diagnosis.errors), ("Warnings", diagnosis.warnings)):
        out.append(f"<h2>{title}: {len(findings)}</h2>")
        for finding in findings:
            players = []
            for number in finding.clips[:20]:
                sound = _inside(records[number]) if room > 0 else ""
                room -= len(sound)
                players.append(_player(records[number], path, sound))
            more = len(finding.clips) - len(players)
            players += [f'<p class="quiet">and {more} more clips</p>'] if more else []
            kind = "finding error" if finding.is_error else "finding"
            says = f'<span class="kind">{escape(finding.kind)}</span>: {escape(finding.message)}'
            out.append(f'<div class="{kind}"><p>{says}</p>{"".join(players)}</div>')
    return out


def _player(record: Record, path: Path, sound: str) -> str:
    row, source = record.row, ""
    if sound:
        source = f'<audio controls preload="none" src="{sound}"></audio>'
    elif row.audio.is_file():
        source = _button(row, path)
    return f'<div class="clip">{source} <span class="quiet">{escape(_file(row))}</span> {escape(row.text)}</div>'


def _button(row: Row, path: Path) -> str:
    return f'<button data-src="{escape(link(row, path.parent))}">play</button>'


def link(row: Row, folder: Path) -> str:
    """The address of a clip's sound from a page in `folder`, its part of the file as a media fragment."""
    relative = os.path.relpath(os.path.abspath(row.audio), os.path.realpath(folder))
    part = "" if (row.start, row.end) == (None, None) else f"#t={row.start or 0}" + (f",{row.end}" if row.end else "")
    return quote(relative.replace(os.sep, "/"), errors="replace") + part


def _inside(record: Record) -> str:
    """The clip's sound as an address that holds it; empty where it cannot be read."""
    import soundfile

    from csm.audio import read_audio, resample
    from csm.errors import CsmError

    row = record.row
    if record.sound is None:
        return ""
    try:
        wave = resample(*read_audio(row.audio, row.start, row.end), PLAYED_RATE)
    except CsmError:  # gone since it was measured: the page is about what was there
        return ""
    encoded = io.BytesIO()
    soundfile.write(encoded, wave.clip(-1, 1), PLAYED_RATE, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _clips(diagnosis: Diagnosis, path: Path) -> list[str]:
    records = diagnosis.survey.records
    rows = "".join(_line(record, path) for record in records[:LISTED])
    left = f'<p class="quiet">and {len(records) - LISTED} more: see --json</p>' if len(records) > LISTED else ""
    head = "".join(f"<th>{name}</th>" for name in ("", "file", "speaker", "seconds", "LUFS", "dB", "text"))
    return [
        f"<h2>All clips</h2><details><summary>{len(records)} clips</summary>"
        f"<table><tr>{head}</tr>{rows}</table>{left}</details>"
    ]


def _line(record: Record, path: Path) -> str:
    row, sound = record.row, record.sound
    numbers = [sound.seconds, sound.loudness, sound.snr] if sound else [None] * 3
    cells = "".join(f'<td class="num">{"" if n is None else f"{n:.1f}"}</td>' for n in numbers)
    player = _button(row, path) if row.audio.is_file() else ""
    name = f"<td>{player}</td><td>{escape(_file(row))}</td><td>{row.speaker}</td>"
    return f"<tr>{name}{cells}<td>{escape(row.text)}</td></tr>"
