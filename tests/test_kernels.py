"""The hand-written derivatives of `csm.torch.kernels` against plain autograd, for every set of inputs that wants one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csm.torch import kernels
from csm.torch.kernels import cross_entropy_each, cross_entropy_sum, feed_forward, rms_norm, rotate

Operation = Callable[..., Tensor]


def subsets(inputs: int) -> list[tuple[bool, ...]]:
    """Every choice of inputs that want a gradient, but none at all."""
    return [wanted for wanted in product((True, False), repeat=inputs) if any(wanted)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def gradients(operation: Operation, inputs: list[Tensor], wanted: tuple[bool, ...]) -> list[Tensor]:
    """The result, then the gradients of its weighted sum for the wanted inputs."""
    leaves = [x.detach().clone().requires_grad_(want) for x, want in zip(inputs, wanted, strict=True)]
    result = operation(*leaves)
    (result * normal(*result.shape, seed=9).to(result.dtype)).sum().backward()
    for leaf, want in zip(leaves, wanted, strict=True):
        assert (leaf.grad is not None) == want
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_alike(ours: Operation, plain: Operation, inputs: list[Tensor], wanted: tuple[bool, ...]) -> None:
    """fp32 results and gradients agree within 1e-6 of the largest value."""
    exact = gradients(plain, [x.double() for x in inputs], wanted)
    for found, expected in zip(gradients(ours, inputs, wanted), exact, strict=True):
        assert found.dtype == torch.float32
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("wanted", subsets(2))
@pytest.mark.parametrize("shape", [(5, 16), (2, 7, 48)])
def test_rms_norm(shape: tuple[int, ...], wanted: tuple[bool, ...]) -> None:
    def plain(rows: Tensor, weight: Tensor) -> Tensor:
        return rows * (rows.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * weight

    inputs = [normal(*shape), normal(shape[-1]) + 1]
    assert_alike(lambda rows, weight: rms_norm(rows, weight, 1e-3), plain, inputs, wanted)


def test_rms_norm_survives_zeros_and_large_rows() -> None:
    rows = torch.stack([torch.zeros(8), torch.full((8,), 1e15), torch.full((8,), 1e-15)]).requires_grad_()
    out = rms_norm(rows, torch.ones(8), 1e-5)
    out.sum().backward()
    torch.testing.assert_close(out[:2], torch.tensor([[0.0] * 8, [1.0] * 8]))
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()


@pytest.mark.parametrize("head_dim", [2, 12])
def test_rotate(head_dim: int) -> None:
    angle = normal(6, 1, head_dim // 2).double()
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)

    def plain(heads: Tensor) -> Tensor:
        low, high = heads.chunk(2, -1)
        c, s = angle.cos(), angle.sin()
        return torch.cat([low * c - high * s, high * c + low * s], -1)

    heads = [normal(3, 6, 4, head_dim)]
    assert_alike(lambda x: rotate(x, cos.float(), sin.float()), plain, heads, (True,))
    turned = rotate(heads[0], cos.float(), sin.float())
    torch.testing.assert_close(turned.norm(dim=-1), heads[0].norm(dim=-1))


@pytest.mark.parametrize("wanted", subsets(4))
@pytest.mark.parametrize("shape", [(5, 16), (2, 7, 16)])
def test_feed_forward(shape: tuple[int, ...], wanted: tuple[bool, ...]) -> None:
    def plain(rows: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down)

    inputs = [normal(*shape), normal(24, 16, seed=1) / 4, normal(24, 16, seed=2) / 4, normal(16, 24, seed=3) / 5]
    assert_alike(feed_forward, plain, inputs, wanted)


@pytest.mark.parametrize("wanted", subsets(2))
@pytest.mark.parametrize("logit_rows", [1, 4, 512])
def test_cross_entropy_sum(monkeypatch: pytest.MonkeyPatch, logit_rows: int, wanted: tuple[bool, ...]) -> None:
    """Whether heads are taken together, one by one, or in spans of rows."""
    monkeypatch.setattr(kernels, "LOGIT_ROWS_CPU", logit_rows)
    targets = torch.randint(0, 11, (3, 10), generator=torch.Generator().manual_seed(0))

    def plain(rows: Tensor, heads: Tensor) -> Tensor:
        return F.cross_entropy((rows @ heads).flatten(0, 1), targets.flatten(), reduction="sum")

    inputs = [normal(3, 10, 8), normal(3, 8, 11)]
    assert_alike(lambda rows, heads: cross_entropy_sum(rows, heads, targets), plain, inputs, wanted)


def test_cross_entropy_sum_takes_a_transposed_head_and_a_weight() -> None:
    """As codebook 0 calls it: one head, the transpose of a Linear's weight, the sum weighted afterwards."""
    targets = torch.randint(0, 11, (1, 10), generator=torch.Generator().manual_seed(0))

    def plain(rows: Tensor, weight: Tensor) -> Tensor:
        return 0.25 * F.cross_entropy(rows @ weight.t(), targets[0], reduction="sum")

    def ours(rows: Tensor, weight: Tensor) -> Tensor:
        return 0.25 * cross_entropy_sum(rows[None], weight.t()[None], targets)

    assert_alike(ours, plain, [normal(10, 8), normal(11, 8)], (True, True))


def test_cross_entropy_of_sure_and_of_lost_rows() -> None:
    """Logits whose probabilities leave fp32 give a finite loss: 0 where they are right, the gap where they are wrong."""
    rows, heads = torch.eye(2)[None] * 300, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    targets = torch.tensor([[0, 1]])
    assert cross_entropy_each(rows, heads, targets).tolist() == [[0.0, 300.0]]
    assert cross_entropy_sum(rows, heads, targets).item() == 300.0


@pytest.mark.parametrize("logit_rows", [1, 4, 512])
def test_cross_entropy_each(monkeypatch: pytest.MonkeyPatch, logit_rows: int) -> None:
    monkeypatch.setattr(kernels, "LOGIT_ROWS_CPU", logit_rows)
    rows, heads = normal(3, 10, 8), normal(3, 8, 11)
    targets = torch.randint(0, 11, (3, 10), generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy((rows @ heads).flatten(0, 1), targets.flatten(), reduction="none").view(3, 10)
    torch.testing.assert_close(cross_entropy_each(rows, heads, targets), expected)


@pytest.mark.parametrize("operation", ["norm", "rotate", "feed forward", "cross entropy"])
def test_bf16_stays_near_fp32(operation: str) -> None:
    """bf16 in, bf16 gradients out, each within a hundredth of the largest fp32 value."""
    cos = normal(4, 1, 16)
    targets = torch.randint(0, 11, (2, 4), generator=torch.Generator().manual_seed(0))
    calls: dict[str, tuple[Operation, list[Tensor]]] = {
        "norm": (lambda rows, weight: rms_norm(rows, weight, 1e-5), [normal(4, 16), normal(16) + 1]),
        "rotate": (lambda heads: rotate(heads, cos.to(heads.dtype), cos.to(heads.dtype)), [normal(2, 4, 3, 16)]),
        "feed forward": (
            feed_forward,
            [normal(4, 16), normal(24, 16, seed=1) / 4, normal(24, 16, seed=2) / 4, normal(16, 24, seed=3) / 5],
        ),
        "cross entropy": (
            lambda rows, heads: cross_entropy_sum(rows, heads, targets),
            [normal(2, 4, 16), normal(2, 16, 11) / 4],
        ),
    }
    call, inputs = calls[operation]
    wanted = (True,) * len(inputs)
    low = gradients(call, [x.bfloat16() for x in inputs], wanted)
    for found, expected in zip(low, gradients(call, [x.bfloat16().float() for x in inputs], wanted), strict=True):
        assert found.dtype in (torch.bfloat16, torch.float32)
        assert (found.float() - expected).abs().max() <= 0.02 * expected.abs().max()
