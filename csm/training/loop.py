"""The training loop: it receives its parts and builds nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from csm.backend import ProcessLost, Trainer
from csm.data.batches import Batch, EpochBatches
from csm.errors import CsmError
from csm.recipe import Recipe
from csm.training.card import write_card
from csm.training.events import open_events
from csm.training.interrupt import Interrupted, StopSignals
from csm.training.measure import distance, listen, validate
from csm.training.memory import memory_explained
from csm.training.metrics import MetricsFile
from csm.training.overfit import learning_by_heart
from csm.training.run_folder import Position, RunFolder
from csm.training.schedule import rate_factor
from csm.training.watchers import Watchers

Result = TypeVar("Result")
GROUPS = ("backbone", "decoder", "embeddings")


@dataclass(frozen=True)
class Parts:
    """What the loop works with; `term_clips` says which examples of `validation`, in order, hold a term."""

    trainer: Trainer
    batches: EpochBatches
    validation: Sequence[Batch]
    run: RunFolder
    unchanged: Path
    recipe: Recipe
    watch: Watchers = field(default_factory=Watchers)
    term_clips: np.ndarray | None = None

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.recipe.max_steps or self.recipe.epochs * self.batches.updates

    @property
    def save_every(self) -> int:
        """Updates between checkpoints; once an epoch where the recipe says 0."""
        return self.recipe.save_every or self.batches.updates

    def validates(self, step: int) -> bool:
        """Whether `val_every` wants a validation after update `step`, where a checkpoint may not be due."""
        return self.recipe.val_every > 0 and step % self.recipe.val_every == 0


def train(parts: Parts, start: Position) -> Position:
    """Run updates from `start` to the end of the recipe, saving on the way.

    Args:
        parts: everything the loop uses.
        start: where to go on; step 0 for a new run.

    Returns:
        where it ended: at the last step, or where `early_stop` ended it.

    Raises:
        CsmError: the loss is not finite (the step and the last good checkpoint are named), or memory ran out.
        Interrupted: a signal came; the state was saved first.
        ProcessLost: another process of the run has ended; the state after the last update was saved first.
    """
    metrics, position = MetricsFile(parts.run.path / "metrics.jsonl"), start
    values: dict[str, float] = {}
    metrics.rewind(start.step)
    if start.step >= parts.steps or _ended_early(start, parts.recipe):
        return start

    # before the first update: how good is the base?
    if start.step == 0 and not metrics.read():
        metrics.write({"step": 0, **_sound(parts, 0, measure, 0, True)})

    with StopSignals() as signals, open_events(parts.run, parts.recipe, start.step, parts.watch.notice) as events:
        for done in range(start.step + 1, parts.steps + 1):
            if _ended_early(position, parts.recipe):
                break

            # every step: one update
            try:
                values = _sound(parts, done, update, done)
            except ProcessLost:
                if done - 1 > start.step and not parts.run.checkpoint(done - 1).exists():
                    _sound(parts, done - 1, save, replace(position, step=done - 1), values)
                raise

            # every save_every steps and at the end: validate, save; every val_every: validate
            due = done % parts.save_every == 0 or done == parts.steps
            measured = due or parts.validates(done)
            if measured:
                values |= _sound(parts, done, validate)
            values |= (heard := listen(parts, done, due))
            if due:
                position = _after(position, done, distance(values, parts.recipe.select_by))
            if measured or heard or done % parts.recipe.log_every == 0:
                metrics.write({"step": done, **values})
                events.write(done, values)
            if due:
                _sound(parts, done, save, position, values)
            parts.watch.report(done, parts.steps, values)
            if measured and (warning := learning_by_heart(metrics.read())):
                parts.watch.notice(warning)

            # a signal: save, leave
            number = signals.received
            if number is not None and done < parts.steps:
                if not due:
                    _sound(parts, done, save, replace(position, step=done), values)
                raise Interrupted(f"stopped by signal after step {done} of {parts.steps}; saved.", number)
    if position.step < parts.steps and _ended_early(position, parts.recipe):
        parts.watch.notice(
            f"ended early after step {position.step} of {parts.steps}: {position.stale} validations without a better "
            f"{parts.recipe.select_by}; the best is step {position.best_step}."
        )
    return position


def measure(parts: Parts, step: int, due: bool) -> dict[str, float]:
    """Validation, and what a listener says."""
    return {**validate(parts), **listen(parts, step, due)}


def update(parts: Parts, number: int) -> dict[str, float]:
    """Update `number`, from 1: its losses, rates, speed and memory."""
    epoch, within = divmod(number - 1, parts.batches.updates)
    factor = rate_factor(number - 1, parts.steps, parts.recipe)
    began = time.perf_counter()
    micro_batches = parts.batches.update(epoch, within)
    values = parts.trainer.step(micro_batches, factor * parts.recipe.learning_rate)
    frames = sum(len(batch.targets) for batch in micro_batches)
    speed, memory = frames / (time.perf_counter() - began), parts.trainer.peak_memory() / 1e6
    values |= {"epoch": float(epoch), **_rates(parts.recipe, factor)}
    return values | {"frames_per_second": speed, "peak_memory_mb": memory}


def save(parts: Parts, position: Position, values: Mapping[str, float]) -> None:
    """Write the checkpoint of `position` with its card, and drop those that `keep` does not keep.

    FloatingPointError where a weight is not finite.
    """
    if not parts.trainer.is_finite():
        raise FloatingPointError

    def fill(out: Path) -> None:
        parts.trainer.save_model(parts.unchanged, out)
        write_card(out, parts.run.recipe(), parts.run.lineage(), position.step, values)

    folder = parts.run.save(position, fill, parts.trainer.save)
    if parts.recipe.keep:
        parts.run.prune(parts.recipe.keep)
    parts.watch.saved(position.step, folder)


def _after(position: Position, step: int, loss: float | None) -> Position:
    """The best so far, by what the run goes by; without validation the newest."""
    if loss is None:
        return Position(step, None, step)
    if position.best_loss is None or loss < position.best_loss:
        return Position(step, loss, step)
    return Position(step, position.best_loss, position.best_step, position.stale + 1)


def _ended_early(position: Position, recipe: Recipe) -> bool:
    return 0 < recipe.early_stop <= position.stale


def _rates(recipe: Recipe, factor: float) -> dict[str, float]:
    """The learning rate of the update, and of each group that learns."""
    rate = factor * recipe.learning_rate
    learns = [group for group in GROUPS if not getattr(recipe, f"freeze_{group}")]
    return {"learning_rate": rate} | {f"rate_{group}": rate * getattr(recipe, f"{group}_rate") for group in learns}


def _sound(parts: Parts, step: int, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do a piece of work; what is not finite, or needs more memory than there is, ends the run with a sentence."""
    try:
        with memory_explained(parts.recipe, step):
            return work(parts, *arguments)
    except FloatingPointError:
        steps = parts.run.steps()
        good = f"The last good checkpoint is {parts.run.checkpoint(steps[-1])}." if steps else "Nothing was saved yet."
        raise CsmError(f"the loss is not finite at step {step}.", f"{good} Try a lower --learning-rate.") from None
