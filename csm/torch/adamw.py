"""AdamW (Loshchilov and Hutter, 2019) that visits no row of a table that no example has touched.

Such a row has no gradient, no momenta and, in a group without decay, no update: leaving it out changes nothing. A row that
was touched once is visited at every update from then on, as momenta want it. So the momenta of a table of 128,000 words are
as large as the words of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

ROWS_AT_ONCE = 1024


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW; in groups with `by_row` set, whose gradients are sparse, the state has `rows` (n,), ascending,
    and momenta of these alone."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients; those of tables are used up."""
        for group in self.param_groups:
            for table in group["params"] if group["by_row"] else ():
                if table.grad is not None:
                    rows, slopes = row_gradient(table.grad)
                    table.grad = None
                    self._take_up(table, rows)
                    self._update_rows(table, rows, slopes, group)
        super().step(closure)

    def _take_up(self, table: Tensor, rows: Tensor) -> None:
        """Give rows without momenta theirs."""
        state = self.state[table]
        if not state:
            nothing = table.new_zeros(0, table.shape[1])
            state.update(step=torch.zeros((), device=table.device), rows=rows[:0], exp_avg=nothing, exp_avg_sq=nothing)
        known, every = state["rows"], torch.unique(torch.cat([state["rows"], rows]))
        if len(every) == len(known):
            return
        at = torch.searchsorted(every, known)
        state["rows"] = every
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = table.new_zeros(len(every), table.shape[1]).index_copy_(0, at, state[key])

    def _update_rows(self, table: Tensor, rows: Tensor, slopes: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[table], group["betas"]
        at = torch.searchsorted(state["rows"], rows)
        for start in range(0, len(state["rows"]), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            chosen = state["rows"][part]
            first, last = torch.searchsorted(at, torch.tensor([start, start + len(chosen)], device=at.device)).tolist()
            weights = table[chosen]
            grad = torch.zeros_like(weights).index_copy_(0, at[first:last] - start, slopes[first:last])
            momenta = [state["exp_avg"][part]], [state["exp_avg_sq"][part]]
            adamw(
                [weights], [grad], *momenta, [], [state["step"].clone()], fused=True, amsgrad=False, maximize=False,
                beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=0.0, eps=group["eps"],
            )  # fmt: skip
            table.index_copy_(0, chosen, weights)
        state["step"] += 1


def row_gradient(grad: Tensor) -> tuple[Tensor, Tensor]:
    """A table's gradient, dense or sparse -> rows that have one, ascending, and their gradients (n, width)."""
    if grad.is_sparse:
        grad = grad.coalesce()
        return grad.indices()[0], grad.values()
    rows = grad.any(1).nonzero()[:, 0]
    return rows, grad[rows]


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale all gradients down to a norm of at most `limit`, 0 for any; the norm before it."""
    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            grads.append(parameter.grad.values())
        else:
            grads.append(parameter.grad)
    norm = nn.utils.get_total_norm(grads)
    if limit and norm + 1e-6 > limit:
        torch._foreach_mul_(grads, limit / (norm + 1e-6))
    return float(norm)
