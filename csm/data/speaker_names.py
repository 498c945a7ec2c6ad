"""Speakers whom the data call by name: each gets a number, for a number is what stands before a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from csm.data.faults import Fault
from csm.data.row import Row, natural_key
from csm.errors import CsmError


def number_speakers(
    conversations: list[list[Row]], faults: list[Fault], speaker: int | None
) -> tuple[list[list[Row]], list[Fault]]:
    """Rows with numbers for names: in natural order of the names, from 0 on, past numbers that others have already.

    A single name gets the number `speaker`, where one is given.
    """
    rows = [row for conversation in conversations for row in conversation]
    names = sorted({row.speaker_name for row in rows if row.speaker_name is not None}, key=natural_key)
    if not names:
        return conversations, faults
    taken = {row.speaker for row in rows if row.speaker_name is None}
    free = (number for number in range(len(names) + len(taken)) if number not in taken)
    numbers = {names[0]: speaker} if speaker is not None and len(names) == 1 else dict(zip(names, free, strict=False))

    def numbered(row: Row) -> Row:
        return row if row.speaker_name is None else replace(row, speaker=numbers[row.speaker_name])

    return [[numbered(row) for row in conversation] for conversation in conversations], faults


def named_speakers(conversations: Iterable[Sequence[Row]]) -> dict[str, int]:
    """The numbers of the speakers that the data call by name."""
    rows = (row for conversation in conversations for row in conversation)
    found = {row.speaker_name: row.speaker for row in rows if row.speaker_name is not None}
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def give_to(speaker: int, conversations: list[list[Row]]) -> list[list[Row]]:
    """The rows of data that are said to be one speaker's.

    Raises:
        CsmError: they name other speakers, or several.
    """
    rows = [row for conversation in conversations for row in conversation]
    own = sorted({row.speaker_name or str(row.speaker) for row in rows if row.speaker_name or row.speaker != speaker})
    if len(own) > 1 or any(row.speaker_name is None and row.speaker != speaker for row in rows):
        raise CsmError(f"its data name the speakers {', '.join(own[:8])} themselves.", "Hand them in with --data-path.")
    return [
        [replace(row, speaker=speaker, speaker_name=None) for row in conversation] for conversation in conversations
    ]
