"""Batches: examples of like length, padded on the right, with every index that a backend needs made in numpy.

Padding comes after all that counts and attention is causal, so no mask is needed and padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from csm.data.examples import Example, ExampleSet, rng_for
from csm.data.terms import repeated

BUCKET_BATCHES = 16  # batches' worth of examples that are sorted by length together


@dataclass(frozen=True)
class Batch:
    """B examples of up to T rows as index arrays. Flat rows count `b * T + t`.

    Attributes:
        shape: (B, T).
        text_at, text_ids: (Nt,) flat rows that are text, and their ids.
        audio_at, codes: (Na,) flat rows that are audio, and their codes (Na, K).
        targets: (N,) which of the audio rows carry loss.
        depth: (S,) which of the targets train the depth decoder too.
        example_of: (N,) the example of each target.
        keys: content keys of the B examples.
    """

    shape: tuple[int, int]
    text_at: np.ndarray
    text_ids: np.ndarray
    audio_at: np.ndarray
    codes: np.ndarray
    targets: np.ndarray
    depth: np.ndarray
    example_of: np.ndarray
    keys: tuple[bytes, ...]

    @property
    def acoustic_tokens(self) -> int:
        return len(self.depth) * (self.codes.shape[1] - 1)


def collate(examples: Sequence[Example], depth: Sequence[np.ndarray]) -> Batch:
    """Lay the examples into one padded batch; `depth[i]` says which targets of example i train the depth decoder."""
    length = max(map(len, examples))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("ta", "ti", "aa", "c", "t", "d", "e")}
    audio_before = targets_before = 0
    for b, (example, chosen) in enumerate(zip(examples, depth, strict=True)):
        rows, is_audio = example.rows, example.rows.audio_rows
        audio, text = np.flatnonzero(is_audio), np.flatnonzero(~is_audio)
        parts["ta"].append(text + b * length)
        parts["ti"].append(rows.frames[text, -1])
        parts["aa"].append(audio + b * length)
        parts["c"].append(rows.frames[audio, :-1])
        target = np.flatnonzero(audio >= example.target_start)
        parts["t"].append(target + audio_before)
        parts["d"].append(np.flatnonzero(chosen) + targets_before)
        parts["e"].append(np.full(len(target), b))
        audio_before, targets_before = audio_before + len(audio), targets_before + len(target)
    joined = {name: np.concatenate(arrays).astype(np.int64) for name, arrays in parts.items()}
    return Batch(
        (len(examples), length), joined["ta"], joined["ti"], joined["aa"], joined["c"],
        joined["t"], joined["d"], joined["e"], tuple(e.key for e in examples),
    )  # fmt: skip


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The epoch's batches of indices: shuffled, sorted by length within buckets, batches shuffled again."""
    draw = rng_for(seed, epoch, "", "order")
    shuffled = draw.permutation(len(lengths))
    bucket, batches = batch_size * BUCKET_BATCHES, []
    for start in range(0, len(shuffled), bucket):
        part = sorted(shuffled[start : start + bucket].tolist(), key=lambda i: lengths[i])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in draw.permutation(len(batches))]


class EpochBatches:
    """The micro-batches of any epoch, and the updates they make.

    `often` says how many times an epoch shows each example, 1 where it is None; see `csm.data.terms.repeated`.
    An update takes `accumulate` micro-batches; the last of an epoch may have fewer, which changes nothing in its
    weighting, since losses are means over the tokens of the whole update.
    """

    def __init__(
        self,
        examples: ExampleSet,
        batch_size: int,
        accumulate: int,
        decoder_fraction: float,
        seed: int,
        often: Sequence[float] | None = None,
    ):
        self.examples, self.batch_size, self.accumulate = examples, batch_size, accumulate
        self.decoder_fraction, self.seed = decoder_fraction, seed
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._lengths = [len(source.own) for source in examples.sources]
        self._often, self._ids = often, [source.id for source in examples.sources]
        micro_batches = -(-len(self._shown(0)) // batch_size)
        self.updates = -(-micro_batches // accumulate)

    def update(self, epoch: int, number: int) -> list[Batch]:
        """The micro-batches of update `number` (from 0) of `epoch`."""
        return [self._batch(indices, epoch) for indices in self.indices(epoch, number)]

    def indices(self, epoch: int, number: int) -> list[list[int]]:
        """The examples of each micro-batch of an update."""
        if self._order[0] != epoch:
            shown = self._shown(epoch)
            order = epoch_order([self._lengths[i] for i in shown], self.batch_size, self.seed, epoch)
            self._order = (epoch, [[shown[i] for i in batch] for batch in order])
        return self._order[1][number * self.accumulate : (number + 1) * self.accumulate]

    def _shown(self, epoch: int) -> list[int]:
        """The examples of an epoch, as often as each is shown; always equally many."""
        if self._often is None:
            return list(range(len(self.examples)))
        return repeated(self._ids, self._often, self.seed, epoch)

    def _batch(self, indices: list[int], epoch: int) -> Batch:
        examples = [self.examples.example(i, epoch) for i in indices]
        depth = [self.examples.depth_frames(e, epoch, self.decoder_fraction) for e in examples]
        return collate(examples, depth)


def validation_batches(examples: ExampleSet, batch_size: int) -> list[Batch]:
    """Every example once, in order, every frame in the depth decoder's loss, the context of epoch 0."""
    out = []
    for start in range(0, len(examples), batch_size):
        part = [examples.example(i, 0) for i in range(start, min(start + batch_size, len(examples)))]
        out.append(collate(part, [np.ones(len(e.targets), bool) for e in part]))
    return out
