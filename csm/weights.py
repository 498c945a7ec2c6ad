"""The names and shapes of a CSM's tensors, and the accounting of what a file holds against them. No backend in here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from csm.config import ModelConfig, Stack
from csm.errors import CsmError

AUDIO_TABLE = "depth_decoder.model.embed_tokens.weight"
AUDIO_TABLE_ALIAS = "backbone_model.embed_tokens.embed_audio_tokens.weight"
CODEC_PREFIX = "codec_model."
INDEX = "model.safetensors.index.json"

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Every tensor of a CSM but its codec's, by the name it is saved under, the tied audio table once."""
    width, depth = config.backbone.hidden_size, config.depth.hidden_size
    return {
        "embed_text_tokens.weight": (config.text_vocab_size, width),
        "lm_head.weight": (config.vocab_size, width),
        AUDIO_TABLE: (config.num_codebooks * config.vocab_size, width),
        "depth_decoder.model.inputs_embeds_projector.weight": (depth, width),
        "depth_decoder.codebooks_head.weight": (config.num_codebooks - 1, depth, config.vocab_size),
        **_stack_shapes("backbone_model.", config.backbone),
        **_stack_shapes("depth_decoder.model.", config.depth),
    }


def _stack_shapes(prefix: str, stack: Stack) -> Shapes:
    width, ffn = stack.hidden_size, stack.intermediate_size
    queries, keys = stack.num_attention_heads * stack.head_dim, stack.num_key_value_heads * stack.head_dim
    layer: Shapes = {
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (ffn, width),
        "mlp.up_proj.weight": (ffn, width),
        "mlp.down_proj.weight": (width, ffn),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    layers = {f"{prefix}layers.{i}.{k}": v for i in range(stack.num_hidden_layers) for k, v in layer.items()}
    return {f"{prefix}norm.weight": (width,), **layers}


def check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Hold what a file has against what the config asks for.

    Raises:
        CsmError: names every missing, unexpected and mis-shaped tensor at once.
    """
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} does not belong there" for name in found if name not in wanted]
    faults += [
        f"{name} is {list(found[name])}, wanted {list(wanted[name])}"
        for name in wanted
        if name in found and tuple(found[name]) != tuple(wanted[name])
    ]
    if faults:
        many = f" ({len(faults)} tensors)" if len(faults) > 1 else ""
        raise CsmError(f"{source} does not fit its config.json{many}: {'; '.join(faults)}.")


def weight_files(folder: Path) -> dict[str, Path]:
    """Which file of a model folder holds which tensor, one file or several behind an index.

    Raises:
        CsmError: there are no weights, only pickled ones, or a file is damaged.
    """
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        return dict.fromkeys(tensor_shapes(single), single)
    if index.is_file():
        try:
            named = json.loads(index.read_text())["weight_map"]
            return {name: folder / Path(file).name for name, file in named.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CsmError(f"{index} is not a weight index: it has no weight_map of file names.") from None
    pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    hint = f"{pickles[0]} is a pickle, which can run code when read: convert it." if pickles else None
    raise CsmError(f"{folder} holds no model.safetensors.", hint)


def tensor_shapes(path: Path) -> Shapes:
    """Names and shapes in a safetensors file, from its header alone.

    Raises:
        CsmError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CsmError(f"{path} is not there.")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CsmError(f"{path} is no safetensors file or is damaged ({error}).") from None
