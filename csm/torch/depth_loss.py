"""The depth decoder's loss, a piece of the frames after the other: forward and, at once, backward.

So no more than one piece's activations are ever kept, and pieces are so small that the allocator hands the same memory out
again. Letters in shapes as in `csm.torch.model`; S frames train the depth decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.torch.kernels import cross_entropy_each, cross_entropy_slopes
from csm.torch.model import DepthDecoder

FRAMES_CPU, FRAMES = 64, 1024  # frames that pass the depth decoder together

Gradients = list[Tensor | None]


def depth_loss(decoder: DepthDecoder, states: Tensor, table: Tensor, at: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross entropies of codes 1..K-1 of S frames, a scalar with a gradient; backward goes through it once.

    Args:
        states: (S, W) the backbone's states before the frames.
        table: (U, W) rows of the audio table; `at` (S, K) says which is where.
        targets: (S, K) the codes.
    """
    heads = decoder.codebooks_head.heads(states.dtype)
    apart = {id(decoder.model.embed_tokens.weight), id(decoder.codebooks_head.weight)}
    learned = [p for p in decoder.parameters() if p.requires_grad and id(p) not in apart]
    return _DepthLoss.apply(decoder, at, targets, states, table, heads, *learned)


@torch.no_grad()
def depth_losses_each(decoder: DepthDecoder, states: Tensor, table: Tensor, at: Tensor, targets: Tensor) -> Tensor:
    """The same losses one by one, (S, K - 1), without gradients."""
    heads, found = decoder.codebooks_head.heads(states.dtype), [states.new_empty(0, at.shape[1] - 1)]
    for part in pieces(states):
        rows = head_rows(decoder, states[part], _embedded(table, at[part], states.dtype))
        added = decoder.codebooks_head.low_rank(rows)
        found.append(cross_entropy_each(rows, heads, targets[part, 1:].t(), added).t())
    return torch.cat(found)


def head_rows(decoder: DepthDecoder, states: Tensor, embedded: Tensor) -> Tensor:
    """States (n, W) and embedded codes 0..K-2 (n, K - 1, W) -> what the heads read, (K - 1, n, D)."""
    out = decoder.model(torch.cat([states[:, None], embedded], 1))
    return out[:, 1:].transpose(0, 1).contiguous()


def pieces(states: Tensor) -> Iterator[slice]:
    together = FRAMES_CPU if states.device.type == "cpu" else FRAMES
    for start in range(0, len(states), together):
        yield slice(start, start + together)


def _embedded(table: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    return F.embedding(at[:, :-1], table).to(dtype)


class _DepthLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        decoder: DepthDecoder,
        at: Tensor,
        targets: Tensor,
        states: Tensor,
        table: Tensor,
        heads: Tensor,
        *learned: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[3:6]
        made: Gradients = [
            torch.zeros_like(x) if w else None for x, w in zip((states, table, heads), wanted, strict=True)
        ]
        sums: Gradients = [None] * len(learned)
        total = states.new_zeros((), dtype=torch.float32)
        for part in pieces(states):
            leaves = [states[part].detach(), _embedded(table.detach(), at[part], states.dtype)]
            for leaf, want in zip(leaves, wanted, strict=False):
                leaf.requires_grad_(want)
            loss, found = _piece(decoder, leaves, heads, targets[part, 1:].t(), made[2], learned)
            total += loss
            if made[0] is not None:
                made[0][part] = found[0]
            if made[1] is not None:
                made[1].index_add_(0, at[part, :-1].flatten(), found[1].flatten(0, 1).to(table.dtype))
            sums = [_sum(old, new) for old, new in zip(sums, found[2:], strict=True)]
        ctx.grads = [*made, *sums]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # let go, so that autograd takes them over without a copy
        return None, None, None, *(None if made is None else made.mul_(grad) for made in grads)


def _piece(
    decoder: DepthDecoder,
    leaves: Sequence[Tensor],
    heads: Tensor,
    targets: Tensor,
    grad_heads: Tensor | None,
    learned: Sequence[Tensor],
) -> tuple[Tensor, list[Any]]:
    """The loss of some frames and its gradients for `leaves` (states and embedded codes) and `learned`; that for the heads
    is added to `grad_heads`."""
    with torch.enable_grad():
        rows = head_rows(decoder, *leaves)
        added = decoder.codebooks_head.low_rank(rows)
    roots = [rows, *(added or ())]
    slopes = [torch.zeros_like(root) if root.requires_grad else None for root in roots]
    for_low = slopes[1:] or [None, None]
    loss = cross_entropy_slopes(rows, heads, targets, added, slopes[0], grad_heads, *for_low)
    inputs = [x for x in (*leaves, *learned) if x.requires_grad]
    roots = [root for root in roots if root.requires_grad]
    if not inputs or not roots:
        return loss, [None] * (len(leaves) + len(learned))
    given = [slope for slope in slopes if slope is not None]
    grads = iter(torch.autograd.grad(roots, inputs, given, allow_unused=True))
    return loss, [next(grads) if x.requires_grad else None for x in (*leaves, *learned)]


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old.add_(new)
