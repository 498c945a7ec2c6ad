"""The three layouts that a CSM's weights come in, as names and an order of rows: pure functions over names and arrays.

*transformers* is ours. *sesame* has torchtune's names (Sesame's own code, `csm_1b.pt`); *csm-mlx* has mlx-lm's
(`ckpt.safetensors`). Both keep each rotated pair of a query or key head side by side, rows (0, 1), (2, 3), ..., where
transformers keeps the pairs' first halves, then their second; all else is a change of names. Arrays may be numpy's or torch's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from csm.config import ModelConfig
from csm.errors import CsmError
from csm.weights import AUDIO_TABLE, CODEC_PREFIX, Shapes, parameter_shapes

TRANSFORMERS, SESAME, CSM_MLX = LAYOUTS = ("transformers", "sesame", "csm-mlx")
PASSING_BUFFERS = {SESAME: {"backbone_causal_mask", "decoder_causal_mask"}}
"""What Sesame's code leaves in a state dict that was saved after it generated: masks, not weights."""

_TOP = {
    "embed_text_tokens.weight": "text_embeddings.weight",
    AUDIO_TABLE: "audio_embeddings.weight",
    "lm_head.weight": "codebook0_head.weight",
    "depth_decoder.model.inputs_embeds_projector.weight": "projection.weight",
    "depth_decoder.codebooks_head.weight": "audio_head",
}
_STACKS = {"backbone_model": "backbone", "depth_decoder.model": "decoder"}
_SESAME_PARTS = {
    "self_attn.q_proj": "attn.q_proj.weight",
    "self_attn.k_proj": "attn.k_proj.weight",
    "self_attn.v_proj": "attn.v_proj.weight",
    "self_attn.o_proj": "attn.output_proj.weight",
    "mlp.gate_proj": "mlp.w1.weight",
    "mlp.down_proj": "mlp.w2.weight",
    "mlp.up_proj": "mlp.w3.weight",
    "input_layernorm": "sa_norm.scale",
    "post_attention_layernorm": "mlp_norm.scale",
    "norm": "norm.scale",
}
_OF_STACK = re.compile(r"(backbone_model|depth_decoder\.model)\.(layers\.\d+\.)?([\w.]+)\.weight")
_ROTATED = re.compile(r"(backbone_model|depth_decoder\.model)\.layers\.\d+\.self_attn\.[qk]_proj\.weight")
_SIGNS = {
    TRANSFORMERS: re.compile(r"(backbone_model|depth_decoder|embed_text_tokens|lm_head)\."),
    SESAME: re.compile(r"(backbone|decoder)\.(layers\.\d+\.(attn\.|mlp\.w\d|sa_norm|mlp_norm)|norm\.scale)"),
    CSM_MLX: re.compile(r"(backbone|decoder)\.(layers\.\d+\.(self_attn\.|mlp\.\w+_proj|\w+_layernorm)|norm\.weight)"),
}


def stored_name(name: str, layout: str) -> str:
    """The name that transformers' parameter `name` has in a layout. The codec's tensors have theirs everywhere."""
    if layout == TRANSFORMERS or name.startswith(CODEC_PREFIX):
        return name
    if name in _TOP:
        return _TOP[name]
    found = _OF_STACK.fullmatch(name)
    assert found, f"{name} is no parameter of a CSM"
    stack, layer, part = found.groups()
    return f"{_STACKS[stack]}.{layer or ''}{_SESAME_PARTS[part] if layout == SESAME else f'{part}.weight'}"


def stored_shapes(config: ModelConfig, layout: str) -> Shapes:
    """Every tensor that a file of this layout holds for this config, the codec's apart."""
    return {stored_name(name, layout): shape for name, shape in parameter_shapes(config).items()}


def layout_of(names: Iterable[str], source: str) -> str:
    """The layout that most of these names are of.

    Raises:
        CsmError: none of them is a CSM's in any layout.
    """
    names = list(names)
    counts = {layout: sum(bool(sign.match(name)) for name in names) for layout, sign in _SIGNS.items()}
    best = max(LAYOUTS, key=lambda layout: counts[layout])
    if not counts[best]:
        some = ", ".join(sorted(names)[:3]) or "nothing"
        raise CsmError(f"{source} holds no weights of a CSM as {', '.join(LAYOUTS)} name them (it holds {some}).")
    return best


def rotated_head(name: str, config: ModelConfig) -> int | None:
    """The width of a head where transformers' parameter `name` makes what RoPE rotates, else None."""
    found = _ROTATED.fullmatch(name)
    if not found:
        return None
    return (config.backbone if found[1] == "backbone_model" else config.depth).head_dim


def pairs_together(rows: Any, head_dim: int) -> Any:
    """transformers' order to the others': `(heads * head_dim, ...)`, row i and i + head_dim / 2 of a head side by side."""
    return rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halves_apart(rows: Any, head_dim: int) -> Any:
    """The other way: `(heads * head_dim, ...)`, the pairs' first rows, then their second."""
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def into_layout(name: str, tensor: Any, layout: str, config: ModelConfig) -> Any:
    """transformers' parameter `name` (or what has its rows: LoRA's B, DoRA's magnitudes) in the row order of `layout`."""
    head = None if layout == TRANSFORMERS else rotated_head(name, config)
    return pairs_together(tensor, head) if head else tensor


def out_of_layout(name: str, tensor: Any, layout: str, config: ModelConfig) -> Any:
    """The way back from `into_layout`."""
    head = None if layout == TRANSFORMERS else rotated_head(name, config)
    return halves_apart(tensor, head) if head else tensor
