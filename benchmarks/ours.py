"""csm itself through the code that its commands run: `Backend.frame_generator` and `Backend.trainer`."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from benchmarks.work import BATCHES, LEARNING_RATE, WEIGHT_DECAY, Arrays, read_weights
from csm.backend import Backend, FrameGenerator, FrameRequest, Sampling, Trainer, choose_backend
from csm.data.batches import Batch
from csm.frames import text_rows
from csm.model_folder import ModelFolder, open_folder
from csm.recipe import Recipe

RECIPE = Recipe(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=0.0, embeddings_rate=1.0)
VOICE = replace(RECIPE, freeze_backbone=True, freeze_embeddings=True)
ADAPTER = replace(RECIPE, method="lora", lora_targets=("attn",))
RECIPES = {"train-full": RECIPE, "train-lora": ADAPTER, "train-voice": VOICE}


def load(folder: str, dtype: str, threads: int) -> OurPeer:
    """The adapter."""
    opened = open_folder(folder)
    return OurPeer(opened, choose_backend(opened, "cpu", dtype, threads))


class OurPeer:
    """See `benchmarks.work.Peer`."""

    def __init__(self, folder: ModelFolder, backend: Backend):
        self.folder, self.backend = folder, backend

    @cached_property
    def generator(self) -> FrameGenerator:
        return self.backend.frame_generator(self.folder)

    def trainer(self, work: str) -> Trainer:
        adapter = self.folder.path / "lora" if work == "train-lora" else None
        return self.backend.trainer(self.folder, RECIPES[work], adapter)

    def prepare(self, work: str) -> None:
        if work in BATCHES:
            assert self.generator.capacity
            return
        self.prepared = self.trainer(work)
        read_weights(self.prepared.model)  # type: ignore[attr-defined]

    def train_step(self, batch: Arrays, work: str, decoder_fraction: float) -> float:
        return self.prepared.step([batch_of(batch)], LEARNING_RATE)["loss"]

    def generate(self, text_ids: np.ndarray, frames: int) -> np.ndarray:
        codebooks, sampling = self.folder.config.num_codebooks, Sampling(0.0)
        if len(text_ids) == 1:
            return np.stack(list(self.generator.frames(text_rows(text_ids[0], codebooks), sampling, frames)))[None]
        requests = [FrameRequest(text_rows(ids, codebooks), sampling, frames) for ids in text_ids]
        spoken = dict(self.generator.batch(requests, len(requests)))
        return np.stack([spoken[row].T for row in range(len(requests))])


def batch_of(arrays: Arrays) -> Batch:
    """The harness's arrays as the trainer's batch: every audio frame is a target."""
    examples, text = arrays["text_ids"].shape
    frames, codebooks = arrays["codes"].shape[1:]
    flat = np.arange(examples * (text + frames)).reshape(examples, -1)
    return Batch(
        shape=flat.shape,
        text_at=flat[:, :text].ravel(),
        text_ids=arrays["text_ids"].ravel(),
        audio_at=flat[:, text:].ravel(),
        codes=arrays["codes"].reshape(-1, codebooks),
        targets=np.arange(examples * frames),
        depth=np.flatnonzero(arrays["depth_frames"]),
        example_of=np.repeat(np.arange(examples), frames),
        keys=tuple(bytes([example]) for example in range(examples)),
    )
