"""The names and shapes of a CSM's tensors, and the accounting of what a file holds against them. No backend in here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from csm.config import ModelConfig, Stack
from csm.errors import CsmError
from csm.torch_file import SUFFIXES, read_torch_file

AUDIO_TABLE = "depth_decoder.model.embed_tokens.weight"
AUDIO_TABLE_ALIAS = "backbone_model.embed_tokens.embed_audio_tokens.weight"
CODEC_PREFIX = "codec_model."
INDEX = "model.safetensors.index.json"
CODEC_FILE = "codec.safetensors"
NOT_WEIGHTS = (CODEC_FILE, "adapter_model.safetensors", "adapters.safetensors", "optimizer.safetensors",
               "optimizer_state.safetensors")  # fmt: skip

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


def check_shapes(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    source: str,
    against: str = "its config.json",
) -> None:
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
        raise CsmError(f"{source} does not fit {against}{many}: {'; '.join(faults)}.")


def weight_files(path: Path, named: str | None = None) -> dict[str, Path]:
    """Which file holds which tensor, by the names that the files give: one file, or several behind an index.

    Args:
        path: a weights file, or a folder: its model.safetensors, its index, or the only weights file that it holds.
        named: the file or index that the folder's config names (`transformers_weights`).

    Raises:
        CsmError: there are no weights or several, only pickled ones, or a file is damaged.
    """
    if path.is_file():
        return dict.fromkeys(tensor_shapes(path), path)
    single, index = path / "model.safetensors", path / INDEX
    if named:
        single, index = (
            (path / "none", path / Path(named).name) if named.endswith(".json") else (path / Path(named).name, index)
        )
    if single.is_file():
        return dict.fromkeys(tensor_shapes(single), single)
    if index.is_file():
        try:
            found = json.loads(index.read_text())["weight_map"]
            return {name: path / Path(file).name for name, file in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CsmError(f"{index} is not a weight index: it has no weight_map of file names.") from None
    only = _only_file(path)
    return dict.fromkeys(tensor_shapes(only), only)


def _only_file(folder: Path) -> Path:
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", *SUFFIXES))
    files = [name for name in names if name not in NOT_WEIGHTS]
    if len(files) > 1:
        raise CsmError(f"{folder} holds several weights files: {', '.join(files)}.", "Name the one that you mean.")
    if files:
        return folder / files[0]
    pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pkl")]
    hint = f"{pickles[0]} is a pickle, which can run code when read: convert it." if pickles else None
    raise CsmError(f"{folder} holds no model.safetensors.", hint)


def tensor_shapes(path: Path) -> Shapes:
    """Names and shapes in a weights file: from a safetensors file's header alone, or from a `.pt`, which is mapped.

    Raises:
        CsmError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix in SUFFIXES:
        return {name: tuple(tensor.shape) for name, tensor in read_torch_file(path).items()}
    if not path.is_file():
        raise CsmError(f"{path} is not there.")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CsmError(f"{path} is no safetensors file or is damaged ({error}).") from None
