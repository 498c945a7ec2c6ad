"""A probe: a few updates of a run, in a process of its own, for their memory and their time."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from csm.backend import Backend, Trainer
from csm.data.batches import Batch
from csm.errors import CsmError, is_out_of_memory
from csm.model_folder import ModelFolder
from csm.recipe import Recipe

LONGEST_SECONDS = 90.0  # after which no further update is begun
START_SECONDS = 600.0


@dataclass(frozen=True)
class Probe:
    """What the updates took: bytes at the peak, seconds a row of an example seen first and again, and when scored."""

    memory: int
    first_seconds_a_row: float
    later_seconds_a_row: float
    score_seconds_a_row: float
    updates: int


def probe(folder: ModelFolder, backend: Backend, recipe: Recipe, updates: Sequence[Sequence[Batch]]) -> Probe:
    """Make `updates` (the first to warm up, the others twice) and score one batch, in a new process.

    Raises:
        CsmError: memory is short, or the updates failed; the message says which.
    """
    from csm.torch.memory import free_memory

    needed, free = 4 * folder.parameters, free_memory()
    if backend.device == "cpu" and needed > free:
        raise CsmError(f"the weights take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free.")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_work, args=(theirs, folder, backend, recipe, updates), daemon=True)
    child.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(START_SECONDS) else "it took more than ten minutes."
    except EOFError:
        child.join()
        why = "memory ran out" if child.exitcode == -signal.SIGKILL else f"exit code {child.exitcode}"
        found = f"the probe's process ended before it answered ({why})."
    finally:
        child.kill()
        child.join()
    if isinstance(found, str):
        raise CsmError(found)
    assert isinstance(found, Probe)
    return found


def _work(
    out: Connection, folder: ModelFolder, backend: Backend, recipe: Recipe, updates: Sequence[Sequence[Batch]]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    try:
        out.send(_measure(backend.trainer(folder, recipe), recipe, updates, backend.device))
    except CsmError as error:
        out.send(error.message)
    except (MemoryError, RuntimeError, FloatingPointError) as error:
        out.send("memory ran out." if is_out_of_memory(error) else f"an update failed ({error}).")


def _measure(trainer: Trainer, recipe: Recipe, updates: Sequence[Sequence[Batch]], device: str) -> Probe:
    began, made = time.monotonic(), 1
    first: list[float] = []
    later: list[float] = []
    warm = _seconds_a_row(trainer, recipe, updates[0])
    for update in updates[1:]:
        if first and time.monotonic() - began > LONGEST_SECONDS:
            break
        first.append(_seconds_a_row(trainer, recipe, update))
        later.append(_seconds_a_row(trainer, recipe, update))
        made += 2
    start = time.perf_counter()
    trainer.scores(updates[-1][:1])
    scored = (time.perf_counter() - start) / _rows(updates[-1][:1])
    memory = trainer.peak_memory() if device != "cpu" else _own_peak() or trainer.peak_memory()
    return Probe(memory, _mean(first or [warm]), _mean(later or [warm]), scored, made)


def _seconds_a_row(trainer: Trainer, recipe: Recipe, update: Sequence[Batch]) -> float:
    start = time.perf_counter()
    trainer.step(update, recipe.learning_rate)  # its losses are read back, so a GPU is done when it returns
    return (time.perf_counter() - start) / _rows(update)


def _rows(batches: Sequence[Batch]) -> int:
    """Rows of text and audio, without padding."""
    return sum(len(batch.text_at) + len(batch.audio_at) for batch in batches)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _own_peak() -> int | None:
    """This process's peak in bytes on Linux; what getrusage says there begins with the parent's."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None
