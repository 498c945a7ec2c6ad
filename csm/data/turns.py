"""Conversations as columns: what a run asks of every turn lies in arrays, rows and codes are made when they are asked for."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from csm.data.row import Row


@dataclass(frozen=True)
class CodedTurn:
    """A row and its codes `(K, T)`, integers, without an end-of-speech frame; `ends` is false where its sound was cut."""

    row: Row
    codes: np.ndarray
    ends: bool = True


@dataclass(frozen=True, eq=False)
class Turns(Sequence[list[CodedTurn]]):
    """C conversations of N turns in all; as a sequence, lists of coded turns.

    Attributes:
        starts: (C + 1,) the number of each conversation's first turn, and N.
        speakers: (N,) who speaks.
        frames: (N,) frames of codes.
        sounds: (N,) `sound_of` their codes.
        names: (N,) `name_of` their rows.
        identities: (N, 16) bytes, `identity_of` their rows and codes.
        files: (N,) `file_of` the sound file; turns that share one may overlap.
        row, codes: give a turn's row, and its codes `(K, T)`, by its number.
        text: gives a turn's text by its number.
        text_rows: (N,) ids of each turn's text, where they are known for the tokenizer `text_rows_of`.
        places: (N,) of the codes, where they lie in `csm.data.shards.CodeShards`.
        weights: (N,) of the turns' losses; None where all are 1.
        ends: (N,) whether a turn's sound is whole; None where all are.
    """

    starts: np.ndarray
    speakers: np.ndarray
    frames: np.ndarray
    sounds: np.ndarray
    names: np.ndarray
    identities: np.ndarray
    files: np.ndarray
    row: Callable[[int], Row]
    codes: Callable[[int], np.ndarray]
    text: Callable[[int], str]
    text_rows: np.ndarray | None = None
    text_rows_of: str = ""
    places: np.ndarray | None = None
    weights: np.ndarray | None = None
    ends: np.ndarray | None = None

    @classmethod
    def of(cls, conversations: Sequence[Sequence[CodedTurn]]) -> Turns:
        """The columns of turns that are in memory."""
        if isinstance(conversations, Turns):
            return conversations
        turns = [turn for conversation in conversations for turn in conversation]
        whole = np.array([turn.ends for turn in turns], bool)
        made = cls.of_rows(
            [len(conversation) for conversation in conversations],
            [turn.row for turn in turns],
            np.array([turn.codes.shape for turn in turns], np.int64).reshape(-1, 2),
            np.array([sound_of(turn.codes) for turn in turns], np.uint64),
            lambda i: turns[i].codes,
        )
        return made if whole.all() else replace(made, ends=whole)

    @classmethod
    def of_rows(
        cls,
        sizes: Sequence[int] | np.ndarray,
        rows: Sequence[Row],
        shapes: np.ndarray,
        sounds: np.ndarray,
        codes: Callable[[int], np.ndarray],
        places: np.ndarray | None = None,
    ) -> Turns:
        """Conversations of `sizes` turns whose rows are in memory and whose codes, of `shapes` (N, 2), are fetched."""
        told = zip(rows, shapes.tolist(), sounds.tolist(), strict=True)
        return cls(
            starts_of(sizes),
            np.array([row.speaker for row in rows], np.int64),
            shapes[:, 1].astype(np.int32),
            sounds,
            np.array([name_of(row.name) for row in rows], np.uint64),
            np.frombuffer(b"".join(identity_of(*one) for one in told), np.uint8).reshape(-1, 16),
            np.array([file_of(row.audio) for row in rows], np.uint32),
            rows.__getitem__,
            codes,
            lambda i: rows[i].text,
            places=places,
            weights=weights_of([row.weight for row in rows]),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> list[CodedTurn]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[CodedTurn]]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return [self.turn(i) for i in range(int(self.starts[index]), int(self.starts[index + 1]))]

    def turn(self, number: int) -> CodedTurn:
        return CodedTurn(self.row(number), self.codes(number), self.ends is None or bool(self.ends[number]))

    @property
    def texts(self) -> Iterator[str]:
        return map(self.text, range(len(self.frames)))

    @cached_property
    def conversation_of(self) -> np.ndarray:
        """(N,) the conversation of each turn."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.starts))

    def take(self, keep: np.ndarray) -> Turns:
        """The turns where `keep` `(N,)` is true, and the conversations that are left."""
        if keep.all():
            return self
        at, sizes = np.flatnonzero(keep), np.bincount(self.conversation_of[keep], minlength=len(self))

        def some(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[at]

        return Turns(
            starts_of(sizes[sizes > 0]),
            self.speakers[at],
            self.frames[at],
            self.sounds[at],
            self.names[at],
            self.identities[at],
            self.files[at],
            lambda i: self.row(int(at[i])),
            lambda i: self.codes(int(at[i])),
            lambda i: self.text(int(at[i])),
            some(self.text_rows),
            self.text_rows_of,
            some(self.places),
            some(self.weights),
            some(self.ends),
        )

    def cut_at(self, frames: int) -> Turns:
        """The turns with their sound cut after so many frames; those that are longer do not end."""
        short = self.frames <= frames
        if short.all():
            return self
        ends = short if self.ends is None else short & self.ends
        return replace(
            self, frames=np.minimum(self.frames, frames), codes=lambda i: self.codes(i)[:, :frames], ends=ends
        )


def starts_of(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
    """(C + 1,) where conversations of `sizes` turns begin, and the number of turns."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def weights_of(each: Sequence[float] | np.ndarray) -> np.ndarray | None:
    """Weights as a column, `(N,)` float32; None where all are 1."""
    weights = np.asarray(each, np.float32)
    return None if (weights == 1).all() else weights


def sound_of(codes: np.ndarray) -> int:
    """64 bits of codes `(K, T)`: two turns of one recording are told by it, whatever they are called."""
    rows = np.ascontiguousarray(codes.T, dtype="<i4")
    return int.from_bytes(hashlib.blake2b(rows.tobytes(), digest_size=8).digest(), "little")


def name_of(name: str) -> int:
    """64 bits of a row's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def file_of(audio: object) -> int:
    """32 bits of a sound file's path: rows of one file have the same, and of two rows with the same, files are compared."""
    return zlib.crc32(str(audio).encode("utf-8", "surrogateescape"))


def identity_of(row: Row, shape: Sequence[int], sound: int) -> bytes:
    """16 bytes of what is learned from a turn: name, text, speaker, weight and codes, wherever its files lie."""
    head = json.dumps([row.name, row.text, row.speaker, row.weight, list(shape), sound])
    return hashlib.blake2b(head.encode(), digest_size=16).digest()
