"""ModelConfig: the shape of a CSM, read from a transformers `config.json`. No weights and no backend in here.

Limits: SiLU, no biases, RoPE plain or scaled as in Llama 3: what CSM is made of. Anything else is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from csm.errors import CsmError


@dataclass(frozen=True)
class Stack:
    """The shape of one Llama stack: the backbone or the depth decoder."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: tuple[tuple[str, Any], ...]

    def inverse_frequencies(self) -> np.ndarray:
        """RoPE's inverse frequencies `(head_dim / 2,)` float32, stretched as in Llama 3.1 where the config says so."""
        rope = dict(self.rope)
        frequency = 1.0 / rope["rope_theta"] ** (np.arange(0, self.head_dim, 2, dtype=np.float32) / self.head_dim)
        if rope["rope_type"] == "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
            kept = np.clip((turns - low) / (high - low), 0, 1)
            frequency = kept * frequency + (1 - kept) * frequency / rope["factor"]
        return frequency.astype(np.float32)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a CSM and the ids that its formats agree on. `codec` is the codec's own config, untouched."""

    backbone: Stack
    depth: Stack
    num_codebooks: int
    vocab_size: int
    text_vocab_size: int
    codec: Mapping[str, Any]

    @property
    def spoken_codes(self) -> int:
        """How many codes the codec knows; the audio vocabulary's last few may be ids that are never sound."""
        return min(self.vocab_size, int(self.codec.get("codebook_size", self.vocab_size)))

    def code_problem(self, codes: np.ndarray) -> str | None:
        """What keeps integers from being this model's codes `(K, T)`, to be read after a name; None if nothing does."""
        if codes.ndim != 2 or len(codes) != self.num_codebooks or codes.shape[1] == 0:
            return f"has codes of shape {codes.shape}; this model's are ({self.num_codebooks}, T)"
        if codes.min() < 0 or codes.max() >= self.spoken_codes:
            return f"has codes from {codes.min()} to {codes.max()}; this model's go from 0 to {self.spoken_codes - 1}"
        return None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], source: str) -> ModelConfig:
        """Read transformers' CSM config, as versions 4 and 5 write it.

        Raises:
            CsmError: a key is missing or holds what no CSM has; the sentence names it and `source`.
        """
        if config.get("model_type") != "csm":
            raise CsmError(f"{source} describes a model of type {config.get('model_type')!r}, not csm.")
        depth = _value(config, "depth_decoder_config", Mapping, source)
        codebooks = _value(config, "num_codebooks", int, source)
        if depth.get("num_codebooks", codebooks) != codebooks:
            raise CsmError(f"{source}: backbone and depth decoder disagree on num_codebooks.")
        codec = _value(config, "codec_config", Mapping, source)
        backbone_stack = _stack(config, source, 2048)
        depth_stack = _stack(depth, f"{source}, depth_decoder_config", codebooks + 1)
        if depth.get("backbone_hidden_size", backbone_stack.hidden_size) != backbone_stack.hidden_size:
            raise CsmError(f"{source}: depth_decoder_config.backbone_hidden_size differs from hidden_size.")
        return cls(
            backbone_stack,
            depth_stack,
            codebooks,
            _value(config, "vocab_size", int, source),
            _value(config, "text_vocab_size", int, source),
            codec,
        )


def _stack(config: Mapping[str, Any], source: str, default_positions: int) -> Stack:
    for key, only in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if config.get(key, only) != only:
            raise CsmError(f"{source}: {key} is {config[key]!r}; CSM has {only!r} there.")
    size, heads = _value(config, "hidden_size", int, source), _value(config, "num_attention_heads", int, source)
    return Stack(
        hidden_size=size,
        num_hidden_layers=_value(config, "num_hidden_layers", int, source),
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or size // heads,
        intermediate_size=_value(config, "intermediate_size", int, source),
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-5, source),
        max_position_embeddings=_value(
            {"max_position_embeddings": default_positions, **config}, "max_position_embeddings", int, source
        ),
        rope=_rope(config, source),
    )


def _rope(config: Mapping[str, Any], source: str) -> tuple[tuple[str, Any], ...]:
    """transformers 5 keeps `rope_parameters`; 4 kept `rope_theta` beside `rope_scaling`."""
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(key) or {}
    if not isinstance(given, Mapping):
        raise CsmError(f"{source}: {key} is {given!r}; it is a table.")
    rope = {"rope_theta": config.get("rope_theta", 500000.0), **given}
    rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    wanted = {
        "default": (),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if rope["rope_type"] not in wanted:
        raise CsmError(f"{source}: RoPE of type {rope['rope_type']!r} is not one of {', '.join(wanted)}.")
    missing = [key for key in wanted[rope["rope_type"]] if key not in rope]
    if missing:
        raise CsmError(f"{source}: RoPE of type llama3 lacks {', '.join(missing)}.")
    for name in ("rope_theta", *wanted[rope["rope_type"]]):
        _number(rope, name, None, f"{source}, {key}")
    return tuple(sorted(rope.items()))


def _number(config: Mapping[str, Any], key: str, default: float | None, source: str) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise CsmError(f"{source}: {key} is {value!r}; it is a number above 0.")
    return float(value)


def _value(config: Mapping[str, Any], key: str, kind: type, source: str) -> Any:
    value = config.get(key)
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 1):
        found = "is missing" if key not in config else f"is {value!r}"
        raise CsmError(f"{source}: {key} {found}; a CSM's config.json needs it.")
    return value
