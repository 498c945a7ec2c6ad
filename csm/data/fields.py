"""The fields of a clip as files write them: who speaks, in which language, where the clip lies in a recording.

A field is looked up under the names that are in use; NaN, null and nothing are the same. What cannot be meant raises
`WrongField`, whose words are to be read after the place of the row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csm.data.faults import printable
from csm.errors import CsmError

AUDIO = ("audio_path", "audio", "path", "file", "file_name", "filename", "audio_file", "wav")
TEXT = ("text", "transcript", "transcription", "sentence")
SPEAKER = ("speaker", "speaker_id", "speaker_name")
LANGUAGE = ("language", "lang")
PART = ("start", "end")


class WrongField(ValueError):
    """A value that cannot be meant."""


@dataclass(frozen=True)
class Defaults:
    """What holds where the data do not say.

    Args:
        speaker: who speaks; None where nobody is named.
        language: a BCP 47 tag.

    Raises:
        CsmError: the language is no such tag.
    """

    speaker: int | None = None
    language: str = "en"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "language", language({"language": self.language}, ""))
        except WrongField as error:
            raise CsmError(f"The data {error}.", "Write a tag such as en, de or pt-BR.") from None


def is_missing(value: Any) -> bool:
    """Whether a cell says nothing: null, NaN, or text without a character."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of the named fields that says something, or None."""
    return next((values[name] for name in names if not is_missing(values.get(name))), None)


def speaker(values: Mapping[str, Any]) -> int | str | None:
    """A speaker's number, or a name that is none; None where nobody is named.

    Raises:
        WrongField: the fields disagree, or the number is below 0, broken, or of another type.
    """
    named = {key: _speaker(key, values[key]) for key in SPEAKER if not is_missing(values.get(key))}
    numbers = {value for value in named.values() if isinstance(value, int)}
    if len(numbers) > 1 or (not numbers and len(set(named.values())) > 1):
        raise WrongField("names two speakers, " + " and ".join(f"{key} {value}" for key, value in named.items()))
    return next(iter(numbers), next(iter(named.values()), None))


def _speaker(key: str, value: Any) -> int | str:
    if isinstance(value, str):
        value = value.strip()
        if not re.fullmatch(r"[-+]?\d+(\.0*)?", value):
            return value
        value = float(value) if len(value) < 16 else -1
    try:
        number = int(value)
        if isinstance(value, bool) or number != value or number < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise WrongField(f"has a {key} that is not a whole number from 0") from None
    return number


def part(values: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Where the clip begins and ends in its file, in seconds; None for the file's own beginning and end.

    Raises:
        WrongField: a time is no number, below 0, or the end is not after the start.
    """
    start, end = (_seconds(key, values.get(key)) for key in PART)
    if end is not None and end <= (start or 0.0):
        raise WrongField(f"ends at {end:g} s, which is not after its start at {start or 0:g} s")
    return start, end


def _seconds(key: str, value: Any) -> float | None:
    if is_missing(value):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not math.isfinite(seconds) or seconds < 0:
        raise WrongField(f"has the {key} {printable(str(value))[:40]!r}, which is no time in seconds")
    return seconds


def language(values: Mapping[str, Any], default: str) -> str:
    """The language tag of a row.

    Raises:
        WrongField: it has not the form of BCP 47.
    """
    tag = first(values, LANGUAGE)
    if tag is None:
        return default
    tag = str(tag).strip().replace("_", "-")
    if not re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*", tag):
        raise WrongField(f"has the language {printable(tag)[:40]!r}, which is no tag such as en or pt-BR")
    return tag[:3].lower() + tag[3:] if tag[2:3] != "-" else tag[:2].lower() + tag[2:]
