"""csm-mlx's form of an adapter: `lora_a` (in, r) and `lora_b` (r, out), one rank and one scale for all.

Rows of q and k stand as in csm-mlx's layout, so B's rows (and DoRA's magnitudes) change their order on the way, and A never.
Sources: mlx-lm's LoRALinear, DoRALinear and LoRAEmbedding, csm-mlx's adapter_config.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from csm.adapters.adapter import Adapter
from csm.adapters.form import COPY, FACTOR, WHOLE, Place, Values
from csm.adapters.plan import AdapterPlan, every_site
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.layouts import CSM_MLX, into_layout, out_of_layout, stored_name
from csm.weights import Shapes, parameter_shapes

_ENDINGS = {"linear": {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"},
            "table": {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B", "m": "lora_magnitude_vector"}}  # fmt: skip
_LAYER_KEYS = (
    *(f"self_attn.{p}_proj" for p in "qkvo"),
    *(f"mlp.{p}_proj" for p in ("up", "down", "gate")),
)


class CsmMlxForm:
    """See `csm.adapters.form.Form`. Checkpoints that hold the whole model beside the adapter are read too."""

    file = "adapters.safetensors"

    def plan(self, values: Values, found: Shapes, model: ModelConfig, source: str) -> AdapterPlan:
        lora = _parameters(values, source)
        adapted = {place.name.split(".lora_")[0] for place in self.places(values, found, model).values()
                   if place.role == FACTOR}  # fmt: skip
        rank, scale = lora["rank"], float(lora["scale"])
        sites = [replace(s, rank=rank, alpha=scale * rank) for path, s in every_site(model).items() if path in adapted]
        if not sites:
            raise CsmError(f"the adapter {source} adapts nothing of a CSM (keys {lora['keys']!r}).")
        return AdapterPlan(tuple(sites), float(lora.get("dropout") or 0.0), dora=values.get("fine_tune_type") == "dora")

    def places(self, values: Values, found: Shapes, model: ModelConfig) -> dict[str, Place]:
        keys = set(values["lora_parameters"]["keys"])
        keys |= set(_LAYER_KEYS) if "attn" in keys else set()
        sites = {_module(path): site for path, site in every_site(model).items() if site.kind != "heads"}
        ours = {stored_name(name, CSM_MLX): name for name in parameter_shapes(model)}
        places: dict[str, Place] = {}
        for name in found:
            module, _, ending = name.rpartition(".")
            bare = re.sub(r"\.(linear|embedding)\.weight$", ".weight", name)
            if module in sites and ending in _ENDINGS["linear"]:
                if {module, _key(module)} & keys:
                    site = sites[module]
                    places[name] = Place(FACTOR, f"{site.path}.{_ENDINGS[site.kind][ending]}")
            elif bare in ours:
                places[name] = Place(WHOLE if bare == name else COPY, ours[bare])
        return places

    def shapes(self, plan: AdapterPlan, values: Values, found: Shapes, model: ModelConfig) -> Shapes:
        return {_stored(name): shape[::-1] for name, shape in plan.tensor_shapes(model).items()}

    def upright(self, place: Place, tensor: Any, plan: AdapterPlan, model: ModelConfig) -> Any:
        if place.role != FACTOR:
            return out_of_layout(place.name, tensor, CSM_MLX, model)
        straight = tensor.swapaxes(0, 1) if len(tensor.shape) == 2 else tensor
        parameter = _rows_of(place.name)
        return out_of_layout(parameter, straight, CSM_MLX, model) if parameter else straight

    def written(self, adapter: Adapter, model: ModelConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        plan = adapter.plan
        _refuse_inexpressible(plan)
        tensors = {stored_name(n, CSM_MLX): into_layout(n, t, CSM_MLX, model) for n, t in adapter.whole.items()}
        for name, tensor in adapter.factors.items():
            parameter = _rows_of(name)
            rows = into_layout(parameter, tensor, CSM_MLX, model) if parameter else tensor
            tensors[_stored(name)] = rows.swapaxes(0, 1) if len(rows.shape) == 2 else rows
        lora = {
            "rank": plan.sites[0].rank,
            "scale": plan.scale(plan.sites[0]),
            "dropout": plan.dropout,
            "keys": list(dict.fromkeys(_key(_module(site.path)) for site in plan.sites)),
        }
        return tensors, {"lora_parameters": lora, "fine_tune_type": "dora" if plan.dora else "lora"}


def _parameters(values: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    lora, kind = values.get("lora_parameters"), values.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise CsmError(f"{source} is no adapter: its fine_tune_type is {kind!r}.")
    missing = [key for key in ("rank", "scale", "keys") if not isinstance(lora, Mapping) or lora.get(key) is None]
    if missing or not isinstance(lora, Mapping):
        raise CsmError(f"{source} is no adapter of csm-mlx: its lora_parameters lack {', '.join(missing)}.")
    kinds: tuple[tuple[str, Any], ...] = (("rank", int), ("scale", int | float), ("keys", list))
    wrong = [f"{key} {lora[key]!r}" for key, kind in kinds if not isinstance(lora[key], kind)]
    wrong += [] if wrong or all(isinstance(key, str) for key in lora["keys"]) else [f"keys {lora['keys']!r}"]
    wrong += [f"dropout {lora['dropout']!r}"] if not isinstance(lora.get("dropout") or 0.0, int | float) else []
    wrong += [f"rank {lora['rank']}"] if not wrong and lora["rank"] < 1 else []
    if wrong:
        raise CsmError(f"{source} is no adapter of csm-mlx: its lora_parameters hold {', '.join(wrong)}.")
    return lora


def _refuse_inexpressible(plan: AdapterPlan) -> None:
    def several(kind: str, found: Iterable[float]) -> list[str]:
        values = sorted(set(found))
        return [f"several {kind} ({', '.join(map(str, values))})"] if len(values) > 1 else []

    reasons = [f"LoRA on the acoustic heads ({s.path})" for s in plan.sites if s.kind == "heads"]
    reasons += several("ranks", (site.rank for site in plan.sites)) + several("scales", map(plan.scale, plan.sites))
    reasons += ["biases (lora_bias)"] if any(map(plan.has_bias, plan.sites)) else []
    if reasons:
        raise CsmError(f"csm-mlx has no form for this adapter: {'; '.join(reasons)}.", "Merge it.")


def _rows_of(factor: str) -> str | None:
    """The parameter whose rows a factor has: B's and the magnitudes', none for A's."""
    path, _, ending = factor.partition(".lora_")
    return f"{path}.weight" if ending in ("B.weight", "magnitude_vector") else None


def _stored(factor: str) -> str:
    path = factor.partition(".lora_")[0]
    ending = "m" if factor.endswith("vector") else "lora_a" if "A" in factor.removeprefix(path) else "lora_b"
    return f"{_module(path)}.{ending}"


def _module(path: str) -> str:
    """What csm-mlx calls a module in its files."""
    return stored_name(f"{path}.weight", CSM_MLX).removesuffix(".weight")


def _key(module: str) -> str:
    """What csm-mlx calls a module in its config: within a layer without the layer, else in full."""
    return re.sub(r"^(backbone|decoder)\.layers\.\d+\.", "", module)
