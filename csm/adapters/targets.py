"""What of a CSM can be adapted, and what its parts are called.

Names are csm-mlx's (`attn`, `projection`, `codebook0_head`) and transformers' own; `backbone.` or `decoder.` before a name
of a layer's matrix means that transformer alone.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.config import ModelConfig

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
KINDS = {"acoustic_heads": "heads", "text_embeddings": "table", "audio_embeddings": "table"}
GROUPS = {"backbone": "backbone", "text_embeddings": "embeddings", "audio_embeddings": "embeddings"}


def modules_of(config: ModelConfig) -> list[tuple[str, str, str, int | None]]:
    """(path, part, name of the matrix, layer) of every module that can be adapted."""
    depths = {"backbone": config.backbone.num_hidden_layers, "decoder": config.depth.num_hidden_layers}
    found: list[tuple[str, str, str, int | None]] = []
    for part, prefix in STACKS.items():
        for layer in range(depths[part]):
            for matrix in LAYER_MATRICES:
                block = "self_attn" if matrix in LAYER_MATRICES[:4] else "mlp"
                found.append((f"{prefix}.{layer}.{block}.{matrix}", part, matrix, layer))
    return found + [(path, part, part, None) for part, path in SINGLES.items()]


def pairs_of(target: str) -> list[tuple[str, str]]:
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
