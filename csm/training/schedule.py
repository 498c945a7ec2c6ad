"""The learning rate as a function of the step: linear warmup, then half a cosine down to nothing, or no change."""

from __future__ import annotations

import math

from csm.recipe import Recipe


def rate_factor(step: int, steps: int, recipe: Recipe) -> float:
    """The factor of the base rate for update `step` (from 0) of `steps`; never 0, so that every update counts."""
    warmup = round(recipe.warmup_share * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return 1.0
    along = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * along))
