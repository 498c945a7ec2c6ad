"""The few operations whose plain autograd form keeps or moves more memory than it needs: norm, rotary positions, SwiGLU
and the heads' cross entropy.

Each is a `torch.autograd.Function` with its derivative written out in as few passes over memory as torch has. Checked
against the plain form in tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOGIT_ROWS_CPU, LOGIT_ROWS = 512, 8192  # rows of logits alive at once; on CPU they stay in the second-level cache


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(rows.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(rows, weight, scale)
        return (rows * scale).to(rows.dtype).mul_(weight.to(rows.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight, scale = ctx.saved_tensors
        wide, gain, grad = rows.float(), weight.float(), grad.float()
        product = grad * wide
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (scale.flatten() @ product.flatten(0, -2)).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        shared = (product @ gain)[..., None] * scale.square().div_(rows.shape[-1])
        grad_rows = (grad * gain).addcmul_(wide, shared, value=-1).mul_(scale)
        return grad_rows.to(rows.dtype), grad_weight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return heads.roll(heads.shape[-1] // 2, -1).mul_(sin).addcmul_(heads, cos)


class _FeedForward(torch.autograd.Function):
    """Keeps what comes out of gate and up; what goes into `down` is computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gated, raised = rows @ gate.t(), rows @ up.t()
        ctx.save_for_backward(rows, gate, up, down, gated, raised)
        return F.silu(gated).mul_(raised) @ down.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate, up, down, gated, raised = ctx.saved_tensors
        wants_rows, wants_gate, wants_up, wants_down = ctx.needs_input_grad
        bent = F.silu(gated)
        grad_down = grad.t() @ (bent * raised) if wants_down else None
        grad_inner = grad @ down
        grad_raised = bent.mul_(grad_inner)
        grad_gated = grad_inner.mul_(raised)
        torch.ops.aten.silu_backward.grad_input(grad_gated, gated, grad_input=grad_gated)
        return (
            (grad_gated @ gate).addmm_(grad_raised, up) if wants_rows else None,
            grad_gated.t() @ rows if wants_gate else None,
            grad_raised.t() @ rows if wants_up else None,
            grad_down,
        )


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = grad * up
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate, F.silu(gate).mul_(grad)


class _CrossEntropy(torch.autograd.Function):
    """Sum of cross entropies over several heads; gradients are made beside the loss, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, heads: Tensor, targets: Tensor, low: Tensor | None = None, tail: Tensor | None = None
    ) -> Tensor:
        ctx.grads = [
            x.new_zeros(x.shape)
            if wanted and x is not None
            else None  # row-major: bf16 has a fast product for no other
            for x, wanted in zip((rows, heads, None, low, tail), ctx.needs_input_grad, strict=True)
        ]
        added = None if low is None or tail is None else (low, tail)
        return cross_entropy_slopes(rows, heads, targets, added, *ctx.grads[:2], *ctx.grads[3:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # let go, so that autograd takes them over without a copy
        return tuple(None if made is None else made.mul_(grad) for made in grads)


@torch.no_grad()
def cross_entropy_slopes(
    rows: Tensor,
    heads: Tensor,
    targets: Tensor,
    added: tuple[Tensor, Tensor] | None,
    grad_rows: Tensor | None = None,
    grad_heads: Tensor | None = None,
    grad_low: Tensor | None = None,
    grad_tail: Tensor | None = None,
) -> Tensor:
    """`cross_entropy_sum`, with its gradients for rows and low written into what is given, those for heads and tail added."""
    total = rows.new_zeros((), dtype=torch.float32)
    for which, part in _pieces(rows):
        read, head, picked = rows[which, part], heads[which], targets[which, part, None]
        scores = torch.bmm(read, head)
        if added:
            scores.baddbmm_(added[0][which, part], added[1][which])
        scores = scores.float().log_softmax(-1)
        total -= scores.gather(-1, picked).sum()
        if grad_rows is grad_heads is grad_low is grad_tail:  # none of them
            continue
        slope = scores.exp_()
        slope.scatter_add_(-1, picked, slope.new_full((), -1.0).expand(picked.shape))
        slope = slope.to(rows.dtype)
        if grad_rows is not None:
            torch.bmm(slope, head.transpose(1, 2), out=grad_rows[which, part])
        if grad_heads is not None:
            grad_heads[which].baddbmm_(read.transpose(1, 2), slope, beta=1)
        if added and grad_low is not None:
            torch.bmm(slope, added[1][which].transpose(1, 2), out=grad_low[which, part])
        if added and grad_tail is not None:
            grad_tail[which].baddbmm_(added[0][which, part].transpose(1, 2), slope, beta=1)
    return total


def _pieces(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and of rows, so few at a time that their logits are about as many rows as allowed."""
    heads, length = rows.shape[:2]
    limit = LOGIT_ROWS_CPU if rows.device.type == "cpu" else LOGIT_ROWS
    together = max(1, limit // max(1, length))
    for head in range(0, heads, together):
        for start in range(0, length, limit):
            yield slice(head, head + together), slice(start, start + limit)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., width) -> (..., width), computed in fp32."""
    return _RmsNorm.apply(rows, weight, eps)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021) in the half-split convention; heads (B, T, heads, head_dim).

    `cos` and `sin` are `(T, 1, head_dim)`; sin carries the minus of the half that is rotated down.
    """
    return _Rotate.apply(heads, cos, sin)


def feed_forward(rows: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """SwiGLU (Shazeer, 2020): (..., width) -> (..., width) through silu(gate rows) * (up rows).

    Args:
        rows: (..., width).
        gate, up: (inner, width), of the rows' dtype, as is `down` (width, inner).
    """
    return _FeedForward.apply(rows.flatten(0, -2), gate, up, down).view_as(rows)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, elementwise: the middle of `feed_forward`, where its matrices have adapters."""
    return _SwiGlu.apply(gate, up)


def cross_entropy_sum(
    rows: Tensor, heads: Tensor, targets: Tensor, added: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Sum of cross entropies over heads C and rows N, without keeping the logits; backward goes through it once.

    Args:
        rows: (C, N, D) what each head reads.
        heads: (C, D, V).
        targets: (C, N) int64.
        added: (C, N, r) and (C, r, V), whose product is added to the logits.

    Returns:
        a scalar in fp32.
    """
    return _CrossEntropy.apply(rows, heads, targets, *(added or (None, None)))


@torch.no_grad()
def cross_entropy_each(
    rows: Tensor, heads: Tensor, targets: Tensor, added: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """The same losses one by one, (C, N) fp32, without gradients."""
    losses = torch.empty(targets.shape, dtype=torch.float32, device=rows.device)
    for which, part in _pieces(rows):
        scores = torch.bmm(rows[which, part], heads[which])
        if added:
            scores.baddbmm_(added[0][which, part], added[1][which])
        scores = scores.float().log_softmax(-1)
        losses[which, part] = -scores.gather(-1, targets[which, part, None]).squeeze(-1)
    return losses
