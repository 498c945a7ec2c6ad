"""Batches: examples of like length, padded on the right, with every index that a backend needs made in numpy.

Padding comes after all that counts and attention is causal, so no mask is needed and padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from csm.data.examples import Example, ExampleSet
from csm.data.order import EpochOrder, budget_order, cut_by_budget, epoch_order
from csm.data.terms import repeated


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
        weights: (B,) of the examples' losses; None where all are 1.
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
    weights: np.ndarray | None = None

    @property
    def semantic_tokens(self) -> float:
        """Codes of codebook 0 that carry loss, each counted by its weight."""
        return len(self.targets) if self.weights is None else float(self.weights[self.example_of].sum())

    @property
    def acoustic_tokens(self) -> float:
        """Codes of the other codebooks that carry loss, each counted by its weight."""
        others = self.codes.shape[1] - 1
        if self.weights is None:
            return len(self.depth) * others
        return float(self.weights[self.example_of[self.depth]].sum()) * others

    def by_weight(self) -> list[tuple[float, Batch]]:
        """Batches of examples that weigh alike, with their weight; a batch of which all weigh 1 is itself."""
        if self.weights is None:
            return [(1.0, self)]
        values = np.unique(self.weights)
        return [(float(value), some_examples(self, np.flatnonzero(self.weights == value))) for value in values]


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
        joined["t"], joined["d"], joined["e"], tuple(e.key for e in examples), _weights([e.weight for e in examples]),
    )  # fmt: skip


def _weights(each: Sequence[float]) -> np.ndarray | None:
    return None if all(weight == 1 for weight in each) else np.array(each, np.float64)


def some_examples(batch: Batch, chosen: Sequence[int] | np.ndarray) -> Batch:
    """The batch of some of a batch's examples, in the order given, with no more padding than they need."""
    length, chosen = batch.shape[1], np.asarray(chosen, np.int64)
    of_text, of_audio = batch.text_at // length, batch.audio_at // length
    within_text, within_audio = batch.text_at % length, batch.audio_at % length
    text, audio, targets, depth = (
        np.concatenate([np.flatnonzero(of == index) for index in chosen])
        for of in (of_text, of_audio, batch.example_of, batch.example_of[batch.depth])
    )
    rows = int(max(within_text[text].max(initial=-1), within_audio[audio].max())) + 1
    place = np.zeros(batch.shape[0], np.int64)
    place[chosen] = np.arange(len(chosen))
    now_audio, now_target = (np.full(size, -1) for size in (len(of_audio), len(batch.targets)))
    now_audio[audio], now_target[targets] = np.arange(len(audio)), np.arange(len(targets))
    weights = None if batch.weights is None else _weights(batch.weights[chosen].tolist())
    return Batch(
        (len(chosen), rows), place[of_text[text]] * rows + within_text[text], batch.text_ids[text],
        place[of_audio[audio]] * rows + within_audio[audio], batch.codes[audio], now_audio[batch.targets[targets]],
        now_target[batch.depth[depth]], place[batch.example_of[targets]], tuple(batch.keys[i] for i in chosen), weights,
    )  # fmt: skip


class EpochBatches:
    """The micro-batches of any epoch, and the updates they make.

    `often` says how many times an epoch shows each example, 1 where it is None; see `csm.data.terms.repeated`.
    An update takes `accumulate` micro-batches; the last of an epoch may have fewer, which changes nothing in its
    weighting, since losses are means over the tokens of the whole update.

    Raises:
        CsmError: an example alone is longer than `max_frames`, the rows of a micro-batch with its padding (0: no limit).
    """

    def __init__(
        self,
        examples: ExampleSet,
        batch_size: int,
        accumulate: int,
        decoder_fraction: float,
        seed: int,
        often: Sequence[float] | None = None,
        max_frames: int = 0,
    ):
        self.examples, self.batch_size, self.accumulate = examples, batch_size, accumulate
        self.decoder_fraction, self.seed = decoder_fraction, seed
        self.max_frames, self._often = max_frames, often
        self._epoch, self._order = 0, self._order_of(0)
        self.updates = -(-len(self._order) // accumulate)

    def update(self, epoch: int, number: int) -> list[Batch]:
        """The micro-batches of update `number` (from 0) of `epoch`."""
        return [self._batch(indices, epoch) for indices in self.indices(epoch, number)]

    def indices(self, epoch: int, number: int) -> list[np.ndarray]:
        """The examples of each micro-batch of an update."""
        if self._epoch != epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        span = range(number * self.accumulate, min((number + 1) * self.accumulate, len(self._order)))
        return [self._order[i] for i in span]

    def _order_of(self, epoch: int) -> EpochOrder:
        """The batches of an epoch; always equally many."""
        shown = self._shown(epoch)
        if not self.max_frames:
            return epoch_order(self.examples.sources.rows[shown], self.batch_size, self.seed, epoch).of(shown)
        always = len(shown) if self._often is None else int(np.floor(self._often).sum())
        rows = self.examples.most_rows
        return budget_order(rows, shown, always, self.batch_size, self.max_frames, self.seed, epoch)

    def _shown(self, epoch: int) -> np.ndarray:
        """The examples of an epoch, as often as each is shown; always equally many."""
        if self._often is None:
            return np.arange(len(self.examples), dtype=np.int32)
        sources = self.examples.sources
        return np.array(repeated(lambda i: sources[i].id, self._often, self.seed, epoch), np.int32)

    def _batch(self, indices: np.ndarray, epoch: int) -> Batch:
        examples = [self.examples.example(int(i), epoch) for i in indices]
        depth = [self.examples.depth_frames(e, epoch, self.decoder_fraction) for e in examples]
        return collate(examples, depth)


class ValidationBatches(Sequence[Batch]):
    """Every example once, in order, every frame in the depth decoder's loss, the context of epoch 0; made when asked for."""

    def __init__(self, examples: ExampleSet, batch_size: int, max_frames: int = 0):
        self.examples = examples
        self.ends = cut_by_budget(examples.most_rows, batch_size, max_frames)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = int(self.ends[index - 1]) if index else 0
        part = [self.examples.example(i, 0) for i in range(first, int(self.ends[index]))]
        return collate(part, [np.ones(len(e.targets), bool) for e in part])


def validation_batches(examples: ExampleSet, batch_size: int, max_frames: int = 0) -> Sequence[Batch]:
    """See `ValidationBatches`."""
    return ValidationBatches(examples, batch_size, max_frames)
