"""Which parts of two models differ, and by how much: the norm of the change over the norm of what it changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from csm.errors import CsmError
from csm.model_folder import ModelFolder
from csm.torch.checkpoint import read_tensors
from csm.torch.trainer import group_of
from csm.weights import check_shapes, parameter_shapes

CODEC = "codec"


@dataclass(frozen=True)
class Change:
    """One tensor's change: its group, the squared norms of tensor and change, and the largest single change."""

    name: str
    group: str
    square: float
    change_square: float
    largest: float
    differs: bool

    @property
    def relative(self) -> float | None:
        """None where something came of nothing."""
        return _relative(self.change_square, self.square)


def differences(one: ModelFolder, two: ModelFolder) -> list[Change]:
    """Every tensor of `two` against `one`'s, in fp64, read one at a time; the codec's too.

    Raises:
        CsmError: the two are of different shape; every tensor at fault is named.
    """
    check_shapes(parameter_shapes(two.config), parameter_shapes(one.config), str(two.path), f"the shape of {one.path}")
    if set(one.codec_names) != set(two.codec_names):
        raise CsmError(f"{one.path} and {two.path} have codecs of different kinds.")
    names = [(name, group_of(name)) for name in parameter_shapes(one.config)]
    return [_change(name, group, one, two) for name, group in (*names, *((n, CODEC) for n in sorted(one.codec_names)))]


def summary(changes: list[Change]) -> dict[str, Any]:
    """Groups in all, then each tensor that changed, largest relative change first."""
    groups: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(change.group for change in changes):
        mine = [change for change in changes if change.group == group]
        square, change_square = sum(c.square for c in mine), sum(c.change_square for c in mine)
        changed = sum(c.differs for c in mine)
        groups[group] = {"tensors": len(mine), "changed": changed, "relative_norm": _relative(change_square, square)}
    ordered = sorted((c for c in changes if c.differs), key=lambda c: -(math.inf if c.relative is None else c.relative))
    tensors = [
        {"name": c.name, "group": c.group, "relative_norm": c.relative, "largest_change": c.largest} for c in ordered
    ]
    return {"same": not tensors, "groups": groups, "tensors": tensors}


def _change(name: str, group: str, one: ModelFolder, two: ModelFolder) -> Change:
    before, after = (read_tensors(folder, [name])[name].double() for folder in (one, two))
    if before.shape != after.shape:
        raise CsmError(f"{name} is {list(before.shape)} in {one.path} and {list(after.shape)} in {two.path}.")
    change = after - before
    largest = float(change.abs().max()) if change.numel() else 0.0
    square, change_square = float(before.square().sum()), float(change.square().sum())
    if not math.isfinite(change_square):
        raise CsmError(f"{name} holds a number that is not finite, in {one.path} or in {two.path}.")
    return Change(name, group, square, change_square, largest, bool((before != after).any()))


def _relative(change_square: float, square: float) -> float | None:
    if change_square == 0:
        return 0.0
    return math.sqrt(change_square / square) if square else None
