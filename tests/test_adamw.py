"""AdamW by rows is AdamW: beside torch's own over dense gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from csm.torch import adamw
from csm.torch.adamw import AdamW, clip_gradients

ENTRIES, WIDTH, RATE = 40, 16, 1e-2


def gradient(step: int) -> Tensor:
    """A sparse gradient of some rows, one of them read twice."""
    draw = torch.Generator().manual_seed(step)
    rows = torch.randint(0, ENTRIES // 2, (5,), generator=draw) * 2
    rows = torch.cat([rows, rows[:1]])
    return torch.sparse_coo_tensor(
        rows[None], torch.randn(6, WIDTH, generator=draw), (ENTRIES, WIDTH), check_invariants=True
    )


def by_row(table: Tensor) -> AdamW:
    return AdamW([dict(params=[table], by_row=True, weight_decay=0.0)], lr=RATE, fused=True)


@pytest.mark.parametrize("at_once", [1, 3, 1024])
@pytest.mark.parametrize("dense", [False, True])
def test_rows_are_updated_as_torch_updates_all(monkeypatch: pytest.MonkeyPatch, at_once: int, dense: bool) -> None:
    """Rows that come, stay away and come again; the momenta are torch's, and rows that never come have none."""
    monkeypatch.setattr(adamw, "ROWS_AT_ONCE", at_once)
    start = torch.randn(ENTRIES, WIDTH, generator=torch.Generator().manual_seed(0))
    ours, plain = (start.clone().requires_grad_() for _ in range(2))
    mine, its = by_row(ours), torch.optim.AdamW([plain], lr=RATE, weight_decay=0.0, fused=True)
    for step in range(8):
        ours.grad = gradient(step).to_dense() if dense else gradient(step)
        plain.grad = gradient(step).to_dense()
        mine.step()
        its.step()
        assert ours.grad is None
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
    state, other = mine.state[ours], its.state[plain]
    assert state["step"] == 8
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(state[key], other[key][state["rows"]], rtol=1e-6, atol=1e-9)
    apart = torch.ones(ENTRIES, dtype=torch.bool).index_fill_(0, state["rows"], False)
    assert apart.sum() >= ENTRIES // 2
    assert not other["exp_avg_sq"][apart].any()
    assert torch.equal(ours[apart], start[apart])


def test_state_goes_on_bit_for_bit() -> None:
    one = torch.ones(ENTRIES, WIDTH).requires_grad_()
    first = by_row(one)
    for step in range(3):
        one.grad = gradient(step)
        first.step()
    two = one.detach().clone().requires_grad_()
    second = by_row(two)
    second.state[two] = copy.deepcopy(first.state[one])
    for table, optimizer in ((one, first), (two, second)):
        for step in range(3, 6):
            table.grad = gradient(step)
            optimizer.step()
    assert torch.equal(one, two)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e9])
def test_clipping_is_torchs(limit: float) -> None:
    tables = [torch.zeros(ENTRIES, WIDTH).requires_grad_() for _ in range(2)]
    others = [torch.zeros(7, 3).requires_grad_() for _ in range(2)]
    tables[0].grad, tables[1].grad = gradient(1), gradient(1).to_dense()
    for other in others:
        other.grad = torch.full((7, 3), 2.0)
    ours = clip_gradients([tables[0], others[0]], limit)
    plain = torch.nn.utils.clip_grad_norm_([tables[1], others[1]], limit or float("inf"))
    assert ours == pytest.approx(plain.item(), rel=1e-6)
    torch.testing.assert_close(tables[0].grad.to_dense(), tables[1].grad)
    torch.testing.assert_close(others[0].grad, others[1].grad)
