"""PEFT's form of an adapter: `lora_A` (r, in) and `lora_B` (out, r), every module named in full. Source: peft's LoraConfig.

The acoustic heads are one 3-D parameter, which PEFT adapts as `target_parameters`; the tied audio table it adapts, and saves,
on each side by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from csm.adapters.adapter import Adapter
from csm.adapters.form import CODEC, COPY, FACTOR, WHOLE, Place, Values
from csm.adapters.peft_targets import alphas_of, check_kinds, is_saved, is_targeted, rank_of
from csm.adapters.plan import AdapterPlan, Site, every_site
from csm.adapters.targets import SINGLES
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.weights import AUDIO_TABLE, AUDIO_TABLE_ALIAS, CODEC_PREFIX, Shapes, parameter_shapes

PREFIX = "base_model.model."
HEADS = SINGLES["acoustic_heads"]
TABLE, TABLE_ALIAS = (name.removesuffix(".weight") for name in (AUDIO_TABLE, AUDIO_TABLE_ALIAS))
STARTS = ("gaussian", "eva", "orthogonal")  # ways to draw the factors; pissa and its kind change the base

_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
}  # fmt: skip


class PeftForm:
    """See `csm.adapters.form.Form`."""

    file = "adapter_model.safetensors"

    def plan(self, values: Values, found: Shapes, model: ModelConfig, source: str) -> AdapterPlan:
        _refuse_unknown(values, source)
        check_kinds(values, source)
        sites = []
        for path, site in every_site(model).items():
            names = [f"{path}.weight"] if site.kind == "heads" else list(_both_sides(path))
            hits = [name for name in names if is_targeted(values, name, site.kind, source)]
            if hits and hits != names:
                missed = ", ".join(set(names) - set(hits))
                raise CsmError(
                    f"the adapter {source} adapts {', '.join(hits)} and not {missed}, which are one table in a CSM.",
                    "Name both in PEFT's target_modules, and give them the same values.",
                )
            if hits:
                alphas = alphas_of(values, names, source)
                if len(alphas) > 1:
                    raise CsmError(
                        f"the adapter {source} gives {' and '.join(names)}, one table in a CSM, different alphas."
                    )
                sites.append(replace(site, rank=rank_of(values, names[0], source), alpha=alphas.pop()))
        if not sites:
            raise CsmError(
                f"the adapter {source} adapts nothing of a CSM (target_modules {values.get('target_modules')!r})."
            )
        flags = (bool(values.get(key)) for key in ("lora_bias", "use_dora", "use_rslora"))
        return AdapterPlan(tuple(sites), float(values.get("lora_dropout") or 0.0), *flags)

    def places(self, values: Values, found: Shapes, model: ModelConfig) -> dict[str, Place]:
        parameters = {*parameter_shapes(model), AUDIO_TABLE_ALIAS}
        places = {name: _place(name.removeprefix(PREFIX), values, parameters) for name in found}
        if _has_old_heads(found, model):
            one, two = (f"{PREFIX}{HEADS}.lora_{letter}.weight" for letter in "AB")
            places[one], places[two] = places[two], places[one]
        return {name: place for name, place in places.items() if place}

    def shapes(self, plan: AdapterPlan, values: Values, found: Shapes, model: ModelConfig) -> Shapes:
        wanted = dict(plan.tensor_shapes(model))
        if _has_old_heads(found, model):
            one, two = (f"{HEADS}.lora_{letter}.weight" for letter in "AB")
            wanted[one], wanted[two] = wanted[two][::-1], wanted[one][::-1]
        saved = {n: s for n, s in parameter_shapes(model).items() if any(is_saved(values, x) for x in _both_sides(n))}
        if saved.get(AUDIO_TABLE) and PREFIX + AUDIO_TABLE not in found and PREFIX + AUDIO_TABLE_ALIAS in found:
            del saved[AUDIO_TABLE]
        factors = {PREFIX + side: shape for name, shape in wanted.items() for side in _both_sides(name)}
        return factors | {PREFIX + name: shape for name, shape in saved.items()}

    def upright(self, place: Place, tensor: Any, plan: AdapterPlan, model: ModelConfig) -> Any:
        if not place.name.startswith(f"{HEADS}.lora_"):
            return tensor
        shape = plan.tensor_shapes(model)[place.name]
        if tuple(tensor.shape) == shape:
            return tensor
        heads, rank = model.num_codebooks - 1, next(site.rank for site in plan.sites if site.kind == "heads")
        parts = (heads, rank, -1) if place.name.endswith("B.weight") else (-1, rank, heads)
        return tensor.reshape(*parts).swapaxes(0, 2).reshape(*shape)

    def written(self, adapter: Adapter, model: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = {**adapter.factors, **adapter.whole}
        stored = {PREFIX + side: tensor for name, tensor in tensors.items() for side in _both_sides(name)}
        return stored, peft_config(adapter)


def peft_config(adapter: Adapter) -> dict[str, Any]:
    """The plan in PEFT's words. Dropout is left out where PEFT refuses it beside heads; an adapter is the same without."""
    plan = adapter.plan
    has_heads = any(site.kind == "heads" for site in plan.sites)
    common = next((s for s in plan.sites if s.kind == "heads"), None) or _most_common(plan.sites)
    others = [(path, site) for site in plan.sites if site.kind != "heads" for path in _both_sides(site.path)]
    whole = [side.removesuffix(".weight") for name in adapter.whole for side in _both_sides(name)]
    return {
        "peft_type": "LORA",
        "auto_mapping": {
            "base_model_class": "CsmForConditionalGeneration",
            "parent_library": "transformers.models.csm.modeling_csm",
        },
        "base_model_name_or_path": adapter.origin.path if adapter.origin else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "r": common.rank,
        "lora_alpha": common.alpha,
        "rank_pattern": {re.escape(path): s.rank for path, s in others if s.rank != common.rank},
        "alpha_pattern": {re.escape(path): s.alpha for path, s in others if s.alpha != common.alpha},
        "lora_bias": plan.bias,
        "lora_dropout": 0.0 if has_heads else plan.dropout,
        "modules_to_save": sorted(whole) or None,
        "target_modules": sorted(path for path, _ in others),
        "target_parameters": [f"{HEADS}.weight"] if has_heads else None,
        "task_type": None,
        "use_dora": plan.dora,
        "use_rslora": plan.rslora,
    }


def _place(bare: str, values: Values, parameters: set[str]) -> Place | None:
    if bare.startswith(CODEC_PREFIX):
        return Place(CODEC, bare)
    if bare.endswith(".base_layer.weight"):
        return Place(COPY, _one_side(bare.replace(".base_layer.", ".")))
    if ".lora_" in bare:
        return Place(FACTOR, _one_side(bare))
    return Place(WHOLE, _one_side(bare)) if bare in parameters and is_saved(values, bare) else None


def _both_sides(name: str) -> tuple[str, ...]:
    """What of transformers' CSM a module or tensor of ours stands for: two for the shared audio table."""
    shared = name == TABLE or name.startswith(f"{TABLE}.")
    return (name, TABLE_ALIAS + name.removeprefix(TABLE)) if shared else (name,)


def _one_side(name: str) -> str:
    return TABLE + name.removeprefix(TABLE_ALIAS) if name.startswith(f"{TABLE_ALIAS}.") else name


def _has_old_heads(found: Shapes, model: ModelConfig) -> bool:
    """PEFT up to 0.19.0 had the heads' input side in A and their output side in B, the other way round than later ones."""
    one, two = (found.get(f"{PREFIX}{HEADS}.lora_{letter}.weight", ()) for letter in "AB")
    width, outputs = model.depth.hidden_size, model.vocab_size
    return width != outputs and one[1:] == (width,) and two[:1] == (outputs,)


def _refuse_unknown(values: Mapping[str, Any], source: str) -> None:
    strange = [
        key for key, value in values.items() if key not in _UNDERSTOOD and value and (key, value) != ("bias", "none")
    ]
    strange += [] if values.get("peft_type") == "LORA" else ["peft_type"]
    start = values.get("init_lora_weights", True)
    strange += ["init_lora_weights"] if isinstance(start, str) and start not in STARTS else []
    if strange:
        said = ", ".join(f"{key} {values[key]!r}" for key in strange)
        raise CsmError(f"the adapter {source} uses PEFT options that csm does not know: {said}.")


def _most_common(sites: Iterable[Site]) -> Site:
    rank, alpha = Counter((site.rank, site.alpha) for site in sites).most_common(1)[0][0]
    return next(site for site in sites if (site.rank, site.alpha) == (rank, alpha))
