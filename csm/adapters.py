"""LoRA adapters by transformers' parameter names, and the accounting of what a file holds against the model. PEFT's and
csm-mlx's forms of them are in `csm.peft_form` and `csm.csm_mlx_form`. Arrays may be numpy's or torch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csm.errors import CsmError
from csm.weights import AUDIO_TABLE

TABLES = ("embed_text_tokens.weight", AUDIO_TABLE)
HEADS = "depth_decoder.codebooks_head.weight"


@dataclass(frozen=True)
class Pair:
    """What LoRA adds to one parameter: scale x b @ a.

    a: (r, in), for a table (r, entries), for K - 1 heads at once (r * (K - 1), width).
    b: (out, r), likewise. magnitude: (out,) of DoRA.
    """

    a: Any
    b: Any
    rank: int
    scale: float
    magnitude: Any = None


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds, by transformers' parameter names.

    Attributes:
        pairs: LoRA's matrices of each adapted parameter.
        whole: parameters that were trained as they are and take the base's place.
        carried: tensors of the base that came along and must be the base's.
        dropout: of LoRA's input while training.
        base: `base.json`: hash and name of the model it was trained on; empty where nobody wrote one.
    """

    pairs: Mapping[str, Pair]
    whole: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = 0.0
    base: Mapping[str, Any] = field(default_factory=dict)


def pairs_of(
    parts: Mapping[str, Mapping[str, Any]], scales: Mapping[str, float], shapes: Mapping[str, Any], faults: list[str]
) -> dict[str, Pair]:
    """Pairs from `a`, `b` and `magnitude` of each parameter; what does not fit is added to `faults`."""
    pairs = {}
    for name, part in parts.items():
        if name not in shapes or len(shapes[name]) < 2:
            faults.append(f"{module_of(name)} is no matrix of this model")
        elif not {"a", "b"} <= set(part):
            faults.append(f"{module_of(name)} lacks {'A' if 'a' not in part else 'B'}")
        elif not _fits(shapes[name], part, name):
            found = f"A {list(part['a'].shape)}, B {list(part['b'].shape)}"
            faults.append(f"{module_of(name)} is {list(shapes[name])}; {found} do not fit it")
        else:
            rank = part["a"].shape[0] // (shapes[name][0] if len(shapes[name]) == 3 else 1)
            pairs[name] = Pair(part["a"], part["b"], int(rank), scales[name], part.get("magnitude"))
    return pairs


def _fits(shape: tuple[int, ...], part: Mapping[str, Any], name: str) -> bool:
    a, b, magnitude = tuple(part["a"].shape), tuple(part["b"].shape), part.get("magnitude")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        return False
    if magnitude is not None and (len(shape) != 2 or name in TABLES or tuple(magnitude.shape) != shape[:1]):
        return False
    if len(shape) == 3:
        return a[0] % shape[0] == 0 and (b[0], a[1]) in (shape[1:], shape[:0:-1])
    return (b[0], a[1]) == (shape[::-1] if name in TABLES else shape)


def check_whole(found: Mapping[str, Any], shapes: Mapping[str, Any], faults: list[str]) -> None:
    """Add to `faults` the tensors that are not of their parameter's shape."""
    faults += [f"{n} is {list(t.shape)}, wanted {list(shapes[n])}"
               for n, t in found.items() if n in shapes and tuple(t.shape) != shapes[n]]  # fmt: skip


def tell(faults: list[str], source: str) -> None:
    """Raise CsmError over all `faults` at once, where there are any."""
    if faults:
        raise CsmError(f"{source} does not fit the model: {'; '.join(faults)}.")


def module_of(parameter: str) -> str:
    """The module whose weight a parameter is."""
    return parameter.removesuffix(".weight")
