"""Several processes, one run: the first does all that a lone one does, and the others work for its trainer.

torchrun starts them. The first reads, tokenises, draws, prints and writes; the others wait for its orders: make a trainer, take
a share of an update, score some batches. So nothing but the trainer knows of them, and a run does not depend on how many
there are. Orders and replies are small and go over gloo, the gradients over nccl on GPUs: whoever dies is missed in the
replies, which come before the gradients, and no process waits for it.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from csm.backend import ProcessLost
from csm.errors import CsmError, is_out_of_memory
from csm.processes import Place, own_place
from csm.torch.gradients import Extent, sum_gradients

PATIENCE = timedelta(days=7)  # for orders: the first process may tokenise for long; its death is seen at once
REPLY = timedelta(minutes=30)  # for a share of an update

Result = TypeVar("Result")


@dataclass(frozen=True)
class Trouble:
    """An exception in words, so that it can be told to other processes."""

    kind: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Trouble:
        if isinstance(error, CsmError):
            return cls("CsmError", error.message, error.hint)
        if is_out_of_memory(error):
            return cls("memory", str(error))
        return cls("other", "".join(traceback.format_exception(error)))

    def error(self, rank: int) -> Exception:
        """What the other processes raise for it."""
        if self.kind == "CsmError":
            return CsmError(self.message, self.hint)
        if self.kind == "memory":
            return RuntimeError(f"out of memory in process {rank}: {self.message}")
        return RuntimeError(f"process {rank} failed:\n{self.message}")


class Team:
    """The processes of one run, of which this is one.

    Attributes:
        own: its place among them.
        midway: whether the others wait in the middle of something, so that they would not hear an order.
    """

    def __init__(self, own: Place):
        self.own, self.midway = own, False
        try:
            dist.init_process_group("gloo", timeout=PATIENCE)
            self._replies = dist.new_group(backend="gloo", timeout=REPLY)
        except (RuntimeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise CsmError(
                f"the {own.size} processes could not join: {first}", "GLOO_SOCKET_IFNAME names the network to use."
            ) from error
        self._gradients = self._replies
        self._late: Trouble | None = None

    def use_nccl(self, device: torch.device) -> None:
        """Sum gradients over nccl from now on; every process calls it, or none."""
        torch.cuda.set_device(device)
        if self._gradients is self._replies:
            self._gradients = dist.new_group(backend="nccl", timeout=REPLY)

    def order(self, orders: Sequence[tuple[Any, ...]]) -> None:
        """The first process tells each what to do; the first order is its own, and told to nobody."""
        self.midway = True
        with self._missing():
            dist.scatter_object_list([None], [("yours",), *orders[1:]], src=0)

    def end(self) -> None:
        """The first process lets the others go, unless they would not hear it: then they see that it is gone."""
        if not self.midway:
            self.order([("end",)] * self.own.size)
            self.midway = False

    def awaited(self) -> tuple[Any, ...]:
        """The next order for this process."""
        got: list[Any] = [None]
        with self._missing():
            dist.scatter_object_list(got, None, src=0)
        return got[0]

    def agreed(self, work: Callable[[], Result]) -> list[Result]:
        """What `work` gives in every process, by rank; where it fails in one, all raise, and no one waits.

        Raises:
            Told: in all but the first process, whatever failed; the first raises what failed itself.
        """
        error, trouble, value = None, self._late, None
        try:
            value = work()
        except Exception as caught:  # told to the others and raised below
            error, trouble = caught, Trouble.of(caught)
        replies: list[Any] = [None] * self.own.size
        with self._missing():
            dist.all_gather_object(replies, (trouble, value), group=self._replies)
        self.midway = False
        if self.own.rank and any(told for told, _ in replies):
            raise Told
        if error is not None:
            raise error
        for rank, (told, _) in enumerate(replies):
            if told is not None:
                raise told.error(rank)
        return [reply for _, reply in replies]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], covered: Sequence[Extent]) -> None:
        """Make each gradient the sum of all processes'; see `csm.torch.gradients.sum_gradients`."""

        def add_up(flat: Tensor) -> None:
            with self._missing():
                dist.all_reduce(flat, group=self._gradients)

        self.midway = True
        sum_gradients(parameters, covered, add_up)
        self.midway = False

    def tell_late(self, error: Exception) -> None:
        """Tell of a failure that the others have not heard of, at the next agreement."""
        self._late = Trouble.of(error)

    @contextmanager
    def _missing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            who = "the first of the" if self.own.rank else "one of the"
            raise ProcessLost(
                f"{who} {self.own.size} processes has ended, so the run cannot go on.",
                "What was saved is whole: the same command goes on from the last checkpoint, with any number of processes.",
            ) from error


class Told(Exception):
    """The first process has heard of a failure here or elsewhere, and will end the run."""


_team: list[Team] = []


def team() -> Team | None:
    """The processes that stand together; None for one alone."""
    return _team[-1] if _team else None


@contextmanager
def together() -> Iterator[bool]:
    """Whatever trains goes inside, under torchrun or not: `with together() as first: if first: ...`.

    True in the first process and in one alone. In the others it serves the first until that leaves, then gives False. They
    pass over SIGINT and SIGTERM, which the first heeds for all.

    Raises:
        CsmError: the processes could not join, or the first has ended without a word.
    """
    place = own_place()
    if place.size == 1:
        yield True
        return
    own = Team(place)
    _team.append(own)
    try:
        if place.rank == 0:
            try:
                yield True
            finally:
                own.end()
        else:
            from csm.torch.shared_trainer import serve

            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            serve(own)
            yield False
    finally:
        _team.remove(own)
        if not own.midway:
            dist.destroy_process_group()


def checksum(parameters: Sequence[Tensor]) -> tuple[float, ...]:
    """What equal parameters have in common to nine digits, and others hardly."""
    return tuple(float(p.detach().sum(dtype=torch.float64)) for p in parameters)
