"""Adapters out of folders, of either form, onto models and into tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from csm.adapters.adapter import Adapter
from csm.adapters.folder import read_adapter as read_adapter_with
from csm.config import ModelConfig
from csm.torch.lora import adapter_state, attach
from csm.torch.model import Csm


def read_adapter(folder: Path, config: ModelConfig, of_base: Callable[[str], Tensor | None]) -> Adapter:
    """`csm.adapters.folder.read_adapter` with torch's tensors, on the CPU, each laid out row by row: how a matrix lies in
    memory changes the last bits of a product."""
    found = read_adapter_with(folder, config, load_file, of_base)
    factors, whole = ({n: t.contiguous() for n, t in part.items()} for part in (found.factors, found.whole))
    return replace(found, factors=factors, whole=whole)


def read_adapter_of(model: Csm, folder: Path) -> Adapter:
    """`read_adapter` of a folder whose base is this model, on whatever device that is."""
    state = model.state_dict()
    return read_adapter(folder, model.config, lambda name: state[name].cpu())


def load_adapter(model: Csm, folder: Path) -> Adapter:
    """Put the adapter of a folder on a model, beside its weights. Raises as `read_adapter`."""
    adapter = read_adapter_of(model, folder)
    attach(model, adapter.plan)
    set_adapter(model, adapter)
    return adapter


def set_adapter(model: Csm, adapter: Adapter) -> None:
    """Give the adapters that are on a model these values; parameters that were trained whole take the model's place."""
    state = adapter_state(model)
    assert state.keys() == adapter.factors.keys(), "the adapter on the model is another than the one that was read"
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(adapter.factors[name])
        for name, tensor in adapter.whole.items():
            model.get_parameter(name).copy_(tensor)
