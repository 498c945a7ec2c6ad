"""SharedTrainer: the trainer of a run of several processes, and what the others do for it.

Each process holds the whole model and the whole optimiser. An update's micro-batches are shared out, gradients are summed
once an update, and every process makes the same update; so weights and momenta are everywhere the same, and the first
writes its own. A trainer that shards them would differ from this one in `_step`, where gradients are gathered, and in
`save`, `load`, `save_model` and `is_finite`, which would become orders, as `load` is, and gather what is to be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from csm.backend import Backend, ProcessLost
from csm.data.batches import Batch
from csm.data.shares import Numbered, shared_out
from csm.errors import CsmError
from csm.model_folder import ModelFolder
from csm.recipe import Recipe
from csm.torch.gradients import Extent, extents, joined
from csm.torch.processes import Team, Told, checksum
from csm.torch.trainer import TorchTrainer

ROUND = 8  # batches that a process scores before it replies

Scores = dict[str, np.ndarray]


class SharedTrainer:
    """In the first process: a `csm.backend.Trainer` that has the others of its team work with it."""

    def __init__(self, team: Team, backend: Backend, folder: ModelFolder, recipe: Recipe, checkpoint: Path | None):
        self.team, self.whole = team, bool(recipe.lora_dropout)
        team.order([("trainer", backend, folder, recipe, checkpoint, torch.get_num_threads())] * team.own.size)
        self.local = _made(team, backend, folder, recipe, checkpoint)

    @property
    def trained_names(self) -> set[str]:
        return self.local.trained_names

    def step(self, batches: Sequence[Batch], learning_rate: float) -> dict[str, float]:
        """As `TorchTrainer.step`, whose losses and gradients these are but for the order of sums.

        With dropout in adapters micro-batches are kept whole, since a draw belongs to its micro-batch; else they are cut
        where processes would be idle.
        """
        tokens = sum(b.semantic_tokens for b in batches), sum(b.acoustic_tokens for b in batches)
        before = torch.get_rng_state()
        numbered = list(zip(self.local.draws(len(batches)), batches, strict=True))
        shares = shared_out(numbered, self.team.own.size, self.whole)
        try:
            self.team.order([("step", share, tokens, learning_rate) for share in shares])
            return _step(self.team, self.local, shares[0], tokens, learning_rate)
        except ProcessLost:
            torch.set_rng_state(before)  # as if the update had not been begun
            raise

    def scores(self, batches: Sequence[Batch]) -> list[Scores]:
        """As `TorchTrainer.scores`, to the bit: each batch is scored whole, by one process or another.

        Where one has died, the first scores alone, so that what was learned is saved; the next update ends the run.
        """
        size, found = self.team.own.size, []
        try:
            for start in range(0, len(batches), size * ROUND):  # a few at a time: a validation set may be large
                found += self._scored(batches[start : start + size * ROUND])
        except ProcessLost:
            return self.local.scores(batches)
        return found

    def _scored(self, batches: Sequence[Batch]) -> list[Scores]:
        size = self.team.own.size
        shares = [batches[rank::size] for rank in range(size)]
        self.team.order([("scores", share) for share in shares])
        each = self.team.agreed(lambda: self.local.scores(shares[0]))
        return [each[i % size][i // size] for i in range(len(batches))]

    def load(self, folder: Path) -> None:
        """Take up in every process what `save` wrote."""
        self.team.order([("load", folder)] * self.team.own.size)
        self.team.agreed(lambda: self.local.load(folder))

    def save(self, folder: Path) -> None:
        """Write the momenta, which are every process's, and this one's random state, by which alone draws are made."""
        self.local.save(folder)

    def save_model(self, unchanged: Path, out: Path) -> None:
        self.local.save_model(unchanged, out)

    def is_finite(self) -> bool:
        return self.local.is_finite()

    def peak_memory(self) -> int:
        """Bytes of this process; the others need about as much."""
        return self.local.peak_memory()

    def undisturbed(self) -> AbstractContextManager[None]:
        return self.local.undisturbed()


def serve(team: Team) -> None:
    """In every other process: do what the first orders until it says that it is the end.

    Raises:
        CsmError: the first process has ended without a word.
    """
    local: TorchTrainer | None = None
    while True:
        name, *arguments = team.awaited()
        if name == "end":
            return
        try:
            if name == "trainer":
                local = None  # the model of the stage before makes room
                local = _follow(team, *arguments)
            else:
                assert local is not None, "the first order makes a trainer"
                _obey(team, local, name, arguments)
        except (Told, FloatingPointError):
            continue  # the first process knows, and ends the run
        except (RuntimeError, MemoryError) as error:
            raise CsmError(f"process {team.own.rank} failed: {error}") from error


def _obey(team: Team, local: TorchTrainer, name: str, arguments: list) -> None:
    if name == "step":
        _step(team, local, *arguments)
    elif name == "scores":
        team.agreed(lambda: local.scores(arguments[0]))
    elif name == "load":
        team.agreed(lambda: local.load(arguments[0]))
    else:
        raise AssertionError(name)


def _follow(
    team: Team, backend: Backend, folder: ModelFolder, recipe: Recipe, checkpoint: Path | None, threads: int
) -> TorchTrainer:
    torch.set_num_threads(threads)
    if backend.device.startswith("cuda"):
        backend = replace(backend, device=f"cuda:{team.own.local_rank}")
    return _made(team, backend, folder, recipe, checkpoint)


def _made(team: Team, backend: Backend, folder: ModelFolder, recipe: Recipe, checkpoint: Path | None) -> TorchTrainer:
    """This process's trainer, which is every other's too.

    Raises:
        CsmError: they loaded different weights.
    """
    made: list[TorchTrainer] = []

    def make() -> tuple[float, ...]:
        made.append(backend.own_trainer(folder, recipe, checkpoint))
        return checksum(list(made[0].model.parameters()))

    sums = team.agreed(make)
    if not all(np.allclose(one, sums[0], rtol=1e-9, atol=1e-6) for one in sums):
        if team.own.rank:
            raise Told
        raise CsmError(
            f"the processes found different weights in {checkpoint or folder.path}.",
            "Give every machine the same files.",
        )
    if backend.device.startswith("cuda"):
        team.use_nccl(torch.device(backend.device))
    return made[0]


def _step(
    team: Team, local: TorchTrainer, share: Sequence[Numbered], tokens: tuple[float, float], learning_rate: float
) -> dict[str, float]:
    """This process's part of an update: its share of the gradients, then the update that all make alike."""
    parameters = [p for group in local.optimizer.param_groups for p in group["params"]]

    def accumulate() -> tuple[tuple[float, float], list[Extent]]:
        return local.accumulate(share, tokens), extents(parameters)

    replies = team.agreed(accumulate)
    team.sum_gradients(parameters, [joined(each) for each in zip(*(found for _, found in replies), strict=True)])
    semantic, acoustic = (sum(sums) for sums in zip(*(sums for sums, _ in replies), strict=True))
    try:
        return local.apply(semantic, acoustic, learning_rate)
    except FloatingPointError:
        raise  # by all alike
    except Exception as error:
        if team.own.rank == 0:
            raise
        team.tell_late(error)
        raise Told from error
