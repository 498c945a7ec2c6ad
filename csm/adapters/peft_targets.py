"""Which modules PEFT's config means, with what rank and alpha: the rules by which PEFT matches names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from csm.errors import CsmError

_KINDS: dict[str, tuple[type, ...]] = {
    "target_modules": (str, list), "target_parameters": (list,), "modules_to_save": (list,), "rank_pattern": (dict,),
    "alpha_pattern": (dict,), "layers_to_transform": (int, list), "lora_dropout": (int, float),
}  # fmt: skip


def check_kinds(values: Mapping[str, Any], source: str) -> None:
    """Refuse values of a kind that PEFT never writes. Raises CsmError; all are named."""
    wrong = [
        f"{key} {value!r}"
        for key, kinds in _KINDS.items()
        if (value := values.get(key)) is not None
        and (not isinstance(value, kinds) or (isinstance(value, list) and key != "layers_to_transform" and _odd(value)))
    ]
    if wrong:
        raise CsmError(f"the adapter {source} has a config that is not PEFT's: {', '.join(wrong)}.")


def _odd(entries: list[Any]) -> bool:
    return not all(isinstance(entry, str) for entry in entries)


def is_targeted(values: Mapping[str, Any], name: str, kind: str, source: str) -> bool:
    """Whether PEFT would adapt this module: a regular expression over the whole path, or ends of paths."""
    if kind == "heads":
        return any(name == t or name.endswith(f".{t}") for t in values.get("target_parameters") or ())
    wanted = values.get("target_modules") or ()
    if isinstance(wanted, str):
        return _pattern(wanted, source).fullmatch(name) is not None
    if not any(name == t or name.endswith(f".{t}") for t in wanted):
        return False
    layers = values.get("layers_to_transform")
    if layers is None:
        return True
    number = re.search(r"\.(\d+)\.", name)
    return number is not None and int(number[1]) in ([layers] if isinstance(layers, int) else layers)


def is_saved(values: Mapping[str, Any], parameter: str) -> bool:
    """Whether PEFT would train this parameter whole: it, or what it is part of, is among `modules_to_save`."""
    parts = parameter.split(".")[:-1]
    paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(path.endswith(each) for each in values.get("modules_to_save") or () for path in paths)


def rank_of(values: Mapping[str, Any], name: str, source: str) -> int:
    """The rank that the config gives a module. Raises CsmError where that is no whole number from 1."""
    rank = _by_pattern(values.get("rank_pattern"), name, values.get("r"), source)
    if not isinstance(rank, int) or rank < 1:
        raise CsmError(f"the adapter {source} gives {name} the rank {rank!r}, which is no whole number from 1.")
    return rank


def alphas_of(values: Mapping[str, Any], names: list[str], source: str) -> set[float]:
    """The alphas of modules that are one here. Raises CsmError where one is no number."""
    found = {_by_pattern(values.get("alpha_pattern"), name, values.get("lora_alpha"), source) for name in names}
    if not all(isinstance(alpha, int | float) for alpha in found):
        raise CsmError(f"the adapter {source} gives {names[0]} an alpha that is no number.")
    return {float(alpha) for alpha in found}


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any, source: str) -> Any:
    for pattern, value in (patterns or {}).items():
        if _pattern(rf"(.*\.)?({pattern})$", source).match(name):
            return value
    return default


def _pattern(text: str, source: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise CsmError(f"the adapter {source} holds a pattern that cannot be read, {text!r} ({error}).") from None
