"""What a run will take: its updates, counted as the run counts them; memory and time, measured on a few of its updates.

The updates are exact: split, order and batches are the run's own, made from stand-ins for the codes. Memory and time come
from a probe (`csm.training.probe`) in a process of its own, on drawn codes: its peak over the largest update, and
its seconds a row over two usual ones, which are taken twice because a run may keep what it computed the first time. Loading,
encoding, saving and samples are not in the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from csm.data.batches import Batch, EpochBatches, collate
from csm.data.codes import Tokenised
from csm.data.examples import Example
from csm.errors import CsmError
from csm.frames import Frames
from csm.training.finetuner import CSMFineTuner
from csm.training.probe import Probe, probe

USUAL = 2


@dataclass(frozen=True)
class Projection:
    """What a run will take.

    Args:
        steps: updates in all; early stopping may end a run before.
        epochs: as many as the recipe asks for, or `steps` make.
        updates: in an epoch.
        training, validation: clips to learn from and held out.
        frames: audio frames that an epoch learns, ends of clips included.
        tokens: text tokens of them.
        rows: frames and tokens of an epoch, context included.
        memory: bytes at the peak; None where it was not measured.
        seconds: of all updates and validations; None where it was not measured.
        method: how memory and time were had, or why not.
    """

    steps: int
    epochs: float
    updates: int
    training: int
    validation: int
    frames: int
    tokens: int
    rows: int
    memory: int | None
    seconds: float | None
    method: str


def project(tuner: CSMFineTuner, data: Tokenised, measured: bool = True) -> Projection:
    """Project the run of `tuner` over `data`, whose codes may be stand-ins.

    Raises:
        CsmError: the run itself would refuse this data.
    """
    batches, held = tuner.plan(data)
    recipe = tuner.resolved.recipe
    steps = recipe.max_steps or recipe.epochs * batches.updates
    shown = [i for number in range(batches.updates) for part in batches.indices(0, number) for i in part]
    audio = [int(source.own.audio_rows.sum()) for source in batches.examples.sources]
    every = [len(source.own) for source in batches.examples.sources]
    sizes = [len(batches.examples.example(i, 0)) for i in shown]
    frames = sum(audio[i] for i in shown)
    counted = Projection(
        steps, steps / batches.updates, batches.updates, len(batches.examples), len(held), frames,
        sum(every[i] for i in shown) - frames, sum(sizes), None, None, "not measured: it was not asked for",
    )  # fmt: skip
    if not measured:
        return counted
    config = tuner.base.config
    usual, largest = _chosen(batches)
    updates = [widened(batches, number, (config.num_codebooks, config.spoken_codes)) for number in (largest, *usual)]
    try:
        found = probe(tuner.base, tuner.backend, recipe, updates)
    except CsmError as error:
        return replace(counted, method=f"not measured: {error.message}")
    return _measured(counted, found, batches, tuner, sum(len(source.own) for source in held.sources))


def _measured(
    counted: Projection, found: Probe, batches: EpochBatches, tuner: CSMFineTuner, held_rows: int
) -> Projection:
    from csm.torch.trainer import STATES_BYTES

    recipe = tuner.resolved.recipe
    first = min(1.0, counted.epochs) * counted.rows * found.first_seconds_a_row
    later = max(0.0, counted.epochs - 1) * counted.rows * found.later_seconds_a_row
    validations = count_validations(counted.steps, recipe.save_every or batches.updates, recipe.val_every)
    seconds = first + later + validations * held_rows * found.score_seconds_a_row
    kept = 0
    if recipe.freeze_backbone and recipe.freeze_embeddings and recipe.context_turns == 0:
        states = (counted.frames + held_rows) * tuner.base.config.backbone.hidden_size * 4  # the backbone's
        kept = min(states, STATES_BYTES)
    method = f"measured on {found.updates} updates in a process of its own ({tuner.backend.reason})"
    return replace(counted, memory=found.memory + kept, seconds=seconds, method=method)


def count_validations(steps: int, save_every: int, val_every: int) -> int:
    """How often a run validates: the base, where a checkpoint is due, at the end, and every `val_every` updates."""
    found = 1 + -(-steps // save_every)
    if val_every:
        at_end = steps % val_every == 0 and steps % save_every != 0  # counted above
        found += steps // val_every - steps // math.lcm(save_every, val_every) - at_end
    return found


def _chosen(batches: EpochBatches) -> tuple[list[int], int]:
    """Two updates of usual size, and the largest, by what their padded micro-batches hold."""
    lengths = [len(source.own) for source in batches.examples.sources]
    sizes = [
        max(len(part) * max(lengths[i] for i in part) for part in batches.indices(0, number))
        for number in range(batches.updates)
    ]
    order = np.argsort(sizes, kind="stable").tolist()
    middle = len(order) // 2
    return order[middle : middle + USUAL] or order[:1], order[-1]


def widened(batches: EpochBatches, number: int, codes: tuple[int, int]) -> list[Batch]:
    """The micro-batches of update `number` of the first epoch, with drawn codes: (codebooks, codes in each)."""
    examples, draw, out = batches.examples, np.random.default_rng(number), []
    for indices in batches.indices(0, number):
        plain = [examples.example(i, 0) for i in indices]
        depth = [examples.depth_frames(example, 0, batches.decoder_fraction) for example in plain]
        out.append(collate([_wide(example, codes, draw) for example in plain], depth))
    return out


def _wide(example: Example, codes: tuple[int, int], draw: np.random.Generator) -> Example:
    narrow, count, (codebooks, size) = example.rows, len(example.rows), codes
    frames, mask = np.zeros((count, codebooks + 1), np.int32), np.zeros((count, codebooks + 1), bool)
    audio = narrow.audio_rows
    frames[audio, :-1] = draw.integers(1, size, (int(audio.sum()), codebooks))
    frames[:, -1], mask[:, :-1], mask[:, -1] = narrow.frames[:, -1], audio[:, None], ~audio
    return Example(example.id, Frames(frames, mask), example.target_start)
