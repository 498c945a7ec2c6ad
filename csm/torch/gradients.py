"""Gradients of several processes made one: dense ones bucket by bucket, those of tables by the rows that anyone has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

BUCKET_BYTES = 64 << 20  # summed at a time

Extent = np.ndarray | bool  # what a gradient covers: all of its parameter, nothing, or some rows (n,), ascending


def extents(parameters: Sequence[nn.Parameter]) -> list[Extent]:
    """What each parameter's gradient covers in this process."""
    found: list[Extent] = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            found.append(parameter.grad.indices()[0].cpu().numpy())
        else:
            found.append(parameter.grad is not None)
    return found


def joined(each: Sequence[Extent]) -> Extent:
    """What the sum of gradients of one parameter covers."""
    rows = [extent for extent in each if isinstance(extent, np.ndarray)]
    return np.unique(np.concatenate(rows)) if rows else any(bool(extent) for extent in each)


def sum_gradients(
    parameters: Sequence[nn.Parameter], covered: Sequence[Extent], add_up: Callable[[Tensor], None]
) -> None:
    """Make each gradient the sum of all processes'.

    Args:
        parameters: the same in each process.
        covered: of each, what the sum covers: the same in each process.
        add_up: adds the other processes' values to a flat tensor.
    """
    pairs = [(p, extent) for p, extent in zip(parameters, covered, strict=True) if extent is not False]
    for bucket in _buckets(pairs):
        parts = [_dense(p, extent) for p, extent in bucket]
        flat = torch.cat([part.flatten() for part in parts])
        add_up(flat)
        for (parameter, extent), own, part in zip(bucket, parts, flat.split([x.numel() for x in parts]), strict=True):
            values = part.view_as(own)
            if isinstance(extent, np.ndarray):
                rows = torch.from_numpy(extent).to(values.device)[None]
                values = torch.sparse_coo_tensor(
                    rows, values, parameter.shape, is_coalesced=True, check_invariants=False
                )
            parameter.grad = values


def _dense(parameter: nn.Parameter, extent: Extent) -> Tensor:
    """This process's gradient over what is covered, zero where it has none."""
    grad = parameter.grad
    if not isinstance(extent, np.ndarray):
        return torch.zeros_like(parameter) if grad is None else grad
    out = parameter.new_zeros(len(extent), *parameter.shape[1:])
    if grad is not None:
        rows = torch.from_numpy(extent).to(out.device)
        out.index_copy_(0, torch.searchsorted(rows, grad.indices()[0]), grad.values())
    return out


def _buckets(pairs: Sequence[tuple[nn.Parameter, Extent]]) -> Iterator[list[tuple[nn.Parameter, Extent]]]:
    bucket: list[tuple[nn.Parameter, Extent]] = []
    size = 0
    for parameter, extent in pairs:
        share = len(extent) / len(parameter) if isinstance(extent, np.ndarray) else 1
        if bucket and (size + share * parameter.nbytes > BUCKET_BYTES or parameter.dtype != bucket[0][0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append((parameter, extent))
        size += int(share * parameter.nbytes)
    if bucket:
        yield bucket
