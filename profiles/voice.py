"""Voice: what the registry keeps of one voice: whose it is, which model speaks it, how it was made and how it scored.

Limits: a model is named by its path and not copied; a voice has one model and no recordings to prompt it with.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from types import NoneType
from typing import Any

from csm.errors import CsmError

_KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "name": (str,),
    "speaker_id": (int,),
    "description": (str,),
    "gender": (str, NoneType),
    "age_range": (str, NoneType),
    "accent": (str, NoneType),
    "model_path": (str,),
    "base": (str, NoneType),
    "sampling": (dict,),
    "lineage": (dict,),
    "scores": (dict,),
    "created": (str,),
    "changed": (str,),
}
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that were no text, line and paragraph separators


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One voice of the registry, its values checked when it is made. New ones come from `Registry.create`.

    Args:
        id: 32 hexadecimal digits that stay when everything else changes.
        name: what people call it; unlike every other name of its registry, whatever the case.
        speaker_id: the number written before a text that this voice is to speak, 0 or more; voices may share one.
        description: free text.
        gender, age_range, accent: free text, None where it was not given.
        model_path: an absolute path of a model, a run or a weights file; the name of a model that
            ships with csm; or a hub id `owner/name`.
        base: another such path: what the model needs beside it, or was trained on; None where it stands by itself.
        sampling: `temperature` and `top_k` where this voice is to speak with its own.
        lineage: where the model comes from, as its run wrote it.
        scores: the means of an evaluation; `speaker_similarity` is the cosine to recordings held out of training.
        created, changed: moments in UTC, ISO 8601.

    Raises:
        CsmError: a value is not of its kind, or the name is none that commands and files could carry.
    """

    id: str
    name: str
    speaker_id: int
    description: str = ""
    gender: str | None = None
    age_range: str | None = None
    accent: str | None = None
    model_path: str
    base: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    created: str
    changed: str

    def __post_init__(self) -> None:
        for key, kinds in _KINDS.items():
            _check_kind(key, getattr(self, key), kinds)
        _check_name(self.name)
        _check_sampling(self.sampling)
        if not re.fullmatch("[0-9a-f]{32}", self.id):
            raise CsmError(f"A voice's id is 32 hexadecimal digits, not {self.id!r}.")
        if self.speaker_id < 0:
            raise CsmError(f"A speaker id is 0 or more, not {self.speaker_id}.")
        if not self.model_path:
            raise CsmError(f"Voice {self.name!r} names no model.")
        for moment in (self.created, self.changed):
            _check_moment(moment)

    @property
    def similarity(self) -> float | None:
        """Cosine to held-out recordings of the speaker, None while nobody has measured it."""
        value = self.scores.get("speaker_similarity")
        return float(value) if isinstance(value, (int, float)) else None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON holds it: plain values, in the order of the fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Voice:
        """The record that `to_dict` gave.

        Raises:
            CsmError: a key is unknown (a newer schema wrote it) or missing, or a value does not fit.
        """
        unknown = [str(key) for key in row if key not in _KINDS]
        missing = [item.name for item in fields(cls) if item.name not in row and item.name != "base"]  # younger
        called = f"Voice {row.get('name', '(without a name)')!r}"
        if unknown:
            raise CsmError(f"{called} has the unknown key {', '.join(unknown)}.", "If a newer csm wrote it, upgrade.")
        if missing:
            raise CsmError(f"{called} lacks {', '.join(missing)}.")
        return cls(**row)


def fold(name: str) -> str:
    """The form in which two names are compared: without case, and with accents composed (macOS decomposes them)."""
    return unicodedata.normalize("NFC", name).casefold()


def _check_kind(key: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = {str: "text", int: "a whole number", dict: "a table of values"}[kinds[0]]
        raise CsmError(f"{key} is {wanted}, not {value!r}.")
    if isinstance(value, str) and any(unicodedata.category(c) in _UNPRINTABLE and c not in "\t\n" for c in value):
        raise CsmError(f"{key} holds a character that cannot be printed: {value!r}.", "Write it without.")


def _check_name(name: str) -> None:
    if not name.strip():
        raise CsmError("A voice needs a name.", 'Give one such as "John".')
    if name != name.strip():
        raise CsmError(f"The name {name!r} begins or ends with a blank.", f"Call the voice {name.strip()!r}.")
    if name.isdigit():
        raise CsmError(
            f"The name {name!r} is all digits, and a number means a speaker id.",
            f"Choose a name with a letter in it, such as 'voice {name}'.",
        )
    if re.fullmatch("[0-9a-f]{32}", name):
        raise CsmError(f"The name {name!r} looks like the id of a voice.", "Choose a name that people can read.")
    for character in name:
        if character in "/\\":
            raise CsmError(f"The name {name!r} holds a {character!r}, which separates folders.", "Write it without.")
        if unicodedata.category(character) in _UNPRINTABLE:
            raise CsmError(f"The name {name!r} holds a control character.", "Write it without.")


def _check_sampling(sampling: dict[str, Any]) -> None:
    for key, value in sampling.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if key == "temperature":
            if not (whole or isinstance(value, float)) or not 0 <= value < math.inf:
                raise CsmError(f"sampling: temperature is a number from 0 up, not {value!r}.")
        elif key == "top_k":
            if not whole or value < 0:
                raise CsmError(f"sampling: top_k is a whole number from 0 (all codes) up, not {value!r}.")
        else:
            raise CsmError(f"sampling: {key!r} is unknown.", "A voice keeps temperature and top_k.")


def _check_moment(moment: str) -> None:
    try:
        zone = datetime.fromisoformat(moment).utcoffset()
    except ValueError as error:
        raise CsmError(f"{moment!r} is no moment in ISO 8601.", "Write it as 2026-01-31T12:00:00+00:00.") from error
    if zone is None or zone.total_seconds():
        raise CsmError(f"{moment!r} is no moment in UTC.", "Write it as 2026-01-31T12:00:00+00:00.")
