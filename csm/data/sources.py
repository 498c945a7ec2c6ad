"""Sources: the turns that may be targets, as columns; each is laid out in rows when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, overload

import numpy as np

from csm.data.turns import CodedTurn, Turns
from csm.frames import Frames, turn
from csm.tokenizer import TextTokenizer

KEPT = 4096  # sources that stay laid out


@dataclass(frozen=True)
class Source:
    """A turn that may be a target: its own rows, and where its context comes from.

    `before` are the turns of its conversation that precede it, nearest last; a clip that stands alone has none and takes
    other recordings of its speaker in the same split.
    """

    id: str
    speaker: int
    own: Frames
    before: Sequence[Frames] = ()
    alone: bool = True
    text: str = ""

    @cached_property
    def sound(self) -> int:
        """The codes of its own audio, as `csm.data.turns.sound_of`: the same for two turns of one recording."""
        codes = self.own.frames[self.own.audio_rows, :-1][:-1]
        return int.from_bytes(hashlib.blake2b(codes.tobytes(), digest_size=8).digest(), "little")


@dataclass(frozen=True, eq=False)
class Sources(Sequence[Source]):
    """N turns that may be targets; as a sequence, each of them.

    Attributes:
        make: gives a turn by its number.
        text: gives its text.
        numbers: (N,) of the turns, in the whole data.
        speakers: (N,) who speaks.
        conversations: (N,) the number of the conversation.
        alone: (N,) whether it is a conversation of one turn.
        rows: (N,) rows of its own, text and audio.
        sounds: (N,) `Source.sound`.
        rows_before: gives, for numbers of turns and a number k, the rows of the k turns before each in its conversation.
    """

    make: Callable[[int], Source]
    text: Callable[[int], str]
    numbers: np.ndarray
    speakers: np.ndarray
    conversations: np.ndarray
    alone: np.ndarray
    rows: np.ndarray
    sounds: np.ndarray
    rows_before: Callable[[np.ndarray, int], np.ndarray]

    @classmethod
    def of(cls, sources: Sequence[Source] | Sequence[Sequence[Source]]) -> Sources:
        """The columns of sources that are in memory: of conversations, or of sources of one conversation each."""
        if isinstance(sources, Sources):
            return sources
        grouped = [[one] if isinstance(one, Source) else list(one) for one in sources]
        flat = [one for conversation in grouped for one in conversation]
        return cls(
            flat.__getitem__,
            lambda i: flat[i].text,
            np.arange(len(flat), dtype=np.int32),
            np.array([one.speaker for one in flat], np.int64),
            np.repeat(np.arange(len(grouped), dtype=np.int32), list(map(len, grouped))),
            np.array([one.alone for one in flat], bool),
            np.array([len(one.own) for one in flat], np.int32),
            np.array([one.sound for one in flat], np.uint64),
            lambda numbers, k: np.array([sum(map(len, flat[i].before[-k:])) for i in numbers], np.int64),
        )

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> list[Source]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.make(int(number)) for number in self.numbers[index]]
        return self.make(int(self.numbers[index]))

    @property
    def texts(self) -> Iterator[str]:
        return (self.text(int(number)) for number in self.numbers)

    def take(self, which: np.ndarray) -> Sources:
        """Those that `which` names, by place or by a mask."""
        names = ("numbers", "speakers", "conversations", "alone", "rows", "sounds")
        return replace(self, **{name: getattr(self, name)[which] for name in names})

    def alone_by_speaker(self) -> dict[int, np.ndarray]:
        """The places of each speaker's clips that stand alone."""
        places = np.flatnonzero(self.alone).astype(np.int32)
        order = places[np.argsort(self.speakers[places], kind="stable")]
        speakers, firsts = np.unique(self.speakers[order], return_index=True)
        return dict(zip(speakers.tolist(), np.split(order, firsts[1:]), strict=False))  # no clip: no speaker


class _Before(Sequence[Frames]):
    """The rows of turns, laid out when asked for."""

    def __init__(self, rows_of: Callable[[int], Frames], numbers: range):
        self.rows_of, self.numbers = rows_of, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.rows_of(number) for number in self.numbers[index]]
        return self.rows_of(self.numbers[index])


def make_sources(conversations: Sequence[Sequence[CodedTurn]], tokenizer: TextTokenizer, codebooks: int) -> Sources:
    """The turns of conversations as sources; texts are tokenised, and codes read, when a source is asked for.

    A name that comes again is told apart by its count: `a`, `a (2)`.
    """
    turns = Turns.of(conversations)
    starts, of, counts = turns.starts, turns.conversation_of, _ordinals(turns.names)
    alone = np.diff(starts) == 1
    rows = (text_rows(turns, tokenizer) + turns.frames + 1).astype(np.int32)

    @lru_cache(KEPT)
    def rows_of(number: int) -> Frames:
        text = tokenizer.encode(turns.text(number), int(turns.speakers[number]))
        return turn(text, turns.codes(number), codebooks)

    def make(number: int) -> Source:
        row, count, conversation = turns.row(number), int(counts[number]), of[number]
        id = row.name if count == 1 else f"{row.name} ({count})"
        before = _Before(rows_of, range(int(starts[conversation]), number))
        return Source(id, row.speaker, rows_of(number), before, bool(alone[conversation]), row.text)

    total = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])

    def rows_before(numbers: np.ndarray, k: int) -> np.ndarray:
        return total[numbers] - total[np.maximum(starts[of[numbers]], numbers - k)]

    numbers = np.arange(len(rows), dtype=np.int32)
    speakers = turns.speakers.astype(np.min_scalar_type(turns.speakers.max(initial=0)))
    return Sources(make, turns.text, numbers, speakers, of, alone[of], rows, turns.sounds, rows_before)


def text_rows(turns: Turns, tokenizer: TextTokenizer) -> np.ndarray:
    """How many ids the text of each turn has, `(N,)`."""
    if turns.text_rows is not None and turns.text_rows_of == tokenizer.fingerprint:
        return turns.text_rows
    return tokenizer.lengths(turns.texts, turns.speakers)


def _ordinals(names: np.ndarray) -> np.ndarray:
    """Of each value, how many times it has come so far, from 1."""
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(names) else np.zeros(0, bool)
    firsts = np.flatnonzero(new)
    counts = np.empty(len(names), np.int32)
    counts[order] = np.arange(len(names)) - np.repeat(firsts, np.diff(np.append(firsts, len(names)))) + 1
    return counts
