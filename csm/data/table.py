"""Rows of a table, one clip each: JSON, JSON lines, CSV, Parquet, SQLite. VoxCPM's manifests are among them.

Columns: the sound (`path`, `audio`, ...), `text`, and where there are any `speaker`, `start`, `end`, `language`; see
`csm.data.fields`. A row that cannot be used is a fault, and the others are read. Rows that are parts of one recording
are turns of one conversation, by their start. `ref_audio` with `ref_text` (VoxCPM) is a turn of the same speaker before
the row's own, and is context only; without words it cannot be one, and is passed over.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from csm.data import fields
from csm.data.faults import Fault
from csm.data.fields import Defaults, WrongField
from csm.data.row import Row, clean_text, text_problem
from csm.data.sounds import Sounds, sound_name
from csm.data.table_files import Record, records_of
from csm.errors import CsmError

AHEAD = 64
LACKS = {
    "has no sound": ("names no sounds", f"A column of them is called {', '.join(fields.AUDIO[:5])} or the like."),
    "has no text": ("holds no texts", f"A column of them is called {', '.join(fields.TEXT)}."),
    "names no speaker": ("does not say who speaks", "Say it with --speaker-id."),
}


def read_table(path: Path, defaults: Defaults, sounds: Sounds | None = None) -> tuple[list[list[Row]], list[Fault]]:
    """Read a file of rows; relative paths start at its folder.

    Returns:
        conversations, and faults; the line of a row is its number where the file has no lines.

    Raises:
        CsmError: the file cannot be read as what its suffix says, or all its rows lack sound, text or speaker.
    """
    return read_records(records_of(path), path, defaults, sounds or Sounds(path.parent))


def read_records(
    records: Iterable[Record | Fault], path: Path, defaults: Defaults, sounds: Sounds
) -> tuple[list[list[Row]], list[Fault]]:
    """Conversations of records, whatever they were read from. Raises as `read_table`."""
    turns: list[list[Row]] = []
    faults: list[Fault] = []
    problems: Counter[str] = Counter()
    stream = iter(records)
    while batch := list(itertools.islice(stream, AHEAD)):
        sounds.fetch_ahead(fields.first(one.values, fields.AUDIO) for one in batch if isinstance(one, Record))
        for record in batch:
            if isinstance(record, Fault):
                faults.append(record)
                continue
            try:
                turns.append(_turns(record, defaults, sounds))
            except WrongField as error:
                problems[str(error)] += 1
                faults.append(Fault(record.file, f"{error}; {record.called} is left out", record.line))
    for problem, (sentence, hint) in LACKS.items():
        if not turns and problems[problem] == len(faults) > 0:
            raise CsmError(f"{path} {sentence}.", hint)
    if not turns and not faults:
        raise CsmError(f"{path} holds no rows.")
    return join_parts(turns), faults


def _turns(record: Record, defaults: Defaults, sounds: Sounds) -> list[Row]:
    """The row's turn, after the turn of its reference where that has words."""
    values = record.values
    row = make_row(record, fields.first(values, fields.AUDIO), fields.first(values, fields.TEXT), defaults, sounds)
    reference, words = values.get("ref_audio"), values.get("ref_text")
    if fields.is_missing(reference) or fields.is_missing(words):
        return [row]
    whole = Record({**values, "start": None, "end": None}, record.file, record.line)
    return [make_row(whole, reference, words, defaults, sounds, weight=0.0), row]


def make_row(record: Record, written: Any, words: Any, defaults: Defaults, sounds: Sounds, weight: float = 1.0) -> Row:
    """The row of a record whose sound and text are known.

    Raises:
        WrongField: something in it is missing or cannot be meant.
    """
    if fields.is_missing(written):
        raise WrongField("has no sound")
    if words is None:
        raise WrongField("has no text")
    if not isinstance(words, str):
        raise WrongField("has a text that is not a string")
    text = clean_text(words)
    problem = text_problem(text)
    if problem:
        raise WrongField(problem)
    who = fields.speaker(record.values)
    who = defaults.speaker if who is None else who
    if who is None:
        raise WrongField("names no speaker")
    start, end = fields.part(record.values)
    language = fields.language(record.values, defaults.language)
    audio = sounds.find(written)
    name = sound_name(written, audio)
    number, called = (who, None) if isinstance(who, int) else (0, who)
    return Row(name, audio, text, number, record.file, record.line, start, end, language, weight, called)


def join_parts(conversations: list[list[Row]]) -> list[list[Row]]:
    """Lone rows that are parts of one recording become turns of one conversation, which stands where its first did."""
    joined: list[list[Row]] = []
    of_file: dict[Path, list[Row]] = {}
    for conversation in conversations:
        row = conversation[0]
        if len(conversation) > 1 or row.start is row.end is None:
            joined.append(conversation)
        elif row.audio in of_file:
            of_file[row.audio].append(row)
        else:
            joined.append(of_file.setdefault(row.audio, [row]))
    for parts in of_file.values():
        parts.sort(key=lambda row: (row.start or 0.0, row.line or 0))
    return joined
