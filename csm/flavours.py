"""The config.json of Sesame's layout, which names flavours, to and from transformers' config, which gives numbers.

Sesame's code knows `llama-1B` and `llama-100M`; its loader takes five fields and ignores others. Ours always adds
transformers' whole config under `transformers_config`, so that a shape that no flavour names comes back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from csm.config import ModelConfig, Stack
from csm.errors import CsmError

BACKBONE, DEPTH = "llama-1B", "llama-100M"
CUSTOM = "custom"
EXPLICIT = "transformers_config"

_BOTH = {"intermediate_size": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0}


def _numbers(width: int, layers: int, heads: int, keys: int, rope: tuple[int, float, float]) -> dict[str, Any]:
    old, low, high = rope
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": low, "high_freq_factor": high}
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    more = {"num_key_value_heads": keys, "head_dim": width // heads}
    return {**shape, **more, **_BOTH, "rope_scaling": {**scaling, "original_max_position_embeddings": old}}


# RoPE in the numbers that transformers' checkpoint gives; the frequencies are those of factors 1 and 4 over 8192.
FLAVOURS = {
    BACKBONE: _numbers(2048, 16, 32, 8, (1024, 0.125, 0.5)),
    DEPTH: _numbers(1024, 4, 8, 2, (16, 0.001953125, 0.0078125)),
}
_IDS = {
    "bos_token_id": 128000,
    "pad_token_id": 128002,
    "audio_token_id": 128002,
    "audio_eos_token_id": 128003,
    "codebook_pad_token_id": 2050,
    "codebook_eos_token_id": 0,
}


def read_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """transformers' CSM config from the config.json of any layout.

    Raises:
        CsmError: it is none of these, names an unknown flavour, or contradicts its own explicit numbers.
    """
    if "model_type" in config:
        return dict(config)
    sizes = {key: config.get(key) for key in ("text_vocab_size", "audio_vocab_size", "audio_num_codebooks")}
    if EXPLICIT in config:
        explicit = config[EXPLICIT]
        if not isinstance(explicit, Mapping):
            raise CsmError(f"{source}: {EXPLICIT} is no object.")
        _agree(sizes, explicit, source)
        return dict(explicit)
    missing = [key for key in ("backbone_flavor", "decoder_flavor", *sizes) if key not in config]
    if missing:
        raise CsmError(f"{source} is neither transformers' config nor Sesame's: {', '.join(missing)} missing.")
    for key in ("backbone_flavor", "decoder_flavor"):
        if config[key] not in FLAVOURS:
            raise CsmError(
                f"{source}: the {key} {config[key]!r} is not one of {', '.join(FLAVOURS)}.",
                f"Give the numbers as transformers' config under {EXPLICIT}.",
            )
    return _from_flavours(config)


def write_config(raw: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The config.json beside weights in Sesame's or csm-mlx's layout: Sesame's five fields, then all numbers."""
    return {
        "backbone_flavor": flavour_of(config.backbone, BACKBONE),
        "decoder_flavor": flavour_of(config.depth, DEPTH),
        "text_vocab_size": config.text_vocab_size,
        "audio_vocab_size": config.vocab_size,
        "audio_num_codebooks": config.num_codebooks,
        EXPLICIT: dict(raw),
    }


def flavour_of(stack: Stack, flavour: str) -> str:
    """`flavour` where the stack has its shape and its RoPE frequencies, else `custom`."""
    raw = _from_flavours({"backbone_flavor": flavour, "decoder_flavor": DEPTH, **dict.fromkeys(_SIZES, 2)})
    wanted = ModelConfig.from_dict(raw, flavour).backbone
    if replace(stack, rope=(), max_position_embeddings=0) != replace(wanted, rope=(), max_position_embeddings=0):
        return CUSTOM
    same = np.allclose(stack.inverse_frequencies(), wanted.inverse_frequencies(), rtol=1e-5, atol=0)
    return flavour if same else CUSTOM


_SIZES = ("text_vocab_size", "audio_vocab_size", "audio_num_codebooks")


def _from_flavours(config: Mapping[str, Any]) -> dict[str, Any]:
    backbone, depth = FLAVOURS[config["backbone_flavor"]], FLAVOURS[config["decoder_flavor"]]
    codebooks, vocabulary = config["audio_num_codebooks"], config["audio_vocab_size"]
    shared = {"num_codebooks": codebooks, "vocab_size": vocabulary}
    return {
        "architectures": ["CsmForConditionalGeneration"],
        "model_type": "csm",
        **backbone,
        **shared,
        **_IDS,
        "text_vocab_size": config["text_vocab_size"],
        "max_position_embeddings": 2048,
        "tie_codebooks_embeddings": True,
        "depth_decoder_config": {
            "model_type": "csm_depth_decoder_model",
            **depth,
            **shared,
            "backbone_hidden_size": backbone["hidden_size"],
            "max_position_embeddings": codebooks + 1 if isinstance(codebooks, int) else 33,
        },
        "codec_config": {"model_type": "mimi", "codebook_size": 2048, "num_quantizers": 32},
    }


def _agree(sizes: Mapping[str, Any], explicit: Mapping[str, Any], source: str) -> None:
    keys = {
        "text_vocab_size": "text_vocab_size",
        "audio_vocab_size": "vocab_size",
        "audio_num_codebooks": "num_codebooks",
    }
    for key, other in keys.items():
        if sizes[key] is not None and sizes[key] != explicit.get(other):
            raise CsmError(f"{source}: {key} is {sizes[key]}, but {EXPLICIT} has {other} {explicit.get(other)}.")
