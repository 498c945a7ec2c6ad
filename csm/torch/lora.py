"""LoRA on a `Csm`: each adapted module is replaced by one that holds the same weight and two thin factors beside it.

Tensors have the names and shapes that PEFT gives them, so nothing is renamed on the way in or out. The weights themselves
are frozen, and no gradient of theirs is computed. Sources: LoRA (Hu et al., 2021), rsLoRA (Kalajdzievski, 2023), DoRA (Liu
et al., 2024), whose norm is held constant in the backward pass, as its section 4.3 has it.

Letters in shapes: N rows, r rank, C heads, D what a head reads, V codes, E entries of a table, W its width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.adapters.plan import AdapterPlan, Site
from csm.torch.merge import merge_heads, merge_linear, merge_table, split_heads, stretch
from csm.torch.model import CodebookHeads, Csm, Linear, LowRank, Table

Kept = tuple[Tensor, nn.Parameter | None]  # the base's weight and bias while a module is merged


class Factor(nn.Module):
    """One of the two factors, called `lora_A.weight` or `lora_B.weight`."""

    bias: nn.Parameter | None

    def __init__(self, rows: int, columns: int, like: Tensor, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, columns, device=like.device, dtype=like.dtype))
        made = nn.Parameter(torch.zeros(rows, device=like.device, dtype=like.dtype)) if bias else None
        self.register_parameter("bias", made)


class _LowRankLinears(torch.autograd.Function):
    """rows @ weight.T + scale * (rows @ a.T) @ b.T of several linears over the same rows, in as few passes over memory as
    torch has: one over the rows for all a, one sum for the gradient of the rows, and none for that of the weights."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scales: tuple[float, ...], *parts: Tensor) -> tuple[Tensor, ...]:
        flat, kind = rows.reshape(-1, rows.shape[-1]), rows.dtype
        weights, downs, ups = parts[::3], parts[1::3], parts[2::3]
        low = flat @ torch.cat(downs).to(kind).t()
        each = low.split([len(a) for a in downs], 1)
        outs = [
            (flat @ weight.to(kind).t()).addmm_(part, b.to(kind).t(), alpha=scale)
            for weight, part, b, scale in zip(weights, each, ups, scales, strict=True)
        ]
        ctx.save_for_backward(flat, low, *parts)
        ctx.scales, ctx.shape = scales, rows.shape
        return tuple(out.view(*rows.shape[:-1], -1) for out in outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        flat, low, *parts = ctx.saved_tensors
        weights, downs, ups = parts[::3], parts[1::3], parts[2::3]
        ranks, kind = [len(a) for a in downs], flat.dtype
        slopes = [grad.reshape(len(flat), -1) for grad in grads]
        steep = torch.cat(
            [(g @ b.to(kind)).mul_(s) for g, b, s in zip(slopes, ups, ctx.scales, strict=True)], 1
        )  # what the low rows are pulled by, (N, sum of r)
        grad_downs = (steep.t() @ flat).to(downs[0].dtype).split(ranks)
        each = zip(slopes, low.split(ranks, 1), ctx.scales, strict=True)
        grad_ups = [(part.t() @ g).mul_(s).t().to(ups[0].dtype) for g, part, s in each]  # this way round it is faster
        small = [x for pair in zip([None] * len(ups), grad_downs, grad_ups, strict=True) for x in pair]
        if not ctx.needs_input_grad[0]:
            return None, None, *small
        grad_rows = steep @ torch.cat(downs).to(kind)
        for g, weight in zip(slopes, weights, strict=True):
            grad_rows.addmm_(g, weight.to(kind))
        return grad_rows.view(ctx.shape), None, *small


class LoraLinear(Linear):
    """A linear with an adapter: W x + scale * B A dropout(x), with a bias in B where the plan has one.

    With DoRA the sum is scaled, row for row of W, to the learned length `lora_magnitude_vector`.
    """

    def __init__(self, plain: Linear, site: Site, plan: AdapterPlan):
        nn.Module.__init__(self)
        self.weight, self.bias = plain.weight, plain.bias
        outputs, inputs = plain.weight.shape
        self.scale, self.dropout = plan.scale(site), plan.dropout
        self.lora_A = Factor(site.rank, inputs, plain.weight)
        self.lora_B = Factor(outputs, site.rank, plain.weight, plan.has_bias(site))
        self.lora_magnitude_vector: nn.Parameter | None
        lengths = plain.weight.detach().float().norm(dim=1) if plan.dora else None
        made = None if lengths is None else nn.Parameter(lengths.to(plain.weight.dtype))
        self.register_parameter("lora_magnitude_vector", made)
        self.squares = None if lengths is None else lengths.square()
        self.kept: Kept | None = None

    def reset(self, generator: torch.Generator) -> None:
        """A as PEFT draws it, B nothing: the model is the base's until the first update."""
        _draw(self.lora_A.weight, generator)

    def forward(self, rows: Tensor) -> Tensor:
        if self.kept is not None:
            return super().forward(rows)
        a, b, kind = self.lora_A.weight, self.lora_B.weight, rows.dtype
        if self.training and self.dropout:
            low = F.linear(self._dropped(rows), a.to(kind))
            out = F.linear(rows, self.weight.to(kind)) + F.linear(low, b.to(kind) * self.scale)
        else:
            (out,) = _LowRankLinears.apply(rows, (self.scale,), self.weight, a, b)
        if self.lora_magnitude_vector is not None:
            out = out * self._stretched().to(kind)
        bias = self._whole_bias()
        return out if bias is None else out + bias.to(kind)

    @property
    def is_plain(self) -> bool:
        return self.kept is not None and self.bias is None

    def with_others(self, rows: Tensor, *others: Linear) -> tuple[Tensor, ...]:
        linears = [self, *others]
        if not all(isinstance(linear, LoraLinear) and linear._is_simple for linear in linears):
            return super().with_others(rows, *others)
        adapted = cast(list[LoraLinear], linears)
        parts = [x for linear in adapted for x in (linear.weight, linear.lora_A.weight, linear.lora_B.weight)]
        return _LowRankLinears.apply(rows, tuple(linear.scale for linear in adapted), *parts)

    @property
    def _is_simple(self) -> bool:
        """Whether it is W x + scale * B A x and nothing more."""
        dropped = self.training and self.dropout
        return not dropped and self.kept is None and self.lora_magnitude_vector is None and self._whole_bias() is None

    def heads(self, dtype: torch.dtype) -> Tensor:
        plain = super().heads(dtype)
        return (
            plain
            if self.kept is not None or self.lora_magnitude_vector is None
            else plain * self._stretched().to(dtype)
        )

    def low_rank(self, rows: Tensor) -> LowRank | None:
        if self.kept is not None:
            return super().low_rank(rows)
        kind = rows.dtype
        low = F.linear(self._dropped(rows), self.lora_A.weight.to(kind))
        tail = self.lora_B.weight.t()[None].to(kind) * self.scale
        if self.lora_magnitude_vector is not None:
            tail = tail * self._stretched().to(kind)
        bias = self._whole_bias()
        if bias is None:
            return low, tail
        return torch.cat([low, torch.ones_like(low[..., :1])], -1), torch.cat([tail, bias.to(kind)[None, None]], 1)

    def _dropped(self, rows: Tensor) -> Tensor:
        return F.dropout(rows, self.dropout) if self.training and self.dropout else rows

    def _whole_bias(self) -> Tensor | None:
        """The base's bias, if an adapter below left one, and this adapter's."""
        own = None if self.lora_B.bias is None else self.lora_B.bias * self.scale
        return own if self.bias is None else self.bias if own is None else self.bias + own

    def _stretched(self) -> Tensor:
        """(out,): the learned length of each row over its length now, which is found without making the sum."""
        assert self.lora_magnitude_vector is not None
        assert self.squares is not None
        with torch.no_grad():
            a, b = self.lora_A.weight.float(), self.lora_B.weight.float()
            cross = ((self.weight.float() @ a.t()) * b).sum(1)
            own = ((b @ (a @ a.t())) * b).sum(1)
            length = (self.squares + 2 * self.scale * cross + self.scale**2 * own).clamp_min_(0).sqrt_()
        return stretch(self.lora_magnitude_vector.float(), length)

    def merged(self) -> dict[str, Tensor]:
        """What the module is with the adapter taken in, in fp32."""
        state = {name: value.detach() for name, value in self.named_parameters()}
        return merge_linear(state, self.scale)


class LoraHeads(CodebookHeads):
    """The acoustic heads with a low-rank change each. PEFT keeps the side of the codes in A, the input's in B."""

    def __init__(self, plain: CodebookHeads, site: Site, plan: AdapterPlan):
        nn.Module.__init__(self)
        self.weight = plain.weight
        heads, width, outputs = plain.weight.shape
        self.scale, self.dropout = plan.scale(site), plan.dropout
        self.lora_A = Factor(heads * site.rank, outputs, plain.weight)
        self.lora_B = Factor(width, site.rank * heads, plain.weight)
        self.kept: Kept | None = None

    def reset(self, generator: torch.Generator) -> None:
        _draw(self.lora_A.weight, generator)

    def low_rank(self, rows: Tensor) -> LowRank | None:
        if self.kept is not None:
            return None
        down, up = split_heads(self.lora_A.weight, self.lora_B.weight, len(self.weight))
        dropped = F.dropout(rows, self.dropout) if self.training and self.dropout else rows
        return torch.bmm(dropped, down.to(rows.dtype)), up.to(rows.dtype) * self.scale

    def merged(self) -> dict[str, Tensor]:
        state = {name: value.detach() for name, value in self.named_parameters()}
        return merge_heads(state, self.scale)


class LoraTable(Table):
    """An embedding table with an adapter: row i changes by scale * B A[:, i]. A starts at nothing, B is drawn, as PEFT does,
    so that the rows of codes or words that the data lacks stay as they were. There is no input to drop out."""

    def __init__(self, plain: Table, site: Site, plan: AdapterPlan):
        nn.Module.__init__(self)
        self.weight = plain.weight
        entries, width = plain.weight.shape
        self.scale = plan.scale(site)
        self.lora_embedding_A = nn.Parameter(plain.weight.new_zeros(site.rank, entries))
        self.lora_embedding_B = nn.Parameter(plain.weight.new_zeros(width, site.rank))
        self.kept: Kept | None = None

    def reset(self, generator: torch.Generator) -> None:
        drawn = torch.randn(self.lora_embedding_B.shape, generator=generator)
        self.lora_embedding_B.data.copy_(drawn)

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        if self.kept is not None:
            return rows
        low = F.embedding(ids, self.lora_embedding_A.t())
        return rows + F.linear(low, self.lora_embedding_B * self.scale)

    def merged(self) -> dict[str, Tensor]:
        state = {name: value.detach() for name, value in self.named_parameters()}
        return merge_table(state, self.scale)


class Adapted(Protocol):
    """What the three have in common."""

    weight: nn.Parameter
    kept: Kept | None

    def reset(self, generator: torch.Generator) -> None: ...

    def merged(self) -> dict[str, Tensor]: ...


_MADE_BY_KIND: dict[str, Any] = {"linear": LoraLinear, "heads": LoraHeads, "table": LoraTable}


def attach(model: Csm, plan: AdapterPlan, seed: int = 0) -> None:
    """Freeze the model and put an adapter on each site of the plan; it computes what it did before.

    Args:
        seed: of the drawn factors.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for site in plan.sites:
        parent, _, name = site.path.rpartition(".")
        owner = model.get_submodule(parent)
        made = _MADE_BY_KIND[site.kind](getattr(owner, name), site, plan)
        made.train(model.training)
        made.reset(generator)
        setattr(owner, name, made)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter_name(name))


def is_adapter_name(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora_" in name


def adapter_state(model: Csm) -> dict[str, Tensor]:
    """The adapters' tensors by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if is_adapter_name(name)}


def adapted_modules(model: Csm) -> Iterator[Adapted]:
    for module in model.modules():
        if isinstance(module, LoraLinear | LoraHeads | LoraTable):
            yield cast(Adapted, module)


@torch.no_grad()
def merge(model: Csm) -> None:
    """Take the adapters into the weights; the base's own are kept aside."""
    for module in adapted_modules(model):
        if module.kept is not None:
            continue
        state, dtype = module.merged(), module.weight.dtype
        module.kept = module.weight.data, getattr(module, "bias", None)
        module.weight.data = state["weight"].to(dtype)
        if isinstance(module, LoraLinear) and "bias" in state:
            module.bias = nn.Parameter(state["bias"].to(dtype), requires_grad=False)


def unmerge(model: Csm) -> None:
    """Put the base's weights back, the same bits; the adapters work beside them again."""
    for module in adapted_modules(model):
        if module.kept is None:
            continue
        (module.weight.data, bias), module.kept = module.kept, None
        if isinstance(module, LoraLinear):
            module.bias = bias


def _draw(weight: Tensor, generator: torch.Generator) -> None:
    """Uniform within 1 / sqrt(columns), as PEFT starts A."""
    bound = 1 / math.sqrt(weight.shape[1])
    weight.data.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
