"""An adapter folder: PEFT's `adapter_config.json` and `adapter_model.safetensors`, and `base.json`, which says of what model.

Reads and writes what is not tensors; `csm.torch.lora_file` does the rest.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csm.adapter import AdapterPlan, Site, every_site
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.weights import Shapes, tensor_shapes

CONFIG, TENSORS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
PREFIX = "base_model.model."
AUDIO_TABLE = "depth_decoder.model.embed_tokens"
AUDIO_ALIAS = "backbone_model.embed_tokens.embed_audio_tokens"  # transformers ties the two; PEFT adapts each by itself
HEADS = "depth_decoder.codebooks_head"
SCHEMA = 1

_UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "target_parameters", "task_type", "use_dora", "use_rslora",
}  # fmt: skip


@dataclass(frozen=True)
class BaseName:
    """What an adapter was trained on: a path (or `csm-tiny`) to find it by, a name to speak of it by, and its hash.

    `beside` is the folder that lends config, tokenizer and codec where the base's weights stand alone.
    """

    path: str
    name: str
    hash: str | None
    beside: str | None = None


def is_adapter(path: Path) -> bool:
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def write_base(base: BaseName, folder: Path) -> None:
    """Put base.json into `folder`, for checkpoints to link; one that is there stays."""
    if (folder / BASE).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    values = {"schema_version": SCHEMA, "name": base.name, "path": base.path, "hash": base.hash}
    values |= {"beside": base.beside} if base.beside else {}
    beside = folder / f".{BASE}.part"
    beside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, folder / BASE)


def read_base(folder: Path, named: str | None = None) -> BaseName:
    """The base of an adapter: from base.json, or, in a folder of PEFT's own, from `base_model_name_or_path`.

    Args:
        named: where the base is, whatever the files say; base.json's hash holds all the same.

    Raises:
        CsmError: neither says.
    """
    if (folder / BASE).is_file():
        values = _read(folder / BASE)
        path = named or values.get("path")
        if values.get("schema_version", SCHEMA) != SCHEMA or not isinstance(path, str):
            raise CsmError(f"{folder / BASE} is not one that this program reads.")
        beside = None if named else values.get("beside")
        return BaseName(path, str(values.get("name", path)), values.get("hash"), beside)
    path = named or _read(folder / CONFIG).get("base_model_name_or_path")
    if not path:
        raise CsmError(
            f"{folder} is an adapter, and nothing in it says of which model.",
            f'Write {BASE} beside it: {{"schema_version": 1, "path": "FOLDER OF THE MODEL"}}.',
        )
    return BaseName(str(path), str(path), None)


def peft_config(plan: AdapterPlan, base_path: str) -> dict[str, Any]:
    """The plan in PEFT's words. Dropout is left out where PEFT refuses it beside heads; an adapter is the same without."""
    has_heads = any(site.kind == "heads" for site in plan.sites)
    common = next((s for s in plan.sites if s.kind == "heads"), None) or _most_common(plan.sites)
    others = [site for site in plan.sites if site.kind != "heads"]
    paths = [name for site in others for name in peft_paths(site.path)]
    return {
        "peft_type": "LORA",
        "auto_mapping": {
            "base_model_class": "CsmForConditionalGeneration",
            "parent_library": "transformers.models.csm.modeling_csm",
        },
        "base_model_name_or_path": base_path,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "r": common.rank,
        "lora_alpha": common.alpha,
        "rank_pattern": {re.escape(p): s.rank for s in others if s.rank != common.rank for p in peft_paths(s.path)},
        "alpha_pattern": {re.escape(p): s.alpha for s in others if s.alpha != common.alpha for p in peft_paths(s.path)},
        "lora_bias": plan.bias,
        "lora_dropout": 0.0 if has_heads else plan.dropout,
        "target_modules": sorted(paths),
        "target_parameters": [f"{HEADS}.weight"] if has_heads else None,
        "task_type": None,
        "use_dora": plan.dora,
        "use_rslora": plan.rslora,
    }


def peft_paths(path: str) -> tuple[str, ...]:
    """The modules of transformers' CSM that one of ours stands for: two for the shared audio table."""
    return (path, AUDIO_ALIAS) if path == AUDIO_TABLE else (path,)


def read_plan(folder: Path, config: ModelConfig) -> tuple[AdapterPlan, list[str]]:
    """What the adapter adapts in a model of this shape, every tensor of it accounted for by name and shape.

    Returns:
        the plan, and the names of tensors in the file that are for others to judge: of the codec, and copies of the base.

    Raises:
        CsmError: PEFT options that mean another computation; or tensors missing, unexpected or mis-shaped, all named.
    """
    values = _read(folder / CONFIG)
    _refuse_unknown(values, folder)
    plan = _plan(values, config, folder)
    found = {name.removeprefix(PREFIX): shape for name, shape in tensor_shapes(folder / TENSORS).items()}
    aside = [n for n in found if n.startswith("codec_model.") or n.endswith(".base_layer.weight")]
    wanted = plan.tensor_shapes(config)
    wanted |= {n.replace(AUDIO_TABLE, AUDIO_ALIAS): s for n, s in wanted.items() if n.startswith(AUDIO_TABLE + ".")}
    _check({n: s for n, s in found.items() if n not in aside}, wanted, _heads_of_old(plan, wanted), folder)
    return plan, aside


def _check(found: Shapes, wanted: Shapes, also: Shapes, folder: Path) -> None:
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is of no module that it adapts" for name in found if name not in wanted]
    faults += [
        f"{name} is {list(found[name])}, wanted {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] not in (shape, also.get(name))
    ]
    if faults:
        many = f" ({len(faults)} tensors)" if len(faults) > 1 else ""
        raise CsmError(f"the adapter {folder} does not fit its base{many}: {'; '.join(faults)}.")


def _heads_of_old(plan: AdapterPlan, wanted: Shapes) -> Shapes:
    """The shapes of the heads' factors as PEFT 0.18 had them: input side in A, output side in B."""
    a, b = (f"{HEADS}.lora_{letter}.weight" for letter in "AB")
    return {a: wanted[b][::-1], b: wanted[a][::-1]} if a in wanted else {}


def _refuse_unknown(values: Mapping[str, Any], folder: Path) -> None:
    if values.get("peft_type") != "LORA":
        raise CsmError(f"{folder} is of PEFT's type {values.get('peft_type')!r}; csm reads LORA.")
    strange = [
        key for key, value in values.items() if key not in _UNDERSTOOD and value and (key, value) != ("bias", "none")
    ]
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start != "gaussian":
        strange.append("init_lora_weights")  # pissa and its kind change the base
    if strange:
        said = ", ".join(f"{key} ({values[key]!r})" for key in strange)
        raise CsmError(f"the adapter {folder} uses PEFT options that csm does not know: {said}.")


def _plan(values: Mapping[str, Any], config: ModelConfig, folder: Path) -> AdapterPlan:
    sites = []
    for path, site in every_site(config).items():
        names = [f"{path}.weight"] if site.kind == "heads" else list(peft_paths(path))
        hits = [name for name in names if _targeted(values, name, site)]
        if hits and hits != names:
            missed = ", ".join(set(names) - set(hits))
            raise CsmError(
                f"the adapter {folder} adapts {', '.join(hits)} and not {missed}, which are one table in a CSM.",
                "Name both in PEFT's target_modules, and give them the same values.",
            )
        if hits:
            rank = _by_pattern(values.get("rank_pattern"), names[0], values["r"])
            alphas = {float(_by_pattern(values.get("alpha_pattern"), name, values["lora_alpha"])) for name in names}
            if len(alphas) > 1:
                raise CsmError(
                    f"the adapter {folder} gives {' and '.join(names)}, one table in a CSM, different alphas."
                )
            sites.append(replace(site, rank=int(rank), alpha=alphas.pop()))
    if not sites:
        raise CsmError(
            f"the adapter {folder} adapts nothing of a CSM (target_modules {values.get('target_modules')!r})."
        )
    flags = (bool(values.get(key)) for key in ("lora_bias", "use_dora", "use_rslora"))
    return AdapterPlan(tuple(sites), float(values.get("lora_dropout") or 0.0), *flags)


def _targeted(values: Mapping[str, Any], name: str, site: Site) -> bool:
    """Whether PEFT would adapt this module: a regular expression over the whole path, or ends of paths."""
    if site.kind == "heads":
        return any(name == t or name.endswith(f".{t}") for t in values.get("target_parameters") or ())
    wanted = values.get("target_modules") or ()
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    if not any(name == t or name.endswith(f".{t}") for t in wanted):
        return False
    layers = values.get("layers_to_transform")
    if layers is None:
        return True
    number = re.search(r"\.(\d+)\.", name)
    return number is not None and int(number[1]) in ([layers] if isinstance(layers, int) else layers)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _most_common(sites: tuple[Site, ...]) -> Site:
    rank, alpha = Counter((site.rank, site.alpha) for site in sites).most_common(1)[0][0]
    return next(site for site in sites if (site.rank, site.alpha) == (rank, alpha))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CsmError(f"{path} cannot be read ({error}).") from None
    if not isinstance(values, dict):
        raise CsmError(f"{path} holds no JSON object.")
    return values
