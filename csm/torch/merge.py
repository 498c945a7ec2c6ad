"""An adapter added to the weights it was trained on. Sources: Hu et al. 2021 (LoRA), Liu et al. 2024 (DoRA), and peft for
the acoustic heads, one low-rank change each, kept side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csm.adapters import TABLES, Adapter, Pair
from csm.errors import CsmError


def delta(name: str, pair: Pair, shape: torch.Size) -> Tensor:
    """What the pair adds to the parameter `name`, in fp32."""
    a, b = pair.a.float(), pair.b.float()
    if len(shape) == 2:
        change = b @ a
        return pair.scale * (change.t() if name in TABLES else change)
    heads = shape[0]
    a, b = a.reshape(heads, pair.rank, -1), b.reshape(len(b), pair.rank, heads)
    straight = (b.shape[0], a.shape[2]) == tuple(shape[1:])
    return pair.scale * torch.einsum("ore,eri->eoi" if straight else "ore,eri->eio", b, a)


def merged(name: str, weight: Tensor, pair: Pair) -> Tensor:
    """The parameter with the adapter in it, computed in fp32, in the weight's own dtype."""
    whole = weight.float() + delta(name, pair, weight.shape)
    if pair.magnitude is not None:
        whole = whole * (pair.magnitude.float() / whole.norm(dim=1))[:, None]
    return whole.to(weight.dtype)


def merge(weights: dict[str, Tensor], adapter: Adapter, source: str) -> dict[str, Tensor]:
    """`weights` (transformers' names) with the adapter in them.

    Raises:
        CsmError: the adapter carries tensors of its base, and they are not these.
    """
    foreign = [n for n, t in adapter.carried.items() if not torch.equal(t.float(), weights[n].float())]
    if foreign:
        raise CsmError(
            f"{source} was trained on another base: its copies of {', '.join(foreign)} differ from this model's."
        )
    changed = {name: merged(name, weights[name], pair) for name, pair in adapter.pairs.items()}
    replaced = {name: tensor.to(weights[name].dtype) for name, tensor in adapter.whole.items()}
    return {**weights, **replaced, **changed}
