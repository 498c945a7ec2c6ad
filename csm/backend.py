"""The cut between what is written once and what each backend writes as its own framework would.

Above it everything is numpy; below it a backend gives three things: a trainer, a frame generator, a codec's device. torch is
the only backend so far; its modules are imported here, when they are asked for, and nowhere else above the cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from csm.data.batches import Batch
from csm.errors import CsmError
from csm.frames import Frames
from csm.model_folder import ModelFolder, open_folder
from csm.processes import own_place
from csm.recipe import Recipe

if TYPE_CHECKING:
    from csm.codec import Codec
    from csm.torch.trainer import TorchTrainer


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn: `temperature` 0 is greedy; `top_k` 0 is all codes; the seed makes it repeatable."""

    temperature: float = 0.9
    top_k: int = 50
    seed: int = 0


@dataclass(frozen=True)
class FrameRequest:
    """What one row of a batch shall speak: at most `limit` frames after `prompt`."""

    prompt: Frames
    sampling: Sampling
    limit: int


class FrameGenerator(Protocol):
    """A model made ready to speak."""

    capacity: int

    def frames(self, prompt: Frames, sampling: Sampling, limit: int) -> Iterator[np.ndarray]:
        """Yield frames of codes `(K,)` until the end frame, which is not given out, or `limit` of them."""
        ...

    def batch(self, requests: Sequence[FrameRequest], size: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Speak requests side by side: each one's number and codes `(K, T)`, as they end; T is 0 where nothing was said.

        A request's codes are those that `frames` gives it, but where two codes are as likely as rounding can tell.

        Args:
            requests: rows of different lengths, samplings and limits.
            size: how many speak at a time, so how much memory is taken; None takes what pays on the device and fits.
        """
        ...


class ProcessLost(CsmError):
    """Another process of the run has ended, or hears nothing; the trainer stands where it stood after the last update."""


class Trainer(Protocol):
    """One optimiser over one model; see `csm.torch.trainer.TorchTrainer`."""

    @property
    def trained_names(self) -> set[str]: ...

    def is_finite(self) -> bool: ...

    def step(self, batches: Sequence[Batch], learning_rate: float) -> dict[str, float]: ...

    def scores(self, batches: Sequence[Batch]) -> list[dict[str, np.ndarray]]: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...

    def save_model(self, unchanged: Path, out: Path) -> None: ...

    def peak_memory(self) -> int: ...

    def undisturbed(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Backend:
    """A backend on a device, chosen once; `reason` is printed."""

    device: str
    dtype: str
    reason: str

    def frame_generator(self, folder: ModelFolder) -> FrameGenerator:
        """The folder's model, ready to speak."""
        from csm.torch.checkpoint import load_model
        from csm.torch.device import DTYPES
        from csm.torch.generate import TorchFrameGenerator

        return TorchFrameGenerator(load_model(folder, self.device, DTYPES[self.dtype]))

    def trainer(self, folder: ModelFolder, recipe: Recipe, checkpoint: Path | None = None) -> Trainer:
        """A trainer over the folder's model; parameters in fp32, activations in this backend's dtype.

        Where `checkpoint` is given, the weights, or the adapter, are those that a run of this recipe saved there. Where
        torchrun started several processes, all of them train.

        Raises:
            CsmError: there are several, and nobody brought them together.
        """
        if (size := own_place().size) == 1:
            return self.own_trainer(folder, recipe, checkpoint)
        from csm.torch.processes import team
        from csm.torch.shared_trainer import SharedTrainer

        processes = team()
        if processes is None:
            raise CsmError(
                f"torchrun started {size} processes, and this script does not bring them together.",
                "Train inside `with csm.torch.processes.together() as first:`, where first is true.",
            )
        return SharedTrainer(processes, self, folder, recipe, checkpoint)

    def own_trainer(self, folder: ModelFolder, recipe: Recipe, checkpoint: Path | None = None) -> TorchTrainer:
        """As `trainer`, in this process alone."""
        import torch

        from csm.torch.checkpoint import load_model
        from csm.torch.device import DTYPES
        from csm.torch.lora_file import read_adapter_of, set_adapter
        from csm.torch.trainer import TorchTrainer

        adapts = recipe.method == "lora"
        source = open_folder(checkpoint) if checkpoint and not adapts else folder
        model = load_model(source, self.device, torch.float32)
        trainer = TorchTrainer(model, recipe, DTYPES[self.dtype])
        if checkpoint and adapts:
            set_adapter(model, read_adapter_of(model, checkpoint))
        return trainer

    def available_memory(self) -> int:
        """Bytes to train in on this backend's device."""
        import torch

        from csm.torch.memory import available_memory

        return available_memory(torch.device(self.device))

    def release_memory(self) -> None:
        """Give back the memory of what was dropped."""
        import torch

        from csm.torch.memory import release_memory

        release_memory(torch.device(self.device))

    def write_unchanged(self, folder: ModelFolder, trained: set[str], out: Path) -> None:
        """Write what a run leaves alone into the new folder `out`, for its checkpoints to share."""
        from csm.torch.checkpoint import write_unchanged

        write_unchanged(folder, trained, out)

    def codec(self, folder: ModelFolder) -> Codec:
        """The folder's codec, in fp32 on this backend's device."""
        from csm.codec import load_codec
        from csm.torch.checkpoint import codec_tensors

        tensors = codec_tensors(folder)
        codebooks = folder.config.num_codebooks
        return load_codec(dict(folder.config.codec), tensors, self.device, codebooks, str(folder.path))


def choose_backend(
    folder: ModelFolder, device: str = "auto", dtype: str = "auto", threads: int | None = None, training: bool = False
) -> Backend:
    """Choose device, dtype and number of threads for a model. Raises as `csm.torch.device.choose`."""
    from csm.torch.device import choose

    choice = choose(device, dtype, threads, training, folder.parameters)
    return Backend(str(choice.device), str(choice.dtype).removeprefix("torch."), choice.reason)
