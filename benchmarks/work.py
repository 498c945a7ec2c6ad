"""What is measured: the same arrays for every implementation, and one timed round over them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from benchmarks.shapes import SHAPES

WORKS = ("generate", "generate-batch", "train-full", "train-lora", "train-voice")
TEXT_TOKENS, TRAIN_FRAMES = 40, 125
BATCHES = {"generate": 1, "generate-batch": 8}  # rows where no number is given; the others have TRAIN_BATCH
TRAIN_BATCH = 2
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01

Arrays = dict[str, np.ndarray]
Result = TypeVar("Result")


class Peer(Protocol):
    """An implementation, as its adapter `load(folder, dtype, threads)` gives it.

    A peer is asked for one kind of work in its life; for a kind it does not know it raises NotImplementedError with a
    sentence.
    """

    def prepare(self, work: str) -> None:
        """Load what the work needs, and read every weight of the model once, so that mapped files count as memory."""
        ...

    def train_step(self, batch: Arrays, work: str, decoder_fraction: float) -> float:
        """One update on `batch` (see `training_batch`); the loss before it.

        loss = mean cross entropy of code 0 over all frames + mean over codes 1..K-1 of `depth_frames`. The update is
        AdamW's (rate 1e-4, betas 0.9 0.999, eps 1e-8, decay 0.01 but none on norms and embeddings) of all but the codec,
        for "train-lora" of the adapter in FOLDER/lora alone (r 8, alpha 16), for "train-voice" of the depth decoder and
        all heads alone. `decoder_fraction` is the share of frames that `depth_frames` marks.
        """
        ...

    def generate(self, text_ids: np.ndarray, frames: int) -> np.ndarray:
        """text_ids (B, T) -> greedy codes (B, frames, K); the B rows side by side where it can. No row ends by itself."""
        ...


@dataclass(frozen=True)
class Job:
    """One implementation at one work: everything that its process must know."""

    impl: str
    work: str
    config: str
    folder: str
    dtype: str
    threads: int
    batch: int
    frames: int
    decoder_fraction: float
    warmup: int

    @property
    def generates(self) -> bool:
        """Whether frames are made, and nothing is trained."""
        return self.work in BATCHES


def prompt(config: str, batch: int) -> np.ndarray:
    """Plain text ids (batch, 40) int64."""
    return np.random.default_rng(1).integers(0, SHAPES[config].plain_ids, (batch, TEXT_TOKENS))


def training_batch(config: str, batch: int, fraction: float) -> Arrays:
    """Text rows `text_ids` (B, T), then audio rows `codes` (B, F, K); `depth_frames` (B, F) bool marks those that train
    the depth decoder, as many as transformers' processor would keep."""
    draw = np.random.default_rng(2)
    codes = draw.integers(1, 2048, (batch, TRAIN_FRAMES, SHAPES[config].codebooks))
    depth = np.ones(batch * TRAIN_FRAMES, bool)
    depth[draw.permutation(depth.size)[: int(depth.size * (1 - fraction))]] = False
    return {
        "text_ids": prompt(config, batch),
        "codes": codes,
        "depth_frames": depth.reshape(batch, TRAIN_FRAMES),
    }


def round_of_work(job: Job, peer: Peer) -> Callable[[], dict[str, Any]]:
    """A function that does the job's work once and gives its times and its result."""
    if job.generates:
        text_ids = prompt(job.config, job.batch)
        return lambda: _generation(peer, text_ids, job.frames)
    batch = training_batch(job.config, job.batch, job.decoder_fraction)
    return lambda: _update(peer, batch, job.work, job.decoder_fraction)


def read_weights(model: Any) -> None:
    """Read every parameter of a torch model once."""
    for parameter in model.parameters():
        parameter.detach().sum().item()


def _update(peer: Peer, batch: Arrays, work: str, fraction: float) -> dict[str, Any]:
    seconds, cpu, loss = _timed(lambda: float(peer.train_step(batch, work, fraction)))
    return {"seconds": seconds, "cpu_seconds": cpu, "loss": loss}


def _generation(peer: Peer, text_ids: np.ndarray, frames: int) -> dict[str, Any]:
    """The first frame is a call for one frame: the one way every implementation can be asked for it alike."""
    first, _, _ = _timed(lambda: np.asarray(peer.generate(text_ids, 1)))
    seconds, cpu, codes = _timed(lambda: np.asarray(peer.generate(text_ids, frames)))
    if codes.shape[:2] != (len(text_ids), frames):
        raise ValueError(f"generate gave codes of shape {codes.shape} where {frames} frames were asked for")
    return {"seconds": seconds, "cpu_seconds": cpu, "first_frame_seconds": first, "codes": codes.tolist()}


def _timed(function: Callable[[], Result]) -> tuple[float, float, Result]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - cpu, result
