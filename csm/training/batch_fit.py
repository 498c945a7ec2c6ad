"""What fits: how many of the longest examples a micro-batch can hold, found by updates that are thrown away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from csm.backend import Trainer
from csm.data.batches import Batch, collate
from csm.data.examples import Example, ExampleSet
from csm.errors import CsmError, is_out_of_memory
from csm.frames import Frames, join
from csm.recipe import Recipe
from csm.training.memory import remedy

FRACTION = 0.8  # of the memory, for what a probe cannot see: fragments, validation, samples


@dataclass(frozen=True)
class Fit:
    """The micro-batch that fits, how many of them make an update, and why."""

    batch_size: int
    accumulate: int
    reason: str


def find_batch(trainer: Trainer, examples: ExampleSet, recipe: Recipe, update: int, memory: int) -> Fit:
    """The largest micro-batch that fits `FRACTION` of `memory` bytes and divides an update of `update` examples.

    Each size is tried on the longest examples that an epoch can show, in ascending order; the memory of the next is
    judged from the last two before it is tried, since running out may end the process. The trainer is used up.

    Raises:
        CsmError: not even one example fits.
    """
    limit, peaks = int(FRACTION * memory), list[tuple[int, int]]()
    longest = int(examples.most_rows.max())
    most = min(update, recipe.max_batch_frames // longest) if recipe.max_batch_frames else update
    for size in (n for n in range(1, most + 1) if update % n == 0):
        if _expected(peaks, size) > limit:
            break
        peak = _peak(trainer, lambda size=size: longest_batch(examples, recipe, size))  # type: ignore[misc]
        if peak is None or peak > limit:
            break
        peaks.append((size, peak))
    if not peaks:
        problem = f"not even one example of {longest} rows fits into {FRACTION:.0%} of {memory / 1e9:.1f} GB."
        raise CsmError(problem, remedy(replace(recipe, batch_size=1)))
    best, peak = peaks[-1]
    found = f"{best} of {longest} rows take {peak / 1e9:.2f} of {memory / 1e9:.1f} GB"
    end = "" if best == most else f", more would pass {FRACTION:.0%}"
    return Fit(best, update // best, f"auto: {found}{end}")


def _expected(peaks: list[tuple[int, int]], size: int) -> float:
    """Bytes that `size` examples will take, along the line through the last two sizes."""
    if len(peaks) < 2:
        return 0.0
    (before, low), (last, high) = peaks[-2:]
    return high + (high - low) / (last - before) * (size - last)


def _peak(trainer: Trainer, make: Callable[[], Batch]) -> int | None:
    """The most memory that the process has held after an update with a batch; None where there was not enough."""
    try:
        trainer.step([make()], 0.0)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return trainer.peak_memory()


def longest_batch(examples: ExampleSet, recipe: Recipe, size: int) -> Batch:
    """A micro-batch of the `size` examples that may become longest, with as much context as they may have."""
    most = examples.most_rows
    order = np.argsort(most, kind="stable")[::-1]
    made = [_at_most(examples, int(order[i % len(order)]), int(most[order[i % len(order)]])) for i in range(size)]
    return collate(made, [examples.depth_frames(example, 0, recipe.decoder_fraction) for example in made])


def _at_most(examples: ExampleSet, index: int, rows: int) -> Example:
    """The example with its own rows as context, again and again, until it has `rows`."""
    source = examples.sources[index]
    parts, room = [source.own], rows - len(source.own)
    while room > 0:
        parts.insert(0, Frames(source.own.frames[-room:], source.own.mask[-room:]))
        room -= len(parts[0])
    return Example(source.id, join(parts), rows - len(source.own))
