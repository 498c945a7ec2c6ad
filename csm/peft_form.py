"""PEFT's form of an adapter: `lora_A` (r, in) and `lora_B` (out, r); the change of a matrix is alpha / r x B @ A.

The 31 acoustic heads are one 3-D parameter, which peft adapts as `target_parameters`; the tied audio table it adapts, and
saves, on each side by itself. Source: peft's LoraConfig.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from csm.adapters import HEADS, TABLES, Adapter, check_whole, module_of, pairs_of, tell
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.weights import AUDIO_TABLE, AUDIO_TABLE_ALIAS, parameter_shapes

_PEFT = "base_model.model."
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


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
        ending = next((e for e in _PARTS if bare.endswith(e)), None)
        if ending:
            parts.setdefault(bare.removesuffix(ending) + ".weight", {})[_PARTS[ending]] = tensor
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
    pairs = pairs_of(parts, scales, shapes, faults)
    check_whole({**whole, **carried}, shapes, faults)
    tell(faults, source)
    return Adapter(pairs, whole, carried, float(config.get("lora_dropout") or 0.0))


def to_peft(adapter: Adapter) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and adapter_config.json in PEFT's form, every module named in full so that no codec's is meant."""
    tensors: dict[str, Any] = {}
    pairs, whole = _both_sides(adapter.pairs), _both_sides(adapter.whole)
    for name, pair in pairs.items():
        module, table = _PEFT + module_of(name), name in (*TABLES, AUDIO_TABLE_ALIAS)
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
        "rank_pattern": {re.escape(module_of(n)): r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(module_of(n)): a for n, a in alphas.items() if a != alpha},
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(module_of(n) for n in pairs if n != HEADS),
        "target_parameters": [HEADS] if HEADS in adapter.pairs else None,
        "modules_to_save": sorted(map(module_of, whole)) or None,
        "use_dora": any(pair.magnitude is not None for pair in adapter.pairs.values()),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": adapter.base.get("name"),
    }
    return tensors, config


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


def _peft_scale(
    name: str, part: Mapping[str, Any], config: Mapping[str, Any], shapes: Mapping[str, Any], faults: list[str]
) -> float:
    """alpha / r, or alpha / sqrt(r), with the patterns that PEFT matches against the ends of module names."""
    rank = _matching(config.get("rank_pattern") or {}, name, config.get("r"))
    alpha = _matching(config.get("alpha_pattern") or {}, name, config.get("lora_alpha"))
    found = part["a"].shape[0] // (shapes[HEADS][0] if name == HEADS else 1) if "a" in part else rank
    if found != rank or not isinstance(alpha, int | float):
        faults.append(f"{module_of(name)} has rank {found}; adapter_config.json says rank {rank}, alpha {alpha}")
        return 0.0
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _matching(patterns: Mapping[str, Any], parameter: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module_of(parameter)) or re.match(rf"(.*\.)?({pattern})$", parameter):
            return value
    return default


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


def _commonest(values: Mapping[str, Any]) -> Any:
    found = list(values.values())
    return max(dict.fromkeys(found), key=found.count) if found else 8


def _whole_number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
