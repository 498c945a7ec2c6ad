"""The training loop: it receives its parts and builds nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csm.backend import Trainer
from csm.data.batches import Batch, EpochBatches
from csm.errors import CsmError
from csm.recipe import Recipe
from csm.training.interrupt import Interrupted, StopSignals
from csm.training.metrics import MetricsFile
from csm.training.run_folder import Position, RunFolder
from csm.training.schedule import cosine_with_warmup

Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Parts:
    """What the loop works with."""

    trainer: Trainer
    batches: EpochBatches
    validation: Sequence[Batch]
    run: RunFolder
    unchanged: Path
    recipe: Recipe

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.recipe.max_steps or self.recipe.epochs * self.batches.updates

    @property
    def save_every(self) -> int:
        """Updates between checkpoints; once an epoch where the recipe says 0."""
        return self.recipe.save_every or self.batches.updates


def train(parts: Parts, start: Position, report: Report) -> Position:
    """Run updates from `start` to the end of the recipe, saving on the way.

    Args:
        parts: everything the loop uses.
        start: where to go on; step 0 for a new run.
        report: told (step, steps, values) after every update and validation.

    Raises:
        CsmError: the loss is not finite; the step and the last good checkpoint are named.
        Interrupted: a signal came; the state was saved first.
    """
    metrics, position = MetricsFile(parts.run.path / "metrics.jsonl"), start
    metrics.rewind(start.step)

    # before the first update: how good is the base?
    if start.step == 0 and not metrics.read():
        metrics.write({"step": 0, **validate(parts)})

    with StopSignals() as signals:
        for done in range(start.step + 1, parts.steps + 1):
            # every step: one update
            epoch, number = divmod(done - 1, parts.batches.updates)
            factor = cosine_with_warmup(done - 1, parts.steps, parts.recipe.warmup_share)
            began = time.perf_counter()
            micro_batches = parts.batches.update(epoch, number)
            try:
                values = parts.trainer.step(micro_batches, factor * parts.recipe.learning_rate)
            except FloatingPointError:
                raise _not_finite(parts.run, done) from None
            frames = sum(len(batch.targets) for batch in micro_batches)
            values |= {"learning_rate": factor * parts.recipe.learning_rate, "epoch": float(epoch)}
            values |= {"frames_per_second": frames / (time.perf_counter() - began)}

            # every save_every steps and at the end: validate, save
            due = done % parts.save_every == 0 or done == parts.steps
            if due:
                values |= validate(parts)
                position = _after(position, done, values.get("validation_loss"))
            metrics.write({"step": done, **values})
            report(done, parts.steps, values)
            if due or signals.received:
                position = Position(done, position.best_loss, position.best_step)
                save(parts, position)

            # a signal: leave, after saving
            if signals.received and done < parts.steps:
                raise Interrupted(f"stopped by signal after step {done} of {parts.steps}; saved.", signals.received)
    return position


def validate(parts: Parts) -> dict[str, float]:
    """Mean losses over the whole validation set; empty without one."""
    if not parts.validation:
        return {}
    scores = [parts.trainer.score(batch) for batch in parts.validation]
    total = {key: math.fsum(np.concatenate([s[key] for s in scores]).tolist()) for key in scores[0]}
    semantic = total["semantic"] / total["semantic_tokens"]
    acoustic = total["acoustic"] / total["acoustic_tokens"]
    weighted = parts.recipe.semantic_weight * semantic + parts.recipe.acoustic_weight * acoustic
    return {
        "validation_loss": weighted,
        "validation_semantic_loss": semantic,
        "validation_acoustic_loss": acoustic,
    }


def save(parts: Parts, position: Position) -> None:
    """Write the checkpoint of `position`."""
    parts.run.save(position, lambda out: parts.trainer.save_model(parts.unchanged, out), parts.trainer.save)


def _after(position: Position, step: int, loss: float | None) -> Position:
    """The best so far, by validation loss; without validation the newest."""
    if loss is None:
        return Position(step, None, step)
    better = position.best_loss is None or loss < position.best_loss
    return Position(step, loss if better else position.best_loss, step if better else position.best_step)


def _not_finite(run: RunFolder, step: int) -> CsmError:
    steps = run.steps()
    kept = f"The last good checkpoint is {run.checkpoint(steps[-1])}." if steps else "No checkpoint was written yet."
    return CsmError(f"the loss is not finite at step {step}.", f"{kept} Try a lower --learning-rate.")
