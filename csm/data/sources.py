"""Sources: the turns that may be targets, as columns; each is laid out in rows when it is asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from csm.data.row import Row
from csm.data.turns import CodedTurn, Turns, file_of, weights_of
from csm.frames import Frames, turn
from csm.tokenizer import TextTokenizer

KEPT = 4096  # sources that stay laid out


@dataclass(frozen=True)
class Part:
    """A sound file from `start` to `end` seconds."""

    file: Path
    start: float
    end: float

    @classmethod
    def of(cls, row: Row) -> Part:
        return cls(row.audio, row.start or 0.0, math.inf if row.end is None else row.end)

    def overlaps(self, other: Part | None) -> bool:
        return other is not None and self.file == other.file and self.start < other.end and other.start < self.end


@dataclass(frozen=True)
class Source:
    """A turn that may be a target: its own rows, and where its context comes from.

    `before` are the turns of its conversation that precede it, nearest last; a clip that stands alone has none and takes
    other recordings of its speaker in the same split. `part` is the sound file, and where in it the turn lies: what
    overlaps the turn is never its context. `ends` is false where its sound was cut.
    """

    id: str
    speaker: int
    own: Frames
    before: Sequence[Frames] = ()
    alone: bool = True
    text: str = ""
    weight: float = 1.0
    part: Part | None = None
    ends: bool = True

    @cached_property
    def sound(self) -> int:
        """The codes of its own audio, as `csm.data.turns.sound_of`: the same for two turns of one recording."""
        codes = self.own.frames[self.own.audio_rows, :-1]
        codes = codes[:-1] if self.ends else codes
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
        files: (N,) `csm.data.turns.file_of` the sound file.
        rows_before: gives, for numbers of turns and a number k, the rows of the k turns before each in its conversation.
        weights: (N,) of the losses; None where all are 1.
    """

    make: Callable[[int], Source]
    text: Callable[[int], str]
    numbers: np.ndarray
    speakers: np.ndarray
    conversations: np.ndarray
    alone: np.ndarray
    rows: np.ndarray
    sounds: np.ndarray
    files: np.ndarray
    rows_before: Callable[[np.ndarray, int], np.ndarray]
    weights: np.ndarray | None = None

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
            np.array([file_of(one.part.file if one.part else i) for i, one in enumerate(flat)], np.uint32),
            lambda numbers, k: np.array([sum(map(len, flat[i].before[-k:])) for i in numbers], np.int64),
            weights_of([one.weight for one in flat]),
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
        names = ("numbers", "speakers", "conversations", "alone", "rows", "sounds", "files")
        weights = None if self.weights is None else self.weights[which]
        return replace(self, **{name: getattr(self, name)[which] for name in names}, weights=weights)

    def carrying_loss(self, learned: Collection[int]) -> np.ndarray:
        """(N,) whether each is learned, `learned` being the speakers whose turns are."""
        mine = np.isin(self.speakers, list(learned))
        return mine if self.weights is None else mine & (self.weights > 0)

    def with_more(self, others: Sources) -> Sources:
        """These, and others of the same data after them."""
        if len(others) == 0:
            return self
        if others.make is not self.make:
            return Sources.of([*self, *others])

        def both(name: str) -> np.ndarray:
            return np.concatenate([getattr(self, name), getattr(others, name)])

        weights = [np.ones(len(one), np.float32) if one.weights is None else one.weights for one in (self, others)]
        return Sources(
            self.make, self.text, both("numbers"), both("speakers"), both("conversations"), both("alone"), both("rows"),
            both("sounds"), both("files"), self.rows_before, weights_of(np.concatenate(weights)),
        )  # fmt: skip

    def alone_by_speaker(self) -> dict[int, np.ndarray]:
        """The places of each speaker's clips that stand alone."""
        places = np.flatnonzero(self.alone).astype(np.int32)
        order = places[np.argsort(self.speakers[places], kind="stable")]
        speakers, firsts = np.unique(self.speakers[order], return_index=True)
        return dict(zip(speakers.tolist(), np.split(order, firsts[1:]), strict=False))  # no clip: no speaker


class _Before(Sequence[Frames]):
    """The rows of the turns that may precede one; of a long recording's only those are looked at that are asked for."""

    def __init__(self, rows_of: Callable[[int], Frames], nearest: Callable[[int | None], list[int]]):
        self.rows_of, self.nearest = rows_of, nearest

    def __len__(self) -> int:
        return len(self.nearest(None))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            last = index.start if index.stop is index.step is None and (index.start or 0) < 0 else None
            return [self.rows_of(number) for number in self.nearest(last and -last)[index]]
        return self.rows_of(self.nearest(None)[index])


def make_sources(conversations: Sequence[Sequence[CodedTurn]], tokenizer: TextTokenizer, codebooks: int) -> Sources:
    """The turns of conversations as sources; texts are tokenised, and codes read, when a source is asked for.

    A name that comes again is told apart by its count: `a`, `a (2)`.
    """
    turns = Turns.of(conversations)
    starts, of, counts = turns.starts, turns.conversation_of, _ordinals(turns.names)
    alone = np.diff(starts) == 1
    ended = 1 if turns.ends is None else turns.ends
    rows = (text_rows(turns, tokenizer) + turns.frames + ended).astype(np.int32)

    @lru_cache(KEPT)
    def rows_of(number: int) -> Frames:
        text = tokenizer.encode(turns.text(number), int(turns.speakers[number]))
        return turn(text, turns.codes(number), codebooks, ends(number))

    def ends(number: int) -> bool:
        return turns.ends is None or bool(turns.ends[number])

    def make(number: int) -> Source:
        row, count, conversation = turns.row(number), int(counts[number]), of[number]
        id = row.name if count == 1 else f"{row.name} ({count})"
        lone, before = bool(alone[conversation]), _Before(rows_of, partial(nearest, number))
        return Source(
            id, row.speaker, rows_of(number), before, lone, row.text, row.weight, part_of(number), ends(number)
        )

    @lru_cache(KEPT)
    def part_of(number: int) -> Part:
        return Part.of(turns.row(number))

    def nearest(number: int, count: int | None) -> list[int]:
        """The last `count` turns before one whose sounds do not overlap it, the nearest last; all for None."""
        earlier = range(number - 1, int(starts[of[number]]) - 1, -1)
        file, part = turns.files[number], part_of(number)
        apart = (i for i in earlier if turns.files[i] != file or not part.overlaps(part_of(i)))
        return list(islice(apart, count))[::-1]

    total = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])

    def rows_before(numbers: np.ndarray, k: int) -> np.ndarray:
        firsts = starts[of[numbers]]
        found, shares = total[numbers] - total[np.maximum(firsts, numbers - k)], np.zeros(len(numbers), bool)
        for back in range(1, k + 1):
            earlier = np.maximum(numbers - back, firsts)
            shares |= (earlier < numbers) & (turns.files[earlier] == turns.files[numbers])
        for place in np.flatnonzero(shares).tolist():  # what overlaps is passed over, and those before it are taken
            taken = np.array(nearest(int(numbers[place]), k), np.int64)
            found[place] = (total[taken + 1] - total[taken]).sum()
        return found

    numbers = np.arange(len(rows), dtype=np.int32)
    speakers = turns.speakers.astype(np.min_scalar_type(turns.speakers.max(initial=0)))
    return Sources(
        make, turns.text, numbers, speakers, of, alone[of], rows, turns.sounds, turns.files, rows_before, turns.weights
    )


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
