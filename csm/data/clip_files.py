"""Parts of long recordings as files of their own."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

from csm.audio import read_audio, write_wave
from csm.data.faults import Fault
from csm.data.row import Row
from csm.errors import CsmError


def cut_parts(conversations: list[list[Row]], folder: Path) -> tuple[list[list[Row]], list[Fault]]:
    """Write every row that is a part of its file as a wav into a folder, at the file's own rate, mono.

    Returns:
        the conversations with whole files only, and the faults of the parts that cannot be read.

    Raises:
        CsmError: the folder cannot be written.
    """
    kept, faults = [], []
    for conversation in conversations:
        turns = [_cut(row, folder) for row in conversation]
        faults += [turn for turn in turns if isinstance(turn, Fault)]
        if rows := [turn for turn in turns if isinstance(turn, Row)]:
            kept.append(rows)
    return kept, faults


def _cut(row: Row, folder: Path) -> Row | Fault:
    if row.start is None and row.end is None:
        return row
    try:
        wave, rate = read_audio(row.audio, row.start, row.end)
    except CsmError as error:
        return Fault(row.source, f"{error.message.rstrip('.')}; the row is left out", row.line)
    times = "-".join(f"{time:09.3f}" if time is not None else "end" for time in (row.start or 0.0, row.end))
    path = folder / f"{_name(row.audio)}_{times}.wav"
    write_wave(path, wave, rate)
    return replace(row, audio=path, start=None, end=None)


def _name(audio: Path) -> str:
    """A name that says which recording it is, and is no other's."""
    mark = hashlib.sha256(str(audio.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    plain = re.sub(r"[^\w.-]+", "_", audio.stem)[:60]
    return f"{plain}-{mark}"
