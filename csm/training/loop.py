"""The training loop: it receives its parts and builds nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from csm.backend import Trainer
from csm.data.batches import Batch, EpochBatches
from csm.errors import CsmError
from csm.recipe import Recipe
from csm.training.interrupt import Interrupted, StopSignals
from csm.training.metrics import MetricsFile
from csm.training.run_folder import Position, RunFolder
from csm.training.schedule import cosine_with_warmup

Result = TypeVar("Result")
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
        metrics.write({"step": 0, **_finite(parts, 0, validate)})

    with StopSignals() as signals:
        for done in range(start.step + 1, parts.steps + 1):
            # every step: one update
            values = _finite(parts, done, update, done)

            # every save_every steps and at the end: validate, save
            due = done % parts.save_every == 0 or done == parts.steps
            if due:
                values |= _finite(parts, done, validate)
                position = _after(position, done, values.get("validation_loss"))
            metrics.write({"step": done, **values})
            if due:
                _finite(parts, done, save, position)
            report(done, parts.steps, values)

            # a signal: save, leave
            number = signals.received
            if number is not None and done < parts.steps:
                if not due:
                    _finite(parts, done, save, Position(done, position.best_loss, position.best_step))
                raise Interrupted(f"stopped by signal after step {done} of {parts.steps}; saved.", number)
    return position


def update(parts: Parts, number: int) -> dict[str, float]:
    """Update `number`, from 1: its losses, rate and speed."""
    epoch, within = divmod(number - 1, parts.batches.updates)
    rate = parts.recipe.learning_rate * cosine_with_warmup(number - 1, parts.steps, parts.recipe.warmup_share)
    began = time.perf_counter()
    micro_batches = parts.batches.update(epoch, within)
    values = parts.trainer.step(micro_batches, rate)
    frames = sum(len(batch.targets) for batch in micro_batches)
    speed = frames / (time.perf_counter() - began)
    return values | {"learning_rate": rate, "epoch": float(epoch), "frames_per_second": speed}


def validate(parts: Parts) -> dict[str, float]:
    """Mean losses over the whole validation set; empty without one. FloatingPointError where they are not finite."""
    if not parts.validation:
        return {}
    scores = [parts.trainer.score(batch) for batch in parts.validation]
    total = {key: math.fsum(np.concatenate([s[key] for s in scores]).tolist()) for key in scores[0]}
    semantic = total["semantic"] / total["semantic_tokens"]
    acoustic = total["acoustic"] / total["acoustic_tokens"]
    if not math.isfinite(semantic + acoustic):
        raise FloatingPointError
    weighted = parts.recipe.semantic_weight * semantic + parts.recipe.acoustic_weight * acoustic
    return {
        "validation_loss": weighted,
        "validation_semantic_loss": semantic,
        "validation_acoustic_loss": acoustic,
    }


def save(parts: Parts, position: Position) -> None:
    """Write the checkpoint of `position`. FloatingPointError where a weight is not finite."""
    if not parts.trainer.is_finite():
        raise FloatingPointError
    parts.run.save(position, lambda out: parts.trainer.save_model(parts.unchanged, out), parts.trainer.save)


def _after(position: Position, step: int, loss: float | None) -> Position:
    """The best so far, by validation loss; without validation the newest."""
    if loss is None:
        return Position(step, None, step)
    better = position.best_loss is None or loss < position.best_loss
    return Position(step, loss if better else position.best_loss, step if better else position.best_step)


def _finite(parts: Parts, step: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do a piece of work; a loss or weight that is not finite ends the run with the last good checkpoint named."""
    try:
        return work(parts, *arguments)
    except FloatingPointError:
        steps = parts.run.steps()
        good = f"The last good checkpoint is {parts.run.checkpoint(steps[-1])}." if steps else "Nothing was saved yet."
        raise CsmError(f"the loss is not finite at step {step}.", f"{good} Try a lower --learning-rate.") from None
