"""Training examples: a target turn and the context before it.

Every choice is a function of (seed, epoch, example id), drawn in numpy, so that backends, processes and resumed runs agree.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from csm.data.draws import rng_for
from csm.data.sources import Source, Sources
from csm.errors import CsmError
from csm.frames import Frames, join


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
        self.sources, self.context_turns, self.longest, self.seed = Sources.of(sources), context_turns, longest, seed
        self.context_dropout = context_dropout
        self.heard = self.sources.with_more(Sources.of(context_only))  # what may be context: the targets come first
        too_long = np.flatnonzero(self.sources.rows > longest)
        if len(too_long):
            source = self.sources[int(too_long[0])]
            raise CsmError(
                f"{source.id} needs {len(source.own)} rows and the model takes {longest}.", "Cut it into clips."
            )
        self._pools = self.heard.alone_by_speaker() if context_turns and clip_context else {}

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def most_rows(self) -> np.ndarray:
        """(N,) rows that each example has at most, in whichever epoch: its own and the longest context it may draw."""
        own, turns = self.sources.rows, self.context_turns
        if turns == 0:
            return own
        context = self.sources.rows_before(self.sources.numbers, turns)
        for pool in self._pools.values():
            longest = np.sort(self.heard.rows[pool])[::-1][:turns]
            context[pool[pool < len(own)]] = longest.sum()
        return np.minimum(own + context, self.longest).astype(np.int32)

    def example(self, index: int, epoch: int) -> Example:
        """The example of a source in an epoch, with that epoch's context."""
        source = self.sources[index]
        if self.context_turns == 0:
            return Example(source.id, source.own, 0, source.weight)
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
        if source.speaker not in self._pools:
            return []
        draw = rng_for(self.seed, epoch, source.id, "context")
        pool = self._pools[source.speaker]
        chosen = (int(pool[i]) for i in draw.permutation(len(pool)))
        others = (self.heard[i].own for i in chosen if not self._shares_sound(source, index, i))
        return list(itertools.islice(others, self.context_turns))

    def _shares_sound(self, source: Source, index: int, other: int) -> bool:
        """Whether what may be context is the target's own recording, or overlaps it in one sound file."""
        heard = self.heard
        if heard.sounds[other] == heard.sounds[index]:
            return True
        same_file = heard.files[other] == heard.files[index]
        return bool(same_file) and source.part is not None and source.part.overlaps(heard[other].part)

    def depth_frames(self, example: Example, epoch: int, fraction: float) -> np.ndarray:
        """Which of the example's targets train the depth decoder, `(n,)` bool: the end, and at least one more of several."""
        count = len(example.targets)
        chosen = np.zeros(count, bool)
        chosen[-1] = True
        others = max(1, int(np.ceil(fraction * count)) - 1)
        draw = rng_for(self.seed, epoch, example.id, "depth")
        chosen[draw.permutation(count - 1)[:others]] = True
        return chosen
