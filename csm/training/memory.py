"""Out of memory as one sentence that names the flag which helps, whatever the backend calls it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from csm.errors import CsmError, is_out_of_memory
from csm.recipe import Recipe


@contextmanager
def memory_explained(recipe: Recipe, step: int) -> Iterator[None]:
    """Turn an error of memory inside into a sentence.

    Raises:
        CsmError: memory was short; the hint is the first flag that is left to try.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = f"{recipe.batch_size} example{'s' * (recipe.batch_size > 1)}"
        raise CsmError(f"memory ran out at step {step}, with micro-batches of {size}.", remedy(recipe)) from error


def remedy(recipe: Recipe) -> str:
    """The flag that saves the most for the least, of those not used yet."""
    if not recipe.gradient_ckpt:
        return "Add --gradient-ckpt: the same numbers for less memory, and the run goes on where it was."
    if recipe.batch_size > 1:
        size = max(n for n in range(1, recipe.batch_size) if recipe.batch_size % n == 0)
        return (
            f"Give --batch-size {size} --accumulate {recipe.accumulate * recipe.batch_size // size}: as many examples to an "
            "update in smaller pieces, as a run of its own (--fresh)."
        )
    if recipe.context_turns:
        return f"Give --context-turns {recipe.context_turns - 1}, or shorter clips."
    if not recipe.freeze_backbone:
        return "Give --freeze-backbone, which keeps no momenta of it, or shorter clips."
    return "Cut the clips into shorter ones, or use a device with more memory."
