"""The micro-batches of an update, shared out among processes: none twice, none left out."""

from __future__ import annotations

from collections.abc import Sequence

from csm.data.batches import Batch, some_examples

Numbered = tuple[int, Batch]


def shared_out(batches: Sequence[Numbered], count: int, whole: bool) -> list[list[Numbered]]:
    """What each of `count` processes takes of an update, about equally many rows; some may get nothing.

    Args:
        batches: micro-batches, each with a number that stays with it.
        count: processes.
        whole: keep micro-batches whole; else those that would leave processes idle are cut between examples.
    """
    pieces = list(batches)
    over = 0 if whole else len(pieces) % count
    if over:
        cut = [(number, part) for number, batch in pieces[-over:] for part in _parts(batch, count)]
        pieces = pieces[:-over] + cut
    shares: list[list[Numbered]] = [[] for _ in range(count)]
    loads = [0] * count
    for number, batch in sorted(pieces, key=lambda piece: -_rows(piece[1])):
        least = loads.index(min(loads))
        shares[least].append((number, batch))
        loads[least] += _rows(batch)
    return shares


def _parts(batch: Batch, count: int) -> list[Batch]:
    """Every `count`-th example together: batches are sorted by length, so the parts are of like length."""
    size = batch.shape[0]
    return [some_examples(batch, range(first, size, count)) for first in range(min(count, size))]


def _rows(batch: Batch) -> int:
    return batch.shape[0] * batch.shape[1]
