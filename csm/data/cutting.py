"""Long clips become pieces, cut only where a word ends and its neighbour has not begun; or stay whole.

Where the words lie is read from alignments or found by an aligner; text and sound of a piece are always the same words. The
documented pieces of 10 s with 2 s of overlap would repeat what the turn before has said, so neighbours share nothing here:
the pieces of a clip are turns of its conversation, in order, and a cut is looked for where speakers pause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from csm import audio
from csm.data.alignment import Word, align_text, find_alignment, read_alignment
from csm.data.clips import LONGEST_SECONDS
from csm.data.faults import Fault, of_row
from csm.data.pieces import divide, edges
from csm.data.row import Row
from csm.errors import CsmError

Aligner = Callable[[np.ndarray, int, str, str], "list[tuple[str, float, float]] | str"]
"""(wave `(samples,)`, rate in Hz, text, language) -> (word, start, end) in seconds of the wave, or why there are none."""

PIECE_SECONDS = 10.0
RECORDINGS = 16  # whose length and words stay known: a long one has many rows


@dataclass(frozen=True)
class Cutting:
    """How long clips are cut.

    Args:
        piece_seconds: clips and pieces are at most this long, where the words allow.
        longest_seconds: what is longer and cannot be cut is left out.
        alignments: a folder with an alignment for each sound file, by relative name.
        align: finds the words of a long clip that has no alignment.
    """

    piece_seconds: float = PIECE_SECONDS
    longest_seconds: float = LONGEST_SECONDS
    alignments: Path | None = None
    align: Aligner | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.piece_seconds <= LONGEST_SECONDS:
            raise CsmError(f"pieces of {self.piece_seconds:g} s cannot be made.", f"Give 1 to {LONGEST_SECONDS:g} s.")


@dataclass(frozen=True)
class Cut:
    """What cutting made.

    Args:
        conversations: the clips and the pieces, in order.
        faults: why clips are left out.
        whole: why clips that are longer than a piece were kept as they are.
        clips, pieces: how many clips became how many pieces.
    """

    conversations: list[list[Row]]
    faults: list[Fault]
    whole: list[Fault]
    clips: int = 0
    pieces: int = 0

    def describe(self) -> str:
        """What was done, in one line; empty where no clip was longer than a piece."""
        parts = [f"{self.clips} long clips cut into {self.pieces} pieces, where words end"] if self.clips else []
        if self.whole:
            parts.append(f"{len(self.whole)} longer than a piece kept whole, as nothing says where their words end")
        return "; ".join(parts)


def cut(
    conversations: Sequence[Sequence[Row]], cutting: Cutting, progress: Callable[[int, int], None] | None = None
) -> Cut:
    """Cut every clip that is longer than a piece; alignments that are there are held against all the texts.

    A clip whose words are not known stays whole, or is left out with its name where it is longer than the model takes. A
    clip whose alignment contradicts its text, or its sound, is left out.

    Raises:
        CsmError: the folder of alignments is missing, or holds none of these clips'.
    """
    if cutting.alignments:
        _require_alignments(cutting.alignments, conversations)
    kept, faults, whole, made = list[list[Row]](), list[Fault](), list[Fault](), list[int]()
    seconds_of, read = lru_cache(RECORDINGS)(audio.seconds_of), lru_cache(RECORDINGS)(read_alignment)
    done, total = 0, sum(map(len, conversations))
    for conversation in conversations:
        turns: list[Row] = []
        for row in conversation:
            path = find_alignment(row, cutting.alignments) if cutting.alignments else None
            found = _pieces(row, cutting, seconds_of(row.audio), (path, read(path)) if path else None)
            if isinstance(found, Fault):
                faults.append(of_row(found, row))
            elif isinstance(found, _Whole):
                whole.append(of_row(Fault(row.audio, f"is kept whole: {found.reason}"), row))
                turns.append(row)
            else:
                turns += found
                made += [len(found)] if len(found) > 1 else []
            done += 1
            if progress:
                progress(done, total)
        if turns:
            kept.append(turns)
    return Cut(kept, faults, whole, len(made), sum(made))


@dataclass(frozen=True)
class _Whole:
    reason: str


def _require_alignments(folder: Path, conversations: Sequence[Sequence[Row]]) -> None:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "is not there"
        raise CsmError(f"{folder} {problem}.", "It should be the folder with the alignments (.json, .TextGrid).")
    rows = [row for conversation in conversations for row in conversation]
    if rows and not any(find_alignment(row, folder) for row in rows):
        hint = f"For {rows[0].audio} it would be {folder / rows[0].name}.json or .TextGrid."
        raise CsmError(f"{folder} holds no alignment of any clip.", hint)


def _pieces(
    row: Row, cutting: Cutting, seconds: float | None, alignment: tuple[Path, list[Word] | Fault] | None
) -> list[Row] | Fault | _Whole:
    if seconds is None:
        return [row]  # it is named where its sound is read
    length = min(row.end or seconds, seconds) - (row.start or 0.0)
    words = _aligned(row, *alignment, seconds) if alignment else None
    if isinstance(words, Fault):
        return words
    if length <= cutting.piece_seconds:
        return [row]
    reason = "it has no alignment" if cutting.alignments else "no alignment was given"
    if words is None and cutting.align:
        found = _find_words(row, cutting.align, seconds)
        words, reason = (None, found) if isinstance(found, str) else (found, "")
    if words is None:
        if length <= cutting.longest_seconds:
            return _Whole(reason)
        limit = f"lasts {length:.1f} s, and {cutting.longest_seconds:g} s are the limit"
        return Fault(row.audio, f"{limit}; nothing says where its words end ({reason}): cut it into clips")
    return _rows(row, words, cutting, (row.start or 0.0, min(row.end or seconds, seconds)))


def _aligned(row: Row, path: Path, words: list[Word] | Fault, seconds: float) -> list[Word] | Fault:
    return words if isinstance(words, Fault) else align_text(row, words, path, seconds)


def _find_words(row: Row, align: Aligner, seconds: float) -> list[Word] | str:
    try:
        wave, rate = audio.read_audio(row.audio, row.start, row.end)
    except CsmError as error:
        return error.message.removeprefix(f"{row.audio} ").rstrip(".")
    found = align(wave, rate, row.text, row.language)
    if isinstance(found, str):
        return found
    begin = row.start or 0.0
    words = [Word(text, begin + start, begin + end) for text, start, end in found]
    matched = align_text(row, words, row.audio, seconds)
    return f"the aligner's words are not the text's: {matched.message}" if isinstance(matched, Fault) else matched


def _rows(row: Row, words: Sequence[Word], cutting: Cutting, part: tuple[float, float]) -> list[Row] | Fault:
    begins, ends = edges(words, part)
    spans = divide(words, begins, ends, cutting.piece_seconds)
    pieces = [
        replace(
            row,
            name=f"{row.name} {begins[i]:.2f}-{ends[j - 1]:.2f} s" if len(spans) > 1 else row.name,
            text=" ".join(word.text for word in words[i:j]),
            start=round(begins[i], 4),
            end=round(ends[j - 1], 4),
        )
        for i, j in spans
    ]
    long = next((piece for piece in pieces if piece.end - piece.start > cutting.longest_seconds), None)  # type: ignore[operator]
    if long:
        return Fault(row.audio, f'has "{long.text}" last longer than {cutting.longest_seconds:g} s in its alignment')
    return pieces
