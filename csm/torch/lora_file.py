"""Adapters out of folders, ours or PEFT's, held against the model that they are for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from csm.adapter import AdapterPlan
from csm.adapter_folder import (
    AUDIO_ALIAS,
    AUDIO_TABLE,
    HEADS,
    PREFIX,
    TENSORS,
    read_plan,
)
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.torch.lora import adapter_state, attach
from csm.torch.model import Csm


def load_adapter(model: Csm, folder: Path) -> AdapterPlan:
    """Put the adapter of a folder, ours or PEFT's, on a model and give its plan. Raises as `read_adapter`."""
    plan, tensors = read_adapter(folder, model.config, model.state_dict())
    attach(model, plan)
    set_adapter(model, tensors)
    return plan


def set_adapter(model: Csm, tensors: Mapping[str, Tensor]) -> None:
    """Give the adapters that are on a model these values; names and shapes are theirs."""
    state = adapter_state(model)
    assert state.keys() == tensors.keys(), "the adapter on the model is another than the one that was read"
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(tensors[name])


def read_adapter(
    folder: Path, config: ModelConfig, base: Mapping[str, Tensor]
) -> tuple[AdapterPlan, dict[str, Tensor]]:
    """The plan of an adapter and its tensors, by our names.

    Args:
        base: tensors of the model it goes onto, to hold copies of them in the file against.

    Raises:
        CsmError: tensors missing, unexpected or mis-shaped, all named; something a CSM cannot express.
    """
    plan, aside = read_plan(folder, config)
    try:
        stored = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / TENSORS).items()}
    except SafetensorError as error:
        raise CsmError(f"{folder / TENSORS} is damaged ({error}).") from None
    _judge(stored, aside, base, folder)
    for name in [name for name in stored if name.startswith(f"{AUDIO_ALIAS}.")]:
        if not torch.equal(stored.pop(name), stored[name.replace(AUDIO_ALIAS, AUDIO_TABLE)]):
            raise CsmError(
                f"the adapter {folder} changes {AUDIO_ALIAS} and {AUDIO_TABLE} differently; they are one table in a CSM."
            )
    tensors = {name: tensor for name, tensor in stored.items() if name not in aside}
    _turn_heads(tensors, plan, plan.tensor_shapes(config))
    return plan, tensors


def _judge(stored: Mapping[str, Tensor], aside: list[str], base: Mapping[str, Tensor], folder: Path) -> None:
    """Adapters of the codec must do nothing, and copies of the base must be the base's."""
    if any(name.endswith("lora_magnitude_vector") for name in aside):
        raise CsmError(f"the adapter {folder} has DoRA on the codec, which csm does not adapt.")
    for name in aside:
        if name.endswith(".base_layer.weight"):
            own = base.get(name.replace(".base_layer.", "."))
            if own is not None and not torch.equal(stored[name].to(own), own):
                raise CsmError(f"the adapter {folder} holds {name}, and it is not what the base has there.")
        elif "lora_B" in name and stored[name].any():
            raise CsmError(f"the adapter {folder} changes {name.split('.lora_')[0]}; csm does not adapt the codec.")


def _turn_heads(tensors: dict[str, Tensor], plan: AdapterPlan, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """PEFT 0.18 had the heads' input side in A and their output side in B, the other way round than later ones."""
    names = [f"{HEADS}.lora_{letter}.weight" for letter in "AB"]
    if names[0] not in tensors or tuple(tensors[names[0]].shape) == wanted[names[0]]:
        return
    a, b = (tensors[name] for name in names)
    rank = next(site.rank for site in plan.sites if site.kind == "heads")
    outputs, (rows, width) = len(b), a.shape
    heads = rows // rank
    tensors[names[0]] = b.view(outputs, rank, heads).permute(2, 1, 0).reshape(heads * rank, outputs)
    tensors[names[1]] = a.view(heads, rank, width).permute(2, 1, 0).reshape(width, rank * heads)
