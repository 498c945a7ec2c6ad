"""An adapter as a plan: which modules of a CSM it adapts, with what rank and scale. No weights, no backend.

A group that is frozen takes no adapter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from csm.adapters.settings import LoraSettings
from csm.adapters.targets import GROUPS, KINDS, PARTS, modules_of, pairs_of
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.weights import parameter_shapes


@dataclass(frozen=True)
class Site:
    """One adapted module: its path in the model, its part and kind (linear, heads or table), rank and alpha."""

    path: str
    part: str
    kind: str
    rank: int
    alpha: float

    @property
    def group(self) -> str:
        return GROUPS.get(self.part, "decoder")


@dataclass(frozen=True)
class AdapterPlan:
    """All adapted modules of a model, and what they have in common. `dropout` is that of training."""

    sites: tuple[Site, ...]
    dropout: float = 0.0
    bias: bool = False
    dora: bool = False
    rslora: bool = False

    def scale(self, site: Site) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski, 2023)."""
        return site.alpha / (math.sqrt(site.rank) if self.rslora else site.rank)

    def has_bias(self, site: Site) -> bool:
        return self.bias and site.kind == "linear"

    def tensor_shapes(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Names and shapes of every tensor of the adapter, by PEFT's names without their prefix."""
        modules = module_shapes(config)
        shapes: dict[str, tuple[int, ...]] = {}
        for site in self.sites:
            shapes |= {f"{site.path}.{name}": s for name, s in self._shapes_of(site, modules[site.path]).items()}
        return shapes

    def _shapes_of(self, site: Site, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        if site.kind == "heads":
            heads, width, outputs = shape
            return {
                "lora_A.weight": (heads * site.rank, outputs),
                "lora_B.weight": (width, site.rank * heads),
            }
        if site.kind == "table":
            entries, width = shape
            return {"lora_embedding_A": (site.rank, entries), "lora_embedding_B": (width, site.rank)}
        outputs, inputs = shape
        found: dict[str, tuple[int, ...]] = {
            "lora_A.weight": (site.rank, inputs),
            "lora_B.weight": (outputs, site.rank),
        }
        if self.bias:
            found["lora_B.bias"] = (outputs,)
        if self.dora:
            found["lora_magnitude_vector"] = (outputs,)
        return found

    def describe(self, config: ModelConfig) -> str:
        """One line: how many modules of which parts, and how many numbers they learn."""
        counts = {part: sum(site.part == part for site in self.sites) for part in PARTS}
        parts = ", ".join(f"{part} {n}" if n > 1 else part for part, n in counts.items() if n)
        numbers = sum(math.prod(shape) for shape in self.tensor_shapes(config).values())
        return f"{parts}; {numbers:,} numbers learn"


def plan_adapters(config: ModelConfig, settings: LoraSettings, frozen: Iterable[str] = ()) -> AdapterPlan:
    """The modules that the settings choose in a model of this shape, in the model's order.

    Args:
        frozen: groups (backbone, decoder, embeddings) that take no adapter.

    Raises:
        CsmError: a layer is out of range, a target that was named lies in a frozen group, a part that has its own rank or
            alpha is not adapted, or nothing is left.
    """
    resting = set(frozen)
    chosen: set[tuple[str, str]] = set()
    if settings.embeddings and "embeddings" in resting:
        raise CsmError("lora_embeddings learns the embeddings, and they are frozen.", "Add --no-freeze-embeddings.")
    for target in settings.targets or _automatic(settings):
        pairs = {pair for pair in pairs_of(target) if GROUPS.get(pair[0], "decoder") not in resting}
        if settings.targets and not pairs:
            group = GROUPS.get(pairs_of(target)[0][0], "decoder")
            raise CsmError(
                f"lora_targets names {target}, and the {group} group, where it is, is frozen.",
                f"Add --no-freeze-{group}, or leave {target} out.",
            )
        chosen |= pairs
    layers = {
        "backbone": _layers("lora_layers", "backbone", settings.layers, config.backbone.num_hidden_layers, chosen),
        "decoder": _layers("lora_decoder_layers", "decoder", settings.decoder_layers, config.depth.num_hidden_layers,
                           chosen),
    }  # fmt: skip
    sites = [
        Site(path, part, KINDS.get(part, "linear"), settings.rank_of(part), settings.alpha_of(part))
        for path, part, matrix, layer in modules_of(config)
        if (part, matrix) in chosen and (layer is None or layer in layers[part])
    ]
    if not sites:
        raise CsmError("no adapter is left: the groups that its targets lie in are frozen.", "Thaw one of them.")
    adapted = {site.part for site in sites}
    for part, key in settings.parts.items():
        if part not in adapted:
            raise CsmError(
                f"{key} names {part}, where nothing is adapted: it is frozen or no target.",
                f"Leave {part} out; adapted are {', '.join(name for name in PARTS if name in adapted)}.",
            )
    return AdapterPlan(tuple(sites), settings.dropout, settings.bias, settings.dora, settings.rslora)


def module_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of the weight of every module that can be adapted, by path."""
    weights = parameter_shapes(config)
    return {path: weights[f"{path}.weight"] for path, *_ in modules_of(config)}


def every_site(config: ModelConfig) -> dict[str, Site]:
    """Every module that can be adapted, by path, with rank 0."""
    return {path: Site(path, part, KINDS.get(part, "linear"), 0, 0.0) for path, part, *_ in modules_of(config)}


def _automatic(settings: LoraSettings) -> tuple[str, ...]:
    plain = ("attn", "projection", "codebook0_head")
    return plain if settings.dora or settings.bias else (*plain, "acoustic_heads")


def _layers(key: str, part: str, wanted: tuple[int, ...], count: int, chosen: set[tuple[str, str]]) -> set[int]:
    for layer in wanted:
        if not 0 <= layer < count:
            raise CsmError(f"{key} names layer {layer}; the {part}'s layers go from 0 to {count - 1}.")
    if wanted and not any(pair[0] == part for pair in chosen):
        raise CsmError(f"{key} names layers of the {part}, where nothing is adapted: it is frozen or no target.")
    return set(wanted or range(count))
