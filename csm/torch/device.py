"""Device, dtype and threads: chosen once, with a reason to print."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from csm.errors import CsmError
from csm.threads import useful_threads

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """Where and in what precision a model runs."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose(device: str, dtype: str, threads: int | None, training: bool, parameters: int) -> Choice:
    """Pick the device (CUDA, then Apple's GPU, then CPU), the dtype of activations, and set torch's threads.

    Args:
        device, dtype: "auto" or a name.
        threads: None for as many as pay.
        training: whether the model will be trained, or only speak.
        parameters: of the model.

    Raises:
        CsmError: the device is not there, or fp16 training is asked for.
    """
    picked, why = _device(device)
    if dtype not in ("auto", *DTYPES):
        raise CsmError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}.")
    if training and dtype == "float16":
        raise CsmError("training in float16 overflows to NaN.", "Use bfloat16 where the device has it, else float32.")
    kind = DTYPES[dtype] if dtype != "auto" else torch.bfloat16 if picked.type == "cuda" else torch.float32
    if threads:
        count, threads_why = threads, "asked for"
    else:
        count, threads_why = useful_threads(parameters, training)
    torch.set_num_threads(count)
    on_cpu = f", {count} thread{'s' * (count > 1)} ({threads_why})" if picked.type == "cpu" else ""
    return Choice(picked, kind, f"torch on {picked} ({why}), {str(kind).removeprefix('torch.')}{on_cpu}")


def _device(name: str) -> tuple[torch.device, str]:
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
        return torch.device(best), "found" if best != "cpu" else "no GPU found"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise CsmError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N, mps.")
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise CsmError(f"device {name} is not there.", "This torch sees no such GPU; --device cpu works everywhere.")
    if device.type == "mps" and not has_mps:
        raise CsmError("device mps is not there.", "--device cpu works everywhere.")
    return device, "asked for"
