"""A model found by name, checked and described: a folder in transformers' CSM layout, or weights in another (`csm.layouts`)
with config, tokenizer and codec beside them or in a base folder. Reads headers only; no backend in here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from csm.adapters.folder import ADAPTER_FILES, files_of, is_adapter, read_plan
from csm.adapters.origin import BASE, Origin, read_base
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.flavours import read_config
from csm.json_file import read_json
from csm.layouts import PASSING_BUFFERS, TRANSFORMERS, layout_of, stored_name, stored_shapes
from csm.torch_file import SUFFIXES
from csm.weights import (
    AUDIO_TABLE,
    AUDIO_TABLE_ALIAS,
    CODEC_FILE,
    CODEC_PREFIX,
    INDEX,
    Shapes,
    check_shapes,
    parameter_shapes,
    tensor_shapes,
    weight_files,
)

EMBEDDED = ("csm-tiny",)
BESIDE_WEIGHTS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json",
    "processor_config.json", "chat_template.jinja", "generation_config.json", "recommended.json",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFolder:
    """A checked model: every tensor is there, in the shape its config asks for.

    Attributes:
        path: what was named: a folder, or a bare weights file.
        beside: the folder of tokenizer and the like; another than `path` for a bare file, where a base was given, and for
            an adapter, whose base's it is.
        config: the model's shape.
        raw_config: transformers' config, whatever the layout of the weights.
        files: where each tensor is, by transformers' names, the codec's among them; an adapter's are its base's.
        layout: how the files name and order the model's tensors; see `file_of`.
        base: where `path` is an adapter folder, the model it was trained on; None for any other model.
    """

    path: Path
    beside: Path
    config: ModelConfig
    raw_config: Mapping[str, Any]
    files: Mapping[str, Path]
    layout: str = TRANSFORMERS
    base: ModelFolder | None = None

    @cached_property
    def hash(self) -> str:
        """sha256 over config, weights and tokenizer: what a lineage calls this model. An adapter's is over its base's hash
        and its own two files."""
        if self.base is not None:
            return _sha256(self.base.hash.encode(), *files_of(self.path))
        own = self.path / "config.json"
        whole = self.layout == TRANSFORMERS and self.path == self.beside and own.is_file()
        config = own.read_bytes() if whole else json.dumps(self.raw_config, sort_keys=True).encode()
        return _sha256(config, *sorted(set(self.files.values())), *self.beside.glob("tokenizer.json"))

    @property
    def name(self) -> str:
        """What to call the model by: csm-tiny, or a path that does not depend on where one stands."""
        return embedded_name(self.path) or str(self.path.resolve())

    @property
    def origin(self) -> Origin:
        """What an adapter's base.json says of this model; what lends it the rest is said where that is not beside it."""
        alone = self.base is None and self.beside not in (self.path, self.path.parent)
        return Origin(self.name, self.path.name, self.hash, str(self.beside.resolve()) if alone else None)

    @property
    def parameters(self) -> int:
        """How many numbers the model has, without its codec."""
        return sum(math.prod(shape) for shape in parameter_shapes(self.config).values())

    @cached_property
    def recommended(self) -> Mapping[str, Any]:
        """`recommended.json`: sampling settings and values per preset; empty where the folder has none."""
        path = self.beside / "recommended.json"
        if not path.is_file():
            return {}
        values = read_json(path)
        if values.get("schema_version") != 1:
            raise CsmError(f"{path} has schema_version {values.get('schema_version')!r}; this program reads 1.")
        for key in ("sampling", "presets"):
            if not isinstance(values.get(key, {}), dict):
                raise CsmError(f"{path}: {key} is no table.")
        for key, value in values.get("presets", {}).items():
            if not isinstance(value, dict):
                raise CsmError(f"{path}: presets.{key} is no table.")
        for key, value in values.get("sampling", {}).items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
                raise CsmError(f"{path}: sampling.{key} is {value!r}; it is a number from 0 on.")
        return values

    def preset_values(self, preset: str) -> Mapping[str, Any]:
        """What the folder recommends for a preset."""
        return self.recommended.get("presets", {}).get(preset, {})

    @property
    def sampling(self) -> Mapping[str, Any]:
        """Recommended `temperature`, `top_k` and the like."""
        return self.recommended.get("sampling", {})

    def file_of(self, name: str) -> tuple[Path, str]:
        """The file that holds transformers' tensor `name`, and the name it has there."""
        if name == AUDIO_TABLE and name not in self.files:
            name = AUDIO_TABLE_ALIAS
        return self.files[name], stored_name(name, self.layout)

    @property
    def codec_names(self) -> list[str]:
        """Names of the codec's tensors."""
        return [name for name in self.files if name.startswith(CODEC_PREFIX)]


def resolve(model: str | Path) -> Path:
    """Where a model is: an embedded name, a folder, a run folder (its best), a weights file, or a hub id `owner/name`.

    Raises:
        CsmError: there is nothing of that name, or a file that is none of weights.
    """
    if not isinstance(model, str | Path):
        raise CsmError(f"a model is named by a string or a path, not {model!r:.60}.")
    name, path = str(model), Path(model).expanduser()
    if name in EMBEDDED and not path.exists():
        return _embedded(name)
    if path.is_dir():
        return _of_run(path) if (path / "recipe.json").is_file() and not (path / "config.json").is_file() else path
    if path.is_file():
        if path.name in ADAPTER_FILES:
            raise CsmError(f"{path} holds an adapter and no model.", f"Give its folder: {path.parent}.")
        if path.suffix in (".safetensors", *SUFFIXES):
            return path
        if path.suffix in (".bin", ".pkl"):
            raise CsmError(f"{path} is a pickle, which can run code when read.", "Give .safetensors or .pt.")
        raise CsmError(f"{path} is neither a model folder nor a weights file.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.parent.exists():
        return _from_hub(name)
    raise CsmError(f"there is no model {name!r}.", f"Give a folder, a run, a hub id, or {EMBEDDED[0]}.")


def _of_run(run: Path) -> Path:
    chosen = pointed_to(run, "best")
    if chosen is None:
        raise CsmError(f"the run {run} has no checkpoint yet.")
    return chosen


def _embedded(name: str) -> Path:
    return Path(__file__).parent / "assets" / name


def embedded_name(path: Path) -> str | None:
    """The name of an embedded model, where `path` is one: it stays right when the installation moves."""
    return next((name for name in EMBEDDED if _embedded(name) == path), None)


def pointed_to(run: Path, pointer: str) -> Path | None:
    """The checkpoint that a run's `best` or `last` names; None before the first.

    Raises:
        CsmError: the file names no checkpoint of the run.
    """
    if not (run / pointer).is_file() or not (run / "checkpoints").is_dir():
        return None
    name = (run / pointer).read_text(errors="replace").strip()
    if not re.fullmatch(r"step-\d+", name) or not (run / "checkpoints" / name).is_dir():
        raise CsmError(f"{run / pointer} names no checkpoint of the run.", "Write the name of one into it.")
    return run / "checkpoints" / name


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.safetensors", "README.md"]))
    except Exception as error:  # the hub client raises many kinds: gated, offline, missing
        first = str(error).strip().splitlines()[0]
        raise CsmError(f"{name} is no folder here, and the hub did not give it: {first}") from None


def open_folder(model: str | Path, base: str | Path | None = None) -> ModelFolder:
    """Resolve `model` and check its config and every tensor's name and shape.

    Args:
        model: see `resolve`.
        base: a model folder whose config, tokenizer and codec serve weights that stand alone; for an adapter folder, the
            model that it was trained on.

    Raises:
        CsmError: something is missing, broken or does not fit; all tensors at fault are named at once.
    """
    path = resolve(model)
    if is_adapter(path):
        return _with_adapter(path, base)
    raw = read_json(path / "config.json") if path.is_dir() and (path / "config.json").is_file() else None
    if raw is not None and "model_type" in raw:
        ModelConfig.from_dict(raw, str(path / "config.json"))
    files = weight_files(path, (raw or {}).get("transformers_weights"))
    shapes = _shapes_in(files)
    layout = layout_of(shapes, str(path))
    if layout == TRANSFORMERS and path.is_dir() and (raw is not None or base is None):
        if base is not None:
            raise CsmError(
                f"{path} is a whole model folder.", "Leave out --base, which serves weights that stand alone."
            )
        return _whole(path, files, shapes)
    return _with_companions(path, files, shapes, layout, base)


def open_either(model: str | Path, base: str | Path | None) -> ModelFolder:
    """`open_folder`, where `base` serves the model if it is weights alone. Raises as it does."""
    path = resolve(model)
    if is_adapter(path):
        return open_folder(path, None if (path / BASE).is_file() else base)
    alone = base is not None and not (path.is_dir() and layout_of(weight_files(path), str(path)) == TRANSFORMERS)
    return open_folder(model, base if alone else None)


def _whole(path: Path, files: Mapping[str, Path], shapes: Shapes) -> ModelFolder:
    raw = read_json(path / "config.json")
    config = ModelConfig.from_dict(raw, str(path / "config.json"))
    check_shapes(_untied(shapes), parameter_shapes(config), str(path))
    return ModelFolder(path, path, config, raw, files)


def _with_companions(
    path: Path, files: Mapping[str, Path], shapes: Shapes, layout: str, base: str | Path | None
) -> ModelFolder:
    """Weights that need config, tokenizer and codec from elsewhere: from `base`, else from beside them."""
    found = _of_base(base) if base is not None else _beside(path, any(n.startswith(CODEC_PREFIX) for n in files))
    beside, raw, codec = found
    config = ModelConfig.from_dict(raw, str(beside / "config.json"))
    ignored = PASSING_BUFFERS.get(layout, set())
    kept = {name: shape for name, shape in _untied(shapes).items() if name not in ignored}
    against = f"the config.json of the base {beside}" if base is not None else "the config.json beside it"
    check_shapes(kept, stored_shapes(config, layout), str(path), against)
    by_name = {name: files[stored_name(name, layout)] for name in parameter_shapes(config) if name != AUDIO_TABLE}
    table = stored_name(AUDIO_TABLE, layout)
    by_name[AUDIO_TABLE if table in files else AUDIO_TABLE_ALIAS] = files.get(table) or files[AUDIO_TABLE_ALIAS]
    own_codec = {name: file for name, file in files.items() if name.startswith(CODEC_PREFIX)}
    return ModelFolder(path, beside, config, raw, {**by_name, **(own_codec or codec)}, layout)


def _of_base(base: str | Path) -> tuple[Path, Mapping[str, Any], Mapping[str, Path]]:
    folder = open_folder(base)
    return folder.beside, folder.raw_config, {name: folder.files[name] for name in folder.codec_names}


def _beside(path: Path, has_codec: bool) -> tuple[Path, Mapping[str, Any], Mapping[str, Path]]:
    folder = path if path.is_dir() else path.parent
    codec = {} if has_codec else _codec_in(folder)
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    missing += [] if has_codec or codec else [CODEC_FILE]
    if missing:
        raise CsmError(
            f"{path} holds weights alone: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not beside it.",
            "Give a whole model folder of the same shape with --base FOLDER, "
            f"or make one: csm model convert {path} OUT --to transformers --base FOLDER.",
        )
    return folder, read_config(read_json(folder / "config.json"), str(folder / "config.json")), codec


def _codec_in(folder: Path) -> dict[str, Path]:
    """The codec's tensors in a folder: in a file of their own, or in a transformers model that stands there."""
    if (folder / CODEC_FILE).is_file():
        return dict.fromkeys(tensor_shapes(folder / CODEC_FILE), folder / CODEC_FILE)
    if not (folder / "model.safetensors").is_file() and not (folder / INDEX).is_file():
        return {}
    return {name: file for name, file in weight_files(folder).items() if name.startswith(CODEC_PREFIX)}


def _shapes_in(files: Mapping[str, Path]) -> Shapes:
    """Every tensor's shape but the codec's."""
    shapes: Shapes = {}
    for file in sorted(set(files.values())):
        shapes |= {name: shape for name, shape in tensor_shapes(file).items() if not name.startswith(CODEC_PREFIX)}
    return shapes


def _untied(shapes: Shapes) -> Shapes:
    """The tied audio table under its one name."""
    alias = shapes.get(AUDIO_TABLE_ALIAS)
    rest = {name: shape for name, shape in shapes.items() if name != AUDIO_TABLE_ALIAS}
    return rest if alias is None else {AUDIO_TABLE: alias, **rest}


def _with_adapter(path: Path, named: str | Path | None) -> ModelFolder:
    """An adapter's folder on the model that it was trained on: the one `named`, else what base.json says."""
    of = read_base(path, None if named is None else str(named))
    try:
        base = open_folder(of.path, of.beside)
    except CsmError as error:
        raise CsmError(
            f"{path} is an adapter of {of.name}, which cannot be opened: {error.message}",
            f"Put it back, name where it is with --base, or write that into {path / BASE}.",
        ) from None
    return on_base(path, base)


def on_base(adapter: Path, base: ModelFolder) -> ModelFolder:
    """An adapter's folder as a model, on this base.

    Raises:
        CsmError: `adapter` holds no adapter, one that does not fit the base, or one of another base by its base.json.
    """
    if not is_adapter(adapter):
        raise CsmError(
            f"{adapter} is no adapter folder.", "Give PEFT's or csm-mlx's, or a run trained with --method lora."
        )
    of = read_base(adapter, base.name)
    if of.hash not in (None, base.hash):
        raise CsmError(
            f"the adapter {adapter} was trained on {of.name} (sha256 {str(of.hash)[:12]}), and {base.path} is another "
            f"model ({base.hash[:12]})."
        )
    read_plan(adapter, base.config)
    return ModelFolder(adapter, base.beside, base.config, base.raw_config, base.files, base.layout, base)


def _sha256(start: bytes, *files: Path) -> str:
    return _sha256_of(start, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _sha256_of(start: bytes, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of `start` and the files' bytes; sizes and times are there so that a file that changed is read again."""
    digest = hashlib.sha256(start)
    for file, *_ in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
