"""LoRA adapters in two forms, PEFT's and csm-mlx's, as functions over tensors by name. Arrays may be numpy's or torch's.

PEFT holds `lora_A` (r, in) and `lora_B` (out, r), csm-mlx `lora_a` (in, r) and `lora_b` (r, out); the change of a matrix is
scale x B @ A. Rows of q and k stand as in the base's layout, so B's rows (and DoRA's magnitudes) change their order between
the two, and A never. Sources: peft's LoraConfig, mlx-lm's LoRALinear, DoRALinear and LoRAEmbedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from csm.config import ModelConfig
from csm.errors import CsmError
from csm.layouts import CSM_MLX, into_layout, out_of_layout, stored_name
from csm.weights import AUDIO_TABLE, AUDIO_TABLE_ALIAS, parameter_shapes

TABLES = ("embed_text_tokens.weight", AUDIO_TABLE)
HEADS = "depth_decoder.codebooks_head.weight"
_PEFT = "base_model.model."
_PEFT_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
_MLX_PARTS = {".lora_a": "a", ".lora_b": "b", ".m": "magnitude"}
_MLX_LAYER_KEYS = (
    *(f"self_attn.{p}_proj" for p in "qkvo"),
    *(f"mlp.{p}_proj" for p in ("up", "down", "gate")),
)


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


def from_peft(tensors: Mapping[str, Any], config: Mapping[str, Any], model: ModelConfig, source: str) -> Adapter:
    """Read PEFT's form.

    Raises:
        CsmError: the config asks for what is not LoRA as here, or tensors do not fit the model; all are named at once.
    """
    _plain_lora(config, source)
    shapes, faults = parameter_shapes(model), []
    parts: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    for name, tensor in tensors.items():
        bare = name.removeprefix(_PEFT)
        ending = next((e for e in _PEFT_PARTS if bare.endswith(e)), None)
        if ending:
            parts.setdefault(bare.removesuffix(ending) + ".weight", {})[_PEFT_PARTS[ending]] = tensor
        elif bare.endswith(".base_layer.weight"):
            carried[bare.removesuffix(".base_layer.weight") + ".weight"] = tensor
        elif bare in (*shapes, AUDIO_TABLE_ALIAS):
            whole[bare] = tensor
        else:
            faults.append(f"{name} does not belong there")
    _tie(parts, faults, needs_both=True)
    for found in (whole, carried):
        _tie(found, faults, needs_both=False)
    scales = {name: _peft_scale(name, part, config, shapes, faults) for name, part in parts.items()}
    pairs = _pairs(parts, scales, shapes, faults)
    _check_whole({**whole, **carried}, shapes, faults)
    _tell(faults, source)
    return Adapter(pairs, whole, carried, float(config.get("lora_dropout") or 0.0))


def from_csm_mlx(tensors: Mapping[str, Any], config: Mapping[str, Any], model: ModelConfig, source: str) -> Adapter:
    """Read csm-mlx's form, also a checkpoint that holds the whole model beside the adapter.

    Raises:
        CsmError: the config lacks rank, scale or keys, or tensors do not fit the model; all are named at once.
    """
    lora = config.get("lora_parameters")
    missing = [k for k in ("rank", "scale", "keys") if not isinstance(lora, Mapping) or lora.get(k) is None]
    if missing or config.get("fine_tune_type", "lora") not in ("lora", "dora"):
        what = (
            f"lora_parameters lacks {', '.join(missing)}"
            if missing
            else f"it is {config['fine_tune_type']!r}, not LoRA"
        )
        raise CsmError(f"{source} is no adapter of csm-mlx: {what}.")
    assert isinstance(lora, Mapping)
    shapes, faults = parameter_shapes(model), []
    ours = {stored_name(name, CSM_MLX).removesuffix(".weight"): name for name in shapes}
    keys = {*lora["keys"], *(_MLX_LAYER_KEYS if "attn" in lora["keys"] else ())}
    parts: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    carried: dict[str, Any] = {}
    for name, tensor in tensors.items():
        ending = next((e for e in _MLX_PARTS if name.endswith(e)), None)
        module = name.removesuffix(ending or "").removesuffix(".weight")
        inner = module.removesuffix(".linear").removesuffix(".embedding")
        if inner not in ours:
            faults.append(f"{name} does not belong there")
            continue
        if ending and not {module, _mlx_key(module)} & keys:
            faults.append(f"{name} is not among the config's keys")
        if ending:
            turned = tensor if ending == ".m" else tensor.swapaxes(0, 1)
            part = _MLX_PARTS[ending]
            own = ours[module]
            parts.setdefault(own, {})[part] = turned if part == "a" else out_of_layout(own, turned, CSM_MLX, model)
        else:
            own = ours[inner]
            (whole if inner == module else carried)[own] = out_of_layout(own, tensor, CSM_MLX, model)
    faults += [f"{n}: rank is {p['a'].shape[0]}, the config says {lora['rank']}"
               for n, p in parts.items() if "a" in p and p["a"].shape[0] != lora["rank"]]  # fmt: skip
    pairs = _pairs(parts, dict.fromkeys(parts, float(lora["scale"])), shapes, faults)
    _check_whole({**whole, **carried}, shapes, faults)
    _tell(faults, source)
    return Adapter(pairs, whole, carried, float(lora.get("dropout") or 0.0))


def to_peft(adapter: Adapter) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and adapter_config.json in PEFT's form, every module named in full so that no codec's is meant."""
    tensors: dict[str, Any] = {}
    pairs, whole = _both_sides(adapter.pairs), _both_sides(adapter.whole)
    for name, pair in pairs.items():
        module, table = _PEFT + _module(name), name in (*TABLES, AUDIO_TABLE_ALIAS)
        tensors[f"{module}.lora_{'embedding_A' if table else 'A.weight'}"] = pair.a
        tensors[f"{module}.lora_{'embedding_B' if table else 'B.weight'}"] = pair.b
        if pair.magnitude is not None:
            tensors[f"{module}.lora_magnitude_vector"] = pair.magnitude
    tensors |= {_PEFT + name: tensor for name, tensor in whole.items()}
    ranks = {name: pair.rank for name, pair in pairs.items()}
    alphas = {name: _whole_number(pair.scale * pair.rank) for name, pair in pairs.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(_module(n)): r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(_module(n)): a for n, a in alphas.items() if a != alpha},
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(_module(n) for n in pairs if n != HEADS),
        "target_parameters": [HEADS] if HEADS in adapter.pairs else None,
        "modules_to_save": sorted(map(_module, whole)) or None,
        "use_dora": any(pair.magnitude is not None for pair in adapter.pairs.values()),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": adapter.base.get("name"),
    }
    return tensors, config


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


def _plain_lora(config: Mapping[str, Any], source: str) -> None:
    """Refuse what PEFT can do to a model and this program does not know how to add up."""
    special = isinstance(config.get("init_lora_weights"), str) and config["init_lora_weights"].split("_")[0].lower()
    faults = [f"peft_type {config.get('peft_type')!r}"] if config.get("peft_type") != "LORA" else []
    faults += (
        [f"init_lora_weights {config['init_lora_weights']!r}"] if special not in (False, "gaussian", "eva") else []
    )
    faults += [f"bias {config['bias']!r}"] if config.get("bias", "none") != "none" else []
    flags = ("lora_bias", "layer_replication", "use_qalora", "fan_in_fan_out", "trainable_token_indices", "use_bdlora")
    faults += [key for key in flags if config.get(key)]
    if faults:
        raise CsmError(f"{source} is an adapter of a kind that cannot be read here: {', '.join(faults)}.")


def _tie(found: dict[str, Any], faults: list[str], needs_both: bool) -> None:
    """Bring the tied audio table, which PEFT adapts or saves on each side by itself, under its one name."""
    other = found.pop(AUDIO_TABLE_ALIAS, None)
    if other is None and not (needs_both and AUDIO_TABLE in found):
        return
    mine = found.setdefault(AUDIO_TABLE, other) if other is not None and not needs_both else found.get(AUDIO_TABLE)
    if other is None or mine is None:
        faults.append("the tied audio table is adapted on one of its two sides only")
    elif not _same(mine, other):
        faults.append("the two sides of the tied audio table differ")


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return set(one) == set(two) and all(_same(one[key], two[key]) for key in one)
    return one.shape == two.shape and bool((one == two).all())


def _both_sides(found: Mapping[str, Any]) -> dict[str, Any]:
    return {**found, AUDIO_TABLE_ALIAS: found[AUDIO_TABLE]} if AUDIO_TABLE in found else dict(found)


def _module(parameter: str) -> str:
    return parameter.removesuffix(".weight")


def _peft_scale(
    name: str, part: Mapping[str, Any], config: Mapping[str, Any], shapes: Mapping[str, Any], faults: list[str]
) -> float:
    """alpha / r, or alpha / sqrt(r), with the patterns that PEFT matches against the ends of module names."""
    rank = _matching(config.get("rank_pattern") or {}, name, config.get("r"))
    alpha = _matching(config.get("alpha_pattern") or {}, name, config.get("lora_alpha"))
    found = part["a"].shape[0] // (shapes[HEADS][0] if name == HEADS else 1) if "a" in part else rank
    if found != rank or not isinstance(alpha, int | float):
        faults.append(f"{_module(name)} has rank {found}; adapter_config.json says rank {rank}, alpha {alpha}")
        return 0.0
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _matching(patterns: Mapping[str, Any], parameter: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", _module(parameter)) or re.match(rf"(.*\.)?({pattern})$", parameter):
            return value
    return default


def _pairs(
    parts: Mapping[str, Mapping[str, Any]], scales: Mapping[str, float], shapes: Mapping[str, Any], faults: list[str]
) -> dict[str, Pair]:
    pairs = {}
    for name, part in parts.items():
        if name not in shapes or len(shapes[name]) < 2:
            faults.append(f"{_module(name)} is no matrix of this model")
        elif not {"a", "b"} <= set(part):
            faults.append(f"{_module(name)} lacks {'A' if 'a' not in part else 'B'}")
        elif not _fits(shapes[name], part, name):
            found = f"A {list(part['a'].shape)}, B {list(part['b'].shape)}"
            faults.append(f"{_module(name)} is {list(shapes[name])}; {found} do not fit it")
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


def _check_whole(found: Mapping[str, Any], shapes: Mapping[str, Any], faults: list[str]) -> None:
    faults += [f"{n} is {list(t.shape)}, wanted {list(shapes[n])}"
               for n, t in found.items() if n in shapes and tuple(t.shape) != shapes[n]]  # fmt: skip


def _tell(faults: list[str], source: str) -> None:
    if faults:
        raise CsmError(f"{source} does not fit the model: {'; '.join(faults)}.")


def _mlx_key(module: str) -> str:
    """What csm-mlx calls a module in its config: within a layer without the layer, else in full."""
    return re.sub(r"^(backbone|decoder)\.layers\.\d+\.", "", module)


def _commonest(values: Mapping[str, Any]) -> Any:
    found = list(values.values())
    return max(dict.fromkeys(found), key=found.count) if found else 8


def _whole_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
