"""Recipe: one frozen value that says what a fine-tune is. Layers are merged once, at the edge, each value with its source.

preset < the model folder's recommendation < recipe file < flags.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from csm.adapters.settings import LoraSettings
from csm.errors import CsmError

METHODS = ("full", "lora")
SELECT_BY = ("validation_loss", "speaker_similarity", "score")
BY_SOUND = SELECT_BY[1:]
LOGS = ("tensorboard", "wandb", "trackio")
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "constant")
CHANGEABLE = ("sample_every", "keep", "gradient_ckpt", "log_to", "log_every")


@dataclass(frozen=True)
class Recipe:
    """Everything that shapes what is learned, and what is kept of it. Rates of groups are factors of `learning_rate`.

    `decoder_fraction` is the share of a clip's frames that train the depth decoder in a step: its end always, and one more
    at least; `save_every` 0 means once an epoch;
    `max_steps` 0 means as many as the epochs take; `max_grad_norm` 0 means no clipping; `early_stop` 0 never stops
    early; `keep` 0 keeps every checkpoint; `sample_every` 0 speaks no samples; `max_batch_frames` 0 does not limit a
    micro-batch's rows (padding included); `batch_size` 0, or "auto", is found before the first update, and what was found
    is written down. `val_every` 0 validates where a checkpoint is due and nowhere else; `val_batch_size` 0 is `batch_size`;
    `log_every` is updates between lines of metrics.jsonl. `max_audio_length_ms` 0 cuts no turn, `max_seq_len` 0 is as many
    rows as the model takes. `clip_context` lets clips that stand alone have other clips of their speaker before them. Keys
    that begin with `lora_` are for the method lora alone; see `csm.adapters.settings.LoraSettings`. The keys of `CHANGEABLE`
    leave the numbers alone: a run may be gone on with under other values of them.
    """

    learning_rate: float = 2e-5
    epochs: int = 5
    max_steps: int = 0
    batch_size: int = 4
    max_batch_frames: int = 0
    accumulate: int = 1
    semantic_weight: float = 1.0
    acoustic_weight: float = 1.0
    decoder_fraction: float = 1.0
    freeze_backbone: bool = False
    freeze_decoder: bool = False
    freeze_embeddings: bool = False
    backbone_rate: float = 1.0
    decoder_rate: float = 1.0
    embeddings_rate: float = 0.5
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup_share: float = 0.1
    max_grad_norm: float = 1.0
    context_turns: int = 0
    clip_context: bool = True
    max_audio_length_ms: float = 0.0
    max_seq_len: int = 0
    val_split: float = 0.1
    val_every: int = 0
    val_batch_size: int = 0
    save_every: int = 0
    log_every: int = 1
    seed: int = 0
    terms: tuple[str, ...] = ()
    term_factor: float = 3.0
    mask_speaker_ids: tuple[int, ...] = ()
    only_speaker_ids: tuple[int, ...] = ()
    context_dropout: float = 0.0
    early_stop: int = 0
    select_by: str = "validation_loss"
    sample_prompts: tuple[str, ...] = ()
    sample_every: int = 0
    keep: int = 0
    gradient_ckpt: bool = False
    log_to: tuple[str, ...] = ("tensorboard",)
    style_name: str = ""
    method: str = "full"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_bias: bool = False
    lora_targets: tuple[str, ...] = ()
    lora_layers: tuple[int, ...] = ()
    lora_decoder_layers: tuple[int, ...] = ()
    lora_ranks: tuple[str, ...] = ()
    lora_alphas: tuple[str, ...] = ()
    lora_embeddings: bool = False
    lora_dora: bool = False
    lora_rslora: bool = False

    def __post_init__(self) -> None:
        for spec in fields(self):
            _check(spec.name, getattr(self, spec.name), spec.type)
        if self.freeze_backbone and self.freeze_decoder and self.freeze_embeddings:
            raise CsmError("backbone, decoder and embeddings are all frozen: nothing would be trained.")
        if self.semantic_weight == 0 and self.acoustic_weight == 0:
            raise CsmError("semantic_weight and acoustic_weight are both 0: there would be no loss.")
        self._check_choices()
        self._check_method()

    def _check_choices(self) -> None:
        for key, known in (("select_by", SELECT_BY), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, key) not in known:
                raise CsmError(f"{key} is {getattr(self, key)!r}; it is one of {', '.join(known)}.")
        if set(self.log_to) - set(LOGS):
            raise CsmError(f"log_to is {', '.join(self.log_to)}; it is any of {', '.join(LOGS)}, or none.")
        if self.mask_speaker_ids and self.only_speaker_ids:
            raise CsmError(
                "mask_speaker_ids and only_speaker_ids exclude each other.", "Name those left out, or those kept."
            )

    def _check_method(self) -> None:
        if self.method not in METHODS:
            raise CsmError(f"method is {self.method!r}; it is one of {', '.join(METHODS)}.")
        if self.method == "lora":
            self.lora  # noqa: B018 - made to be checked
            return
        for spec in fields(self):
            if spec.name.startswith("lora_") and getattr(self, spec.name) != spec.default:
                raise CsmError(f"{spec.name} is for the method lora, and the method is full.", "Add --method lora.")

    @property
    def lora(self) -> LoraSettings:
        """What the keys `lora_...` say, checked."""
        names = [spec.name.removeprefix("lora_") for spec in fields(LoraSettings)]
        return LoraSettings(**{name: getattr(self, f"lora_{name}") for name in names})

    @property
    def frozen(self) -> tuple[str, ...]:
        """The groups that stay as they are."""
        return tuple(g for g in ("backbone", "decoder", "embeddings") if getattr(self, f"freeze_{g}"))

    def to_dict(self) -> dict[str, Any]:
        """The keys and values as JSON writes them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        return tuple(spec.name for spec in fields(cls))


_RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-12, 1.0),
    "epochs": (1, 100_000),
    "max_steps": (0, 10**9),
    "batch_size": (0, 4096),
    "accumulate": (1, 4096),
    "decoder_fraction": (1e-6, 1.0),
    "val_split": (0.0, 0.9),
    "val_batch_size": (0, 4096),
    "log_every": (1, 10**9),
    "warmup_share": (0.0, 0.9),
    "context_turns": (0, 64),
    "seed": (0, 2**63 - 1),
    "term_factor": (1.0, 100.0),
    "context_dropout": (0.0, 1.0),
    "lora_rank": (1, 4096),
    "lora_alpha": (1e-6, 1e6),
    "lora_dropout": (0.0, 0.99),
}
_KINDS: dict[str, tuple[type, ...]] = {"float": (int, float), "int": (int,), "bool": (bool,), "str": (str,)}


def _check(name: str, value: Any, kind: Any) -> None:
    if str(kind).startswith("tuple["):
        if not isinstance(value, tuple):
            raise CsmError(f"{name} is {value!r}, which is no list.")
        for part in value:
            _check(name, part, str(kind)[6:].split(",")[0])
        return
    allowed = _KINDS[str(kind)]
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise CsmError(f"{name} is {value!r}, which is no {kind}.")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = _RANGES.get(name, (0.0, 1e12))
        if not low <= value <= high:
            raise CsmError(f"{name} is {value}; it goes from {low:g} to {high:g}.")


@dataclass(frozen=True)
class Resolved:
    """A recipe and, for each of its keys, where the value came from."""

    preset: str
    recipe: Recipe
    sources: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """One line a key: name, value, source."""
        width = max(map(len, Recipe.keys()))
        rows = self.recipe.to_dict()
        return "\n".join(
            f"  {key.ljust(width)}  {'auto' if (key, value) == ('batch_size', 0) else _shown(value):<8} "
            f"{self.sources.get(key, 'default')}"
            for key, value in rows.items()
            if (key != "style_name" or value) and (not key.startswith("lora_") or self.recipe.method == "lora")
        )


def resolve(preset: str, base: Recipe, layers: list[tuple[str, Mapping[str, Any]]]) -> Resolved:
    """Lay `layers` (source, values) over `base`; later ones win, None is no value.

    Raises:
        CsmError: an unknown key (the nearest known one is named) or a value out of range, with its source.
    """
    values, sources = asdict(base), dict.fromkeys(Recipe.keys(), f"preset {preset}")
    for source, layer in layers:
        for key, value in layer.items():
            if value is None:
                continue
            if key not in values:
                raise CsmError(f"{source}: unknown key {key!r}.", nearest(key, Recipe.keys()))
            if key == "batch_size" and value in (0, "auto"):
                if value == 0:
                    raise CsmError(f"batch_size is 0 ({source}); it goes from 1 to 4096, or is auto.")
                value = 0
            values[key], sources[key] = _coerce(values[key], value), source
    try:
        return Resolved(preset, Recipe(**values), sources)
    except CsmError as error:
        key = error.message.split(" ", 1)[0]
        place = f" ({sources[key]})" if key in sources else ""
        raise CsmError(f"{error.message.rstrip('.')}{place}.", error.hint) from None


def _coerce(default: Any, value: Any) -> Any:
    """YAML reads 2e-5 as a string: numbers that look like numbers are numbers. A lone value is a list of one."""
    if isinstance(default, tuple):
        if isinstance(value, Mapping):
            return tuple(f"{key}={each}" for key, each in value.items())
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if isinstance(default, float) and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return value
    return value


def _shown(value: Any) -> str:
    """A value in one word: long lists as their length, empty ones as a dash."""
    if not isinstance(value, list):
        return str(value)
    text = ",".join(map(str, value)) or "-"
    return text if len(text) <= 24 and " " not in text else f"({len(value)})"


def nearest(word: str, known: tuple[str, ...]) -> str:
    """A hint that names the known word closest to a mistyped one."""
    close = difflib.get_close_matches(word, known, 1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are: {', '.join(known)}."


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a YAML or TOML recipe file.

    Raises:
        CsmError: the file is missing, cannot be parsed (line named), or is no table of keys.
    """
    import yaml

    if not path.is_file():
        raise CsmError(f"the recipe {path} is not there.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise CsmError(f"the recipe {path} is not UTF-8 text.") from None
    try:
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        place = " ".join(str(error).split())
        raise CsmError(f"the recipe {path} cannot be read: {place}") from None
    if not isinstance(values, dict):
        raise CsmError(f"the recipe {path} holds no keys.", "Write one `key: value` a line.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}
