"""From tokenised conversations to training examples: a target turn, the context before it, and the split.

Every choice is a function of (seed, epoch, example id), drawn in numpy, so that backends, processes and resumed runs agree.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from csm.data.codes import CodedTurn
from csm.data.row import Row
from csm.errors import CsmError
from csm.frames import Frames, join, turn
from csm.tokenizer import TextTokenizer


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
    overlaps the turn is never its context.
    """

    id: str
    speaker: int
    own: Frames
    before: tuple[Frames, ...] = ()
    alone: bool = True
    text: str = ""
    weight: float = 1.0
    part: Part | None = None

    @cached_property
    def sound(self) -> bytes:
        """The codes of its own audio: two turns of one recording are told by it, whatever they are called."""
        return self.own.frames[self.own.audio_rows, :-1].tobytes()


@dataclass(frozen=True)
class Example:
    """Rows to learn from: context, then the target turn. Loss is taken on the target's audio rows, its end included."""

    id: str
    rows: Frames
    target_start: int
    weight: float = 1.0

    @cached_property
    def key(self) -> bytes:
        """What the rows are, for whoever caches something computed from them."""
        return hashlib.blake2b(self.rows.frames.tobytes() + self.target_start.to_bytes(4, "little")).digest()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def targets(self) -> np.ndarray:
        """Row numbers `(n,)` of the target's audio frames."""
        rows = np.flatnonzero(self.rows.audio_rows)
        return rows[rows >= self.target_start]


def rng_for(seed: int, epoch: int, name: str, purpose: str) -> np.random.Generator:
    """The generator of one choice: the same on every machine and backend."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}/{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def make_sources(
    conversations: Sequence[Sequence[CodedTurn]], tokenizer: TextTokenizer, codebooks: int
) -> list[list[Source]]:
    """Tokenise the texts; one list a conversation, so that the split keeps conversations whole."""
    out, names = [], Counter[str]()
    for conversation in conversations:
        rows = [turn(tokenizer.encode(t.row.text, t.row.speaker), t.codes, codebooks, t.ends) for t in conversation]
        parts, sources = [Part.of(t.row) for t in conversation], []
        for i, t in enumerate(conversation):
            names[t.row.name] += 1
            id = t.row.name if names[t.row.name] == 1 else f"{t.row.name} ({names[t.row.name]})"
            before = tuple(rows[j] for j in range(i) if not parts[i].overlaps(parts[j]))
            alone = len(conversation) == 1
            sources.append(Source(id, t.row.speaker, rows[i], before, alone, t.row.text, t.row.weight, parts[i]))
        out.append(sources)
    return out


def split(
    conversations: list[list[Source]], share: float, seed: int, of_note: Callable[[Source], bool] | None = None
) -> tuple[list[Source], list[Source]]:
    """Train and validation sources; whole conversations (or files) go to one side, at least one to each.

    Conversations that share a recording, or are parts of one sound file, stay together, so that nothing validated on was
    trained on. Those with a source `of_note` are divided by themselves, so that both sides have some where there are two.

    Raises:
        CsmError: a validation share is wanted and there is nothing to divide.
    """
    if share == 0:
        return [s for c in conversations for s in c], []
    groups = _sharing_sound(conversations)
    if len(groups) < 2:
        raise CsmError(
            "one clip or conversation cannot be split into training and validation.", "Give more, or --val-split 0."
        )
    noted = [g for g in groups if of_note and any(of_note(s) for number in g for s in conversations[number])]
    strata = [part for part in (noted, [g for g in groups if g not in noted]) if len(part) > 1] or [groups]
    held = {number for part in strata for group in _drawn(part, share, seed) for number in group}
    train = [s for i, c in enumerate(conversations) if i not in held for s in c]
    validation = [s for i, c in enumerate(conversations) if i in held for s in c]
    return train, validation


def _drawn(groups: list[list[int]], share: float, seed: int) -> list[list[int]]:
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    return [groups[i] for i in rng_for(seed, 0, "", "split").permutation(len(groups))[:count].tolist()]


def _sharing_sound(conversations: list[list[Source]]) -> list[list[int]]:
    """Numbers of conversations, together where they share a recording or a sound file, in the order of their first."""
    parent = list(range(len(conversations)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first: dict[bytes | Path, int] = {}
    for number, conversation in enumerate(conversations):
        for source in conversation:
            recordings: list[bytes | Path] = [source.sound, *([source.part.file] if source.part else [])]
            for recording in recordings:
                one, other = sorted((root(first.setdefault(recording, number)), root(number)))
                parent[other] = one
    groups: dict[int, list[int]] = {}
    for number in range(len(conversations)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


class ExampleSet:
    """The examples of one split, with the context that an epoch draws for them.

    Args:
        sources: the split's turns; context never leaves it.
        context_turns: how many turns precede a target at most.
        longest: rows that fit the model; context gives way, oldest first, before the target does.
        seed: of every draw.
        context_dropout: the share of examples that an epoch shows without their context.
        clip_context: whether clips that stand alone have other clips of their speaker as context.
        context_only: clips of the split that stand alone and are no targets; they may be context of others.

    Raises:
        CsmError: a target alone is longer than the model takes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        context_turns: int,
        longest: int,
        seed: int,
        context_dropout: float = 0.0,
        clip_context: bool = True,
        context_only: Sequence[Source] = (),
    ):
        self.sources, self.context_turns, self.longest, self.seed = list(sources), context_turns, longest, seed
        self.context_dropout, self.clip_context = context_dropout, clip_context
        for source in self.sources:
            if len(source.own) > longest:
                raise CsmError(
                    f"{source.id} needs {len(source.own)} rows and the model takes {longest}.", "Cut it into clips."
                )
        self._pools: dict[int, list[Source]] = {}  # of each speaker, the clips that stand alone
        for source in (*self.sources, *context_only):
            if source.alone:
                self._pools.setdefault(source.speaker, []).append(source)
        self._plain = [Example(s.id, s.own, 0, s.weight) for s in self.sources] if context_turns == 0 else None

    def __len__(self) -> int:
        return len(self.sources)

    def example(self, index: int, epoch: int) -> Example:
        """The example of a source in an epoch, with that epoch's context."""
        if self._plain is not None:
            return self._plain[index]
        source = self.sources[index]
        context = self._context(index, epoch)
        room = self.longest - len(source.own)
        kept: list[Frames] = []
        for rows in reversed(context):
            if len(rows) > room:
                break
            kept.insert(0, rows)
            room -= len(rows)
        start = sum(map(len, kept))
        return Example(source.id, join([*kept, source.own]), start, source.weight)

    def _context(self, index: int, epoch: int) -> list[Frames]:
        source = self.sources[index]
        if self.context_dropout and rng_for(self.seed, epoch, source.id, "dropout").random() < self.context_dropout:
            return []
        if not source.alone:
            return list(source.before[-self.context_turns :])
        if not self.clip_context:
            return []
        draw = rng_for(self.seed, epoch, source.id, "context")
        pool = self._pools[source.speaker]
        chosen = (pool[i] for i in draw.permutation(len(pool)))
        others = (s.own for s in chosen if s.sound != source.sound and not (s.part and s.part.overlaps(source.part)))
        return list(itertools.islice(others, self.context_turns))

    def depth_frames(self, example: Example, epoch: int, fraction: float) -> np.ndarray:
        """Which of the example's targets train the depth decoder, `(n,)` bool: at least one, the end always."""
        count = len(example.targets)
        chosen = np.zeros(count, bool)
        chosen[-1] = True
        others = max(1, int(np.ceil(fraction * count))) - 1
        draw = rng_for(self.seed, epoch, example.id, "depth")
        chosen[draw.permutation(count - 1)[:others]] = True
        return chosen
