"""csm-mlx's form of an adapter: `lora_a` (in, r) and `lora_b` (r, out), one rank and one scale for all.

Rows of q and k stand as in csm-mlx's layout, so B's rows (and DoRA's magnitudes) change their order on the way, and A never.
Sources: mlx-lm's LoRALinear, DoRALinear and LoRAEmbedding, csm-mlx's adapter_config.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from csm.adapters import HEADS, Adapter, check_whole, pairs_of, tell
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.layouts import CSM_MLX, into_layout, out_of_layout, stored_name
from csm.weights import parameter_shapes

_PARTS = {".lora_a": "a", ".lora_b": "b", ".m": "magnitude"}
_LAYER_KEYS = (
    *(f"self_attn.{p}_proj" for p in "qkvo"),
    *(f"mlp.{p}_proj" for p in ("up", "down", "gate")),
)


def from_csm_mlx(tensors: Mapping[str, Any], config: Mapping[str, Any], model: ModelConfig, source: str) -> Adapter:
    """Read csm-mlx's form, also a checkpoint that holds the whole model beside the adapter.

    Raises:
        CsmError: the config lacks rank, scale or keys, or tensors do not fit the model; all are named at once.
    """
    lora = _parameters(config, source)
    keys = {*lora["keys"], *(_LAYER_KEYS if "attn" in lora["keys"] else ())}
    shapes, faults = parameter_shapes(model), []
    ours = {stored_name(name, CSM_MLX).removesuffix(".weight"): name for name in shapes}
    parts: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    for name, tensor in tensors.items():
        ending = next((e for e in _PARTS if name.endswith(e)), "")
        module = name.removesuffix(ending or ".weight")
        own = ours.get(module if ending else re.sub(r"\.(linear|embedding)$", "", module))
        if own is None:
            faults.append(f"{name} does not belong there")
        elif not ending:
            (whole if module in ours else carried)[own] = _turned(own, tensor, model)
        elif {module, _mlx_key(module)} & keys:
            upright = tensor.swapaxes(0, 1) if tensor.ndim == 2 else tensor
            parts.setdefault(own, {})[_PARTS[ending]] = upright if ending == ".lora_a" else _turned(own, upright, model)
        else:
            faults.append(f"{name} is not among the config's keys")
    wrong = {n: p["a"].shape[0] for n, p in parts.items() if "a" in p and p["a"].shape[0] != lora["rank"]}
    faults += [f"{name} has rank {rank}; adapter_config.json says {lora['rank']}" for name, rank in wrong.items()]
    pairs = pairs_of(parts, dict.fromkeys(parts, float(lora["scale"])), shapes, faults)
    check_whole({**whole, **carried}, shapes, faults)
    tell(faults, source)
    return Adapter(pairs, whole, carried, float(lora.get("dropout") or 0.0))


def _parameters(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    lora, kind = config.get("lora_parameters"), config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise CsmError(f"{source} is no adapter: its fine_tune_type is {kind!r}.")
    missing = [key for key in ("rank", "scale", "keys") if not isinstance(lora, Mapping) or lora.get(key) is None]
    if missing or not isinstance(lora, Mapping):
        raise CsmError(f"{source} is no adapter of csm-mlx: its lora_parameters lack {', '.join(missing)}.")
    return lora


def _turned(own: str, tensor: Any, model: ModelConfig) -> Any:
    """Rows in transformers' order; a tensor of a wrong length stays as it is, to be told of with the other faults."""
    fits = tensor.shape[:1] == parameter_shapes(model)[own][:1]
    return out_of_layout(own, tensor, CSM_MLX, model) if fits else tensor


def to_csm_mlx(adapter: Adapter, model: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and adapter_config.json in csm-mlx's form.

    Raises:
        CsmError: it needs what csm-mlx cannot express: LoRA on the 31 heads, ranks or scales that differ, DoRA in part.
    """
    tensors: dict[str, Any] = {}
    for name, pair in adapter.pairs.items():
        module = stored_name(name, CSM_MLX).removesuffix(".weight")
        tensors[f"{module}.lora_a"] = pair.a.swapaxes(0, 1)
        tensors[f"{module}.lora_b"] = into_layout(name, pair.b, CSM_MLX, model).swapaxes(0, 1)
        if pair.magnitude is not None:
            tensors[f"{module}.m"] = into_layout(name, pair.magnitude, CSM_MLX, model)
    for name, tensor in adapter.whole.items():
        tensors[stored_name(name, CSM_MLX)] = into_layout(name, tensor, CSM_MLX, model)
    reasons = ["LoRA on the acoustic heads (depth_decoder.codebooks_head)"] if HEADS in adapter.pairs else []
    kinds: dict[str, set[Any]] = {
        "ranks": {pair.rank for pair in adapter.pairs.values()},
        "scales": {pair.scale for pair in adapter.pairs.values()},
        "DoRA": {pair.magnitude is not None for pair in adapter.pairs.values()},
    }
    reasons += [
        f"several {kind} ({', '.join(map(str, sorted(found)))})" for kind, found in kinds.items() if len(found) > 1
    ]
    if reasons or not adapter.pairs:
        raise CsmError(
            f"csm-mlx has no form for this adapter: {'; '.join(reasons) or 'it adapts nothing'}.", "Merge it."
        )
    keys = dict.fromkeys(_mlx_key(stored_name(n, CSM_MLX).removesuffix(".weight")) for n in adapter.pairs)
    lora = {
        "rank": kinds["ranks"].pop(),
        "scale": kinds["scales"].pop(),
        "dropout": adapter.dropout,
        "keys": list(keys),
    }
    return tensors, {"lora_parameters": lora, "fine_tune_type": "dora" if kinds["DoRA"].pop() else "lora"}


def _mlx_key(module: str) -> str:
    """What csm-mlx calls a module in its config: within a layer without the layer, else in full."""
    return re.sub(r"^(backbone|decoder)\.layers\.\d+\.", "", module)
