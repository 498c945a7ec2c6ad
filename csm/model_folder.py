"""A model folder in transformers' CSM layout: found by name, checked, described. Reads headers only; no backend in here."""

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

from csm.adapter_folder import BASE, CONFIG, TENSORS, is_adapter, read_base, read_plan
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.weights import (
    AUDIO_TABLE,
    AUDIO_TABLE_ALIAS,
    CODEC_PREFIX,
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
    """A checked model folder: every tensor is there, in the shape its config asks for.

    An adapter folder is one too: `base` is the model that it was trained on, and all but the adapter is that model's.
    """

    path: Path
    config: ModelConfig
    raw_config: Mapping[str, Any]
    files: Mapping[str, Path]
    base: ModelFolder | None = None

    @cached_property
    def hash(self) -> str:
        """sha256 over config and weights: what a lineage calls this model. An adapter's is over its base's hash and its
        own two files."""
        if self.base is not None:
            return _sha256(self.base.hash, self.path / CONFIG, self.path / TENSORS)
        return _sha256("", self.path / "config.json", *sorted(set(self.files.values())))

    @property
    def home(self) -> Path:
        """Where tokenizer, config and recommendation lie: the folder itself, or, of an adapter, its base's."""
        return self.path if self.base is None else self.base.home

    @property
    def name(self) -> str:
        """What to call the model by: csm-tiny, or a path that does not depend on where one stands."""
        embedded = [name for name in EMBEDDED if self.path == Path(__file__).parent / "assets" / name]
        return embedded[0] if embedded else str(self.path.resolve())

    @property
    def parameters(self) -> int:
        """How many numbers the model has, without its codec."""
        return sum(math.prod(shape) for shape in parameter_shapes(self.config).values())

    @cached_property
    def recommended(self) -> Mapping[str, Any]:
        """`recommended.json`: sampling settings and values per preset; empty where the folder has none."""
        path = self.home / "recommended.json"
        if not path.is_file():
            return {}
        values = read_json(path)
        if values.get("schema_version") != 1:
            raise CsmError(f"{path} has schema_version {values.get('schema_version')!r}; this program reads 1.")
        for key in ("sampling", "presets"):
            if not isinstance(values.get(key, {}), dict):
                raise CsmError(f"{path}: {key} is no table.")
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
        """The file that holds the tensor `name`, and the name it has there."""
        stored = AUDIO_TABLE_ALIAS if name == AUDIO_TABLE and name not in self.files else name
        return self.files[stored], stored

    @property
    def codec_names(self) -> list[str]:
        """Names of the codec's tensors."""
        return [name for name in self.files if name.startswith(CODEC_PREFIX)]


def resolve(model: str | Path) -> Path:
    """The folder of a model: an embedded name, a model folder, a run folder (its best), or a hub id `owner/name`.

    Raises:
        CsmError: there is nothing of that name; a bare weights file and a pickle are refused by name.
    """
    name, path = str(model), Path(model).expanduser()
    if name in EMBEDDED and not path.exists():
        return Path(__file__).parent / "assets" / name
    if path.is_dir():
        return _of_run(path) if (path / "recipe.json").is_file() and not (path / "config.json").is_file() else path
    if path.is_file():
        if path.suffix == ".safetensors" or path.suffix in (".pt", ".pth", ".bin", ".pkl"):
            reason = (
                "a bare weights file" if path.suffix == ".safetensors" else "a pickle, which can run code when read"
            )
            raise CsmError(
                f"{path} is {reason}.", "Give a model folder: config.json, model.safetensors, tokenizer.json."
            )
        raise CsmError(f"{path} is a file, not a model folder.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not path.parent.exists():
        return _from_hub(name)
    raise CsmError(f"there is no model {name!r}.", f"Give a folder, a run, a hub id, or {EMBEDDED[0]}.")


def _of_run(run: Path) -> Path:
    chosen = pointed_to(run, "best")
    if chosen is None:
        raise CsmError(f"the run {run} has no checkpoint yet.")
    return chosen


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


def open_folder(model: str | Path) -> ModelFolder:
    """Resolve `model` and check the folder's config and every tensor's name and shape.

    Raises:
        CsmError: something is missing, broken or does not fit; all tensors at fault are named at once.
    """
    path = resolve(model)
    if is_adapter(path):
        return _with_adapter(path)
    raw = read_json(path / "config.json")
    config = ModelConfig.from_dict(raw, str(path / "config.json"))
    files = weight_files(path)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(files.values())):
        shapes |= {name: shape for name, shape in tensor_shapes(file).items() if not name.startswith(CODEC_PREFIX)}
    shapes[AUDIO_TABLE] = shapes.get(AUDIO_TABLE) or shapes.get(AUDIO_TABLE_ALIAS) or ()
    shapes.pop(AUDIO_TABLE_ALIAS, None)
    if not shapes[AUDIO_TABLE]:
        del shapes[AUDIO_TABLE]
    check_shapes(shapes, parameter_shapes(config), str(path))
    return ModelFolder(path, config, raw, files)


def _with_adapter(path: Path) -> ModelFolder:
    """An adapter's folder on the model that it was trained on, found by base.json."""
    of = read_base(path)
    try:
        base = open_folder(of.path)
    except CsmError as error:
        raise CsmError(
            f"{path} is an adapter of {of.name}, which cannot be opened: {error.message}",
            f"Put it back, or write where it is into {path / BASE}.",
        ) from None
    if of.hash not in (None, base.hash):
        raise CsmError(
            f"the adapter {path} was trained on {of.name} (sha256 {str(of.hash)[:12]}), and {base.path} is another model "
            f"({base.hash[:12]})."
        )
    read_plan(path, base.config)
    return ModelFolder(path, base.config, base.raw_config, base.files, base)


def _sha256(start: str, *files: Path) -> str:
    return _sha256_of(start, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _sha256_of(start: str, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of `start` and the files' bytes; sizes and times are there so that a file that changed is read again."""
    digest = hashlib.sha256(start.encode())
    for file, *_ in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CsmError: the file is missing, is not JSON (line and column named), or holds no object.
    """
    if not path.is_file():
        raise CsmError(f"{path} is not there.")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise CsmError(f"{path} is not text.") from None
    except json.JSONDecodeError as error:
        raise CsmError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from None
    if not isinstance(value, dict):
        raise CsmError(f"{path} holds no JSON object.")
    return value
