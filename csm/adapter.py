"""LoRA (Hu et al., 2021) as a plan: which modules of a CSM are adapted, with what rank and scale. No weights, no backend.

Names are csm-mlx's (`attn`, `projection`, `codebook0_head`) and transformers' own; `backbone.` or `decoder.` before a name
of a layer's matrix means that transformer alone. A group that is frozen takes no adapter.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from csm.config import ModelConfig
from csm.errors import CsmError
from csm.weights import parameter_shapes

LAYER_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STACKS = {"backbone": "backbone_model.layers", "decoder": "depth_decoder.model.layers"}
SINGLES = {
    "projection": "depth_decoder.model.inputs_embeds_projector",
    "codebook0_head": "lm_head",
    "acoustic_heads": "depth_decoder.codebooks_head",
    "text_embeddings": "embed_text_tokens",
    "audio_embeddings": "depth_decoder.model.embed_tokens",
}
PARTS = (*STACKS, *SINGLES)
TARGETS = ("attn", *LAYER_MATRICES, *SINGLES)
EMBEDDINGS = ("text_embeddings", "audio_embeddings")
KINDS = {"acoustic_heads": "heads", "text_embeddings": "table", "audio_embeddings": "table"}
GROUPS = {"backbone": "backbone", "text_embeddings": "embeddings", "audio_embeddings": "embeddings"}


@dataclass(frozen=True)
class LoraSettings:
    """What a recipe says of its adapters, checked.

    `targets` empty means every matrix of the groups that learn: `attn`, projection and heads, but no embeddings.
    `embeddings` adds both tables of embeddings to whatever the targets are. `layers`
    and `decoder_layers` empty mean all. `ranks` and `alphas` name parts that differ: "decoder=4".
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    bias: bool = False
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    decoder_layers: tuple[int, ...] = ()
    ranks: tuple[str, ...] = ()
    alphas: tuple[str, ...] = ()
    embeddings: bool = False
    dora: bool = False
    rslora: bool = False

    def __post_init__(self) -> None:
        for target in self.targets:
            _pairs_of(target)
        for part, rank in _by_part("lora_ranks", self.ranks).items():
            if rank < 1 or rank != int(rank):
                raise CsmError(f"lora_ranks gives {part} the rank {rank:g}; a rank is a whole number from 1.")
        _by_part("lora_alphas", self.alphas)
        if self.dora and self.bias:
            raise CsmError("lora_dora and lora_bias exclude each other.", "DoRA's norm has no place for a bias.")
        option = "lora_dora" if self.dora else "lora_bias" if self.bias else ""
        unfit = [target for target in self.named if target in KINDS]
        if option and unfit:
            raise CsmError(
                f"{option} cannot be had for {' and '.join(unfit)}: PEFT's adapters cannot express it there.",
                f"Leave out {option}, or name other targets, such as attn projection codebook0_head.",
            )

    @property
    def named(self) -> tuple[str, ...]:
        """The targets that were asked for by name, embeddings included; empty where all is left to the default."""
        return tuple(dict.fromkeys((*self.targets, *(EMBEDDINGS if self.embeddings else ()))))

    def rank_of(self, part: str) -> int:
        return int(_by_part("lora_ranks", self.ranks).get(part, self.rank))

    def alpha_of(self, part: str) -> float:
        return _by_part("lora_alphas", self.alphas).get(part, self.alpha)


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
        CsmError: a layer is out of range, a target that was named lies in a frozen group, or nothing is left.
    """
    resting = set(frozen)
    chosen: set[tuple[str, str]] = set()
    for target in dict.fromkeys((*(settings.targets or _automatic(settings)), *settings.named)):
        pairs = {pair for pair in _pairs_of(target) if GROUPS.get(pair[0], "decoder") not in resting}
        if target in settings.named and not pairs:
            group = GROUPS.get(_pairs_of(target)[0][0], "decoder")
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
        for path, part, matrix, layer in _modules(config)
        if (part, matrix) in chosen and (layer is None or layer in layers[part])
    ]
    if not sites:
        raise CsmError("no adapter is left: the groups that its targets lie in are frozen.", "Thaw one of them.")
    return AdapterPlan(tuple(sites), settings.dropout, settings.bias, settings.dora, settings.rslora)


def module_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of the weight of every module that can be adapted, by path."""
    weights = parameter_shapes(config)
    return {path: weights[f"{path}.weight"] for path, *_ in _modules(config)}


def every_site(config: ModelConfig) -> dict[str, Site]:
    """Every module that can be adapted, by path, with rank 0."""
    return {path: Site(path, part, KINDS.get(part, "linear"), 0, 0.0) for path, part, *_ in _modules(config)}


def _modules(config: ModelConfig) -> list[tuple[str, str, str, int | None]]:
    """(path, part, name of the matrix, layer) of every module that can be adapted."""
    depths = {"backbone": config.backbone.num_hidden_layers, "decoder": config.depth.num_hidden_layers}
    found: list[tuple[str, str, str, int | None]] = []
    for part, prefix in STACKS.items():
        for layer in range(depths[part]):
            for matrix in LAYER_MATRICES:
                block = "self_attn" if matrix in LAYER_MATRICES[:4] else "mlp"
                found.append((f"{prefix}.{layer}.{block}.{matrix}", part, matrix, layer))
    return found + [(path, part, part, None) for part, path in SINGLES.items()]


def _automatic(settings: LoraSettings) -> tuple[str, ...]:
    plain = ("attn", "projection", "codebook0_head")
    return plain if settings.dora or settings.bias else (*plain, "acoustic_heads")


def _pairs_of(target: str) -> list[tuple[str, str]]:
    """The (part, matrix) pairs that a target's name stands for."""
    part, dot, name = target.rpartition(".")
    if target in SINGLES:
        return [(target, target)]
    if (dot and part not in STACKS) or name not in ("attn", *LAYER_MATRICES):
        close = difflib.get_close_matches(target, TARGETS, 1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(TARGETS)}."
        raise CsmError(f"lora_targets names {target!r}, which is no part of a CSM.", hint)
    matrices = LAYER_MATRICES if name == "attn" else (name,)
    return [(stack, matrix) for stack in ([part] if dot else STACKS) for matrix in matrices]


def _by_part(key: str, entries: tuple[str, ...]) -> Mapping[str, float]:
    """ "decoder=4" and the like, as a mapping."""
    found: dict[str, float] = {}
    for entry in entries:
        part, _, value = entry.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if part not in PARTS or not 0 < number < 1e6:
            raise CsmError(f"{key} holds {entry!r}; it is PART=NUMBER.", f"Parts are: {', '.join(PARTS)}.")
        found[part] = number
    return found


def _layers(key: str, part: str, wanted: tuple[int, ...], count: int, chosen: set[tuple[str, str]]) -> set[int]:
    for layer in wanted:
        if not 0 <= layer < count:
            raise CsmError(f"{key} names layer {layer}; the {part}'s layers go from 0 to {count - 1}.")
    if wanted and not any(pair[0] == part for pair in chosen):
        raise CsmError(f"{key} names layers of the {part}, where nothing is adapted: it is frozen or no target.")
    return set(wanted or range(count))
