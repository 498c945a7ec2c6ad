"""What a recipe says of its adapters (LoRA: Hu et al., 2021), checked as far as it can be without a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from csm.adapters.targets import GROUPS, KINDS, PARTS, SINGLES, pairs_of
from csm.errors import CsmError


@dataclass(frozen=True)
class LoraSettings:
    """What a recipe says of its adapters, checked.

    `targets` empty means every matrix of the groups that learn: `attn`, projection and heads, but no embeddings. `layers`
    and `decoder_layers` empty mean all. `ranks` and `alphas` name parts that differ: "decoder=4". `embeddings` learns both
    tables of embeddings as they are, beside the adapters.
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
            pairs_of(target)
        for part, rank in _by_part("lora_ranks", self.ranks).items():
            if rank < 1 or rank != int(rank):
                raise CsmError(f"lora_ranks gives {part} the rank {rank:g}; a rank is a whole number from 1.")
        _by_part("lora_alphas", self.alphas)
        if self.dora and self.bias:
            raise CsmError("lora_dora and lora_bias exclude each other.", "DoRA's norm has no place for a bias.")
        option = "lora_dora" if self.dora else "lora_bias" if self.bias else ""
        unfit = [target for target in self.targets if target in KINDS]
        if option and unfit:
            raise CsmError(
                f"{option} cannot be had for {' and '.join(unfit)}: PEFT's adapters cannot express it there.",
                f"Leave out {option}, or name other targets, such as attn projection codebook0_head.",
            )

        twice = [target for target in self.targets if self.embeddings and GROUPS.get(target) == "embeddings"]
        if twice:
            raise CsmError(
                f"lora_embeddings learns {' and '.join(twice)} whole, and lora_targets adapts them besides.",
                "Leave one of the two out.",
            )

    @property
    def whole(self) -> tuple[str, ...]:
        """The parameters that learn as they are, by transformers' names."""
        tables = [path for part, path in SINGLES.items() if GROUPS.get(part) == "embeddings"]
        return tuple(f"{path}.weight" for path in tables) if self.embeddings else ()

    @property
    def parts(self) -> dict[str, str]:
        """The parts that have a rank or an alpha of their own, each with the key that names it."""
        ranks, alphas = _by_part("lora_ranks", self.ranks), _by_part("lora_alphas", self.alphas)
        return dict.fromkeys(alphas, "lora_alphas") | dict.fromkeys(ranks, "lora_ranks")

    def rank_of(self, part: str) -> int:
        return int(_by_part("lora_ranks", self.ranks).get(part, self.rank))

    def alpha_of(self, part: str) -> float:
        return _by_part("lora_alphas", self.alphas).get(part, self.alpha)


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
