"""A `.pt` file read as data: `torch.load(weights_only=True)` and nothing else, so that no pickle ever runs code."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

from csm.errors import CsmError

SUFFIXES = (".pt", ".pth")


def read_torch_file(path: Path) -> dict[str, Any]:
    """The tensors of a saved state dict, on the CPU, mapped rather than read where the file allows it.

    Raises:
        CsmError: the file would run code, is damaged, or holds something other than tensors by name.
    """
    import torch

    if not path.is_file():
        raise CsmError(f"{path} is not there.")
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickles of a protocol that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CsmError(
            f"{path} is a pickle {_reason(error)}", "Save its state dict alone, or use safetensors."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CsmError(f"{path} is no torch file or is damaged ({_first_line(error)}).") from None
    if not isinstance(state, dict) or not state:
        raise CsmError(f"{path} holds no state dict: tensors by their names.")
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CsmError(f"{path} holds more than tensors ({', '.join(others[:5])}).", "Save its state dict alone.")
    return {str(name): tensor.detach() for name, tensor in state.items()}


def _reason(error: Exception) -> str:
    found = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    return f"that would run code when read ({found[1]})." if found else "that could run code when read, or is damaged."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
