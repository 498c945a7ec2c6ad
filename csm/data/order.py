"""The order of an epoch: which examples make up each micro-batch, by length, under a number and a budget of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from csm.data.draws import rng_for
from csm.errors import CsmError

BUCKET_BATCHES = 16  # batches' worth of examples that are drawn from together


@dataclass(frozen=True, eq=False)
class EpochOrder(Sequence[np.ndarray]):
    """B batches as one array of examples, int32, and (B,) where each begins and ends in it."""

    examples: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.examples[self.begins[index] : self.ends[index]]

    def of(self, shown: np.ndarray) -> EpochOrder:
        """The same of the examples that `shown` names by the places counted here."""
        return EpochOrder(shown[self.examples], self.begins, self.ends)

    def tolist(self) -> list[list[int]]:
        return [batch.tolist() for batch in self]


def epoch_order(lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int, epoch: int) -> EpochOrder:
    """The epoch's batches of indices: shuffled, sorted by length within buckets, batches shuffled again."""
    draw = rng_for(seed, epoch, "", "order")
    lengths = np.asarray(lengths)
    order = draw.permutation(len(lengths)).astype(np.int32)
    bucket, ends = batch_size * BUCKET_BATCHES, list[np.ndarray]()
    for start in range(0, len(order), bucket):
        part = order[start : start + bucket]
        order[start : start + bucket] = part[np.argsort(lengths[part], kind="stable")]
        ends.append(start + cut_by_budget(lengths[part], batch_size))
    return _shuffled(order, np.concatenate(ends) if ends else np.zeros(0, np.int64), draw)


def budget_order(
    rows: np.ndarray, shown: np.ndarray, always: int, batch_size: int, max_rows: int, seed: int, epoch: int
) -> EpochOrder:
    """The epoch's batches of at most `batch_size` examples whose padded rows are `max_rows` at most.

    Every epoch has equally many: an example stays in its bucket of like length, and is shuffled there.

    Args:
        rows: (N,) rows of each example at most.
        shown: the examples of the epoch; the first `always` of them are the same in all.

    Raises:
        CsmError: an example alone has more rows.
    """
    check_budget(rows, max_rows)
    draw = rng_for(seed, epoch, "", "order")
    fixed = shown[:always][np.argsort(rows[shown[:always]], kind="stable")[::-1]]
    order, ends, at = [], list[np.ndarray](), 0
    while at < len(fixed):
        size = min(batch_size, max_rows // int(rows[fixed[at]]))
        part = draw.permutation(fixed[at : at + size * BUCKET_BATCHES])
        order.append(part)
        ends.append(at + cut_by_budget(rows[part], size))
        at += len(part)
    drawn = draw.permutation(shown[always:])
    if len(drawn):  # others in every epoch, so their batches are sized for the longest that there is
        order.append(drawn)
        ends.append(at + cut_by_budget(rows[drawn], min(batch_size, max_rows // int(rows.max()))))
    return _shuffled(np.concatenate(order).astype(np.int32), np.concatenate(ends), draw)


def cut_by_budget(rows: np.ndarray, batch_size: int, max_rows: int = 0) -> np.ndarray:
    """Where batches end when examples are taken in order: (B,) numbers of examples.

    Raises:
        CsmError: an example alone has more than `max_rows`.
    """
    if not max_rows:
        return np.minimum(np.arange(batch_size, len(rows) + batch_size, batch_size, dtype=np.int32), len(rows))
    check_budget(rows, max_rows)
    ends, first, longest = list[int](), 0, 0
    for i, count in enumerate(rows.tolist()):
        longest = max(longest, count)
        if i - first == batch_size or (i - first + 1) * longest > max_rows:
            ends.append(i)
            first, longest = i, count
    return np.array([*ends, len(rows)][: len(rows)], np.int32)


def check_budget(rows: np.ndarray, max_rows: int) -> None:
    """Raises CsmError where an example has more rows than a micro-batch may have."""
    if len(rows) and rows.max() > max_rows:
        raise CsmError(
            f"max_batch_frames is {max_rows} and the longest example has {rows.max()} rows with its context.",
            f"Give at least {rows.max()}, fewer context turns, or shorter clips.",
        )


def _shuffled(examples: np.ndarray, ends: np.ndarray, draw: np.random.Generator) -> EpochOrder:
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int32)[: len(ends)]
    order = draw.permutation(len(ends))
    return EpochOrder(examples, begins[order], ends.astype(np.int32)[order])
