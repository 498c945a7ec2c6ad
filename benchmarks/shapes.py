"""The models that are measured: tiny (a smoke test), small (the one the figures are of) and 1b (CSM-1B's own shape)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CsmConfig

AUDIO_VOCAB = 2051
SPECIAL_IDS = 256  # the last text ids are special, as in Llama 3


@dataclass(frozen=True)
class Stack:
    """One Llama stack, by transformers' names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int


@dataclass(frozen=True)
class Shape:
    """A CSM: backbone, depth decoder, codebooks and text ids."""

    backbone: Stack
    depth: Stack
    codebooks: int
    text_vocab: int

    @property
    def plain_ids(self) -> int:
        """How many text ids are not special; they come first."""
        return self.text_vocab - SPECIAL_IDS


SHAPES = {
    "tiny": Shape(Stack(64, 2, 4, 2, 128), Stack(32, 2, 2, 1, 64), 4, 512),
    "small": Shape(Stack(512, 8, 8, 2, 2048), Stack(256, 4, 4, 2, 1024), 32, 2000),
    "1b": Shape(Stack(2048, 16, 32, 8, 8192), Stack(1024, 4, 8, 2, 8192), 32, 128256),
}


def csm_config(name: str) -> CsmConfig:
    """transformers' config of SHAPES[name]: weights of unit gain, a codec so small that it weighs nothing."""
    from transformers import CsmConfig

    shape = SHAPES[name]
    depth = asdict(shape.depth) | {
        "backbone_hidden_size": shape.backbone.hidden_size,
        "num_codebooks": shape.codebooks,
        "vocab_size": AUDIO_VOCAB,
        "max_position_embeddings": shape.codebooks + 1,
        "initializer_range": shape.depth.hidden_size**-0.5,
        "rope_parameters": _scaled_rope(16, 0.001953125, 0.0078125),
    }
    return CsmConfig(
        **asdict(shape.backbone),
        num_codebooks=shape.codebooks,
        vocab_size=AUDIO_VOCAB,
        text_vocab_size=shape.text_vocab,
        initializer_range=shape.backbone.hidden_size**-0.5,
        bos_token_id=shape.plain_ids,
        pad_token_id=shape.plain_ids + 2,
        audio_token_id=shape.plain_ids + 2,
        audio_eos_token_id=shape.plain_ids + 3,
        rope_parameters=_scaled_rope(1024, 0.125, 0.5),
        depth_decoder_config=depth,
        codec_config=_smallest_codec(shape.codebooks),
    )


def _scaled_rope(original: int, low: float, high: float) -> dict[str, object]:
    """Llama 3's scaled RoPE with CSM-1B's numbers."""
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _smallest_codec(codebooks: int) -> dict[str, object]:
    return {
        "model_type": "mimi",
        "num_quantizers": codebooks,
        "hidden_size": 32,
        "num_filters": 4,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "upsample_groups": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
