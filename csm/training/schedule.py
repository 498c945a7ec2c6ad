"""The learning rate as a function of the step: linear warmup, then half a cosine down to nothing."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, steps: int, warmup_share: float) -> float:
    """The factor of the base rate for update `step` (from 0) of `steps`; never 0, so that every update counts."""
    warmup = round(warmup_share * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    along = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * along))
