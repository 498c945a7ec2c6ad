"""Models and adapters from layout to layout, and models with an adapter merged in: read whole, written beside, renamed.

What is written holds all that reading it back needs: weights, config, codec, tokenizer. The weights pass through memory
once, in the dtype they are stored in.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from csm.adapters.folder import write_adapter
from csm.errors import CsmError
from csm.flavours import write_config
from csm.layouts import CSM_MLX, SESAME, TRANSFORMERS, into_layout, stored_name
from csm.model_folder import ModelFolder, on_base
from csm.torch.checkpoint import copy_companions, read_tensors, refuse_biases, save_copies, save_tensors
from csm.torch.lora_file import read_adapter
from csm.weights import AUDIO_TABLE, AUDIO_TABLE_ALIAS, CODEC_FILE, parameter_shapes
from csm.whole_folder import whole_folder

WEIGHTS = {CSM_MLX: "ckpt.safetensors"}


def convert(folder: ModelFolder, out: Path, layout: str) -> None:
    """Write a model to the new folder `out` in a layout, bit for bit the same numbers.

    Raises:
        CsmError: `out` is there, or the model's two copies of the audio table differ.
        OSError: the disk is full; nothing is left of `out`.
    """
    with whole_folder(out) as part:
        write_model(folder, read_weights(folder), part, layout)
        if folder.base is None and (folder.beside / "README.md").is_file():
            shutil.copyfile(folder.beside / "README.md", part / "README.md")


def merge_adapter(folder: ModelFolder, adapter: Path, out: Path) -> None:
    """Write a model with an adapter merged in to the new folder `out`, in transformers' layout.

    What the adapter changes is written in fp32, as training leaves it: in bf16 a small change would be lost to rounding.

    Raises:
        CsmError: as `convert`; the adapter does not fit the model or belongs to another.
    """
    convert(on_base(adapter, folder), out, TRANSFORMERS)


def convert_adapter(path: Path, base: ModelFolder, out: Path, layout: str) -> None:
    """Write the adapter of `path` to the new folder `out` in PEFT's form (`transformers`) or csm-mlx's.

    Raises:
        CsmError: it does not fit the base or belongs to another; `out` is there; the form cannot express the adapter.
    """
    if layout == SESAME:
        raise CsmError("Sesame's layout has no adapters.", "Merge it: csm model merge M --adapter A OUT.")
    on_base(path, base)
    adapter = read_adapter(path, base.config, lambda name: read_tensors(base, [name])[name])
    with whole_folder(out) as part:
        write_adapter(replace(adapter, origin=base.origin), base.config, part, save_copies, layout)


def read_weights(folder: ModelFolder) -> dict[str, torch.Tensor]:
    """Every parameter by transformers' name, the tied audio table once; in fp32 what an adapter changes."""
    if AUDIO_TABLE in folder.files and AUDIO_TABLE_ALIAS in folder.files:
        both = read_tensors(folder, [AUDIO_TABLE, AUDIO_TABLE_ALIAS])
        if not torch.equal(both[AUDIO_TABLE], both[AUDIO_TABLE_ALIAS]):
            raise CsmError(f"{folder.path} holds two audio tables that differ: {AUDIO_TABLE}, {AUDIO_TABLE_ALIAS}.")
    weights = read_tensors(folder, list(parameter_shapes(folder.config)))
    refuse_biases(folder, weights)
    return weights


def write_model(folder: ModelFolder, weights: dict[str, torch.Tensor], out: Path, layout: str) -> None:
    """Fill the folder `out` with `weights` (transformers' names) in a layout, and all that belongs beside them."""
    codec = read_tensors(folder, folder.codec_names)
    copy_companions(folder, out)
    named = {stored_name(n, layout): into_layout(n, t, layout, folder.config).contiguous() for n, t in weights.items()}
    file = out / WEIGHTS.get(layout, "model.safetensors")
    if layout == TRANSFORMERS:
        save_tensors({**named, **codec}, file)
        return
    save_tensors(named, file)
    save_tensors(codec, out / CODEC_FILE)
    raw = json.loads((out / "config.json").read_text(encoding="utf-8-sig"))
    (out / "config.json").write_text(json.dumps(write_config(raw, folder.config), indent=2) + "\n", encoding="utf-8")
