"""An adapter added to the weights it was trained on, in fp32. Sources: Hu et al., 2021 (LoRA); Liu et al., 2024 (DoRA); PEFT
for the acoustic heads, one low-rank change each, kept side by side.

A module's state has its tensors by the names of `AdapterPlan.tensor_shapes` without the path: `weight`, `lora_A.weight`, ...
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from csm.adapters.adapter import Adapter


def merge_tensors(tensors: dict[str, Tensor], adapter: Adapter) -> None:
    """Take an adapter into those of a model's tensors that are there; they are replaced by fp32, not written over.

    An adapter with biases leaves tensors `....bias` beside the weights.
    """
    tensors |= {name: tensor for name, tensor in adapter.whole.items() if name in tensors}
    for site in adapter.plan.sites:
        prefix = f"{site.path}."
        if f"{prefix}weight" not in tensors:
            continue
        own = {name.removeprefix(prefix): t for name, t in adapter.factors.items() if name.startswith(prefix)}
        own |= {name: tensors[prefix + name] for name in ("weight", "bias") if prefix + name in tensors}
        merged = _BY_KIND[site.kind](own, adapter.plan.scale(site))
        tensors |= {prefix + name: value for name, value in merged.items()}


def merge_linear(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    a, b = state["lora_A.weight"].float(), state["lora_B.weight"].float()
    weight = torch.addmm(state["weight"].float(), b, a, alpha=scale)
    if "lora_magnitude_vector" in state:
        weight *= stretch(state["lora_magnitude_vector"].float(), weight.norm(dim=1))[:, None]
    found = {"weight": weight}
    biases = [state["bias"].float()] if "bias" in state else []
    biases += [state["lora_B.bias"].float() * scale] if "lora_B.bias" in state else []
    return found | ({"bias": torch.stack(biases).sum(0)} if biases else {})


def stretch(wanted: Tensor, length: Tensor) -> Tensor:
    """What rows of a length are multiplied by to have the length that is wanted; rows of zeros stay what they are."""
    return torch.where(length > 0, wanted / length.where(length > 0, 1.0), 1.0)


def merge_heads(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    weight = state["weight"].float()
    down, up = split_heads(state["lora_A.weight"].float(), state["lora_B.weight"].float(), len(weight))
    return {"weight": torch.baddbmm(weight, down, up, alpha=scale)}


def merge_table(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    a, b = state["lora_embedding_A"].float(), state["lora_embedding_B"].float()
    return {"weight": torch.addmm(state["weight"].float(), a.t(), b.t(), alpha=scale)}


def split_heads(a: Tensor, b: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """PEFT's A (C * r, V) and B (D, r * C) -> what goes down (C, D, r) and up again (C, r, V), head by head."""
    return b.view(len(b), -1, heads).permute(2, 0, 1), a.view(heads, -1, a.shape[-1])


_BY_KIND = {"linear": merge_linear, "heads": merge_heads, "table": merge_table}
