"""Row: what every data layout becomes, one clip with its words. A conversation is a list of rows, in order."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One clip as a layout names it; nothing of the sound has been read yet.

    Args:
        name: the audio's path as the layout gives it, without suffix, with `/`, in NFC. Two sources may share names.
        audio: the sound file.
        text: what is said: NFC, whitespace collapsed, never empty.
        speaker: the number written before the text.
        source: the file that the text stands in.
        line: the line of `source` on which it begins, counted from 1; None where the file is one text.
        start, end: where in the sound file the clip lies, in seconds; None for its beginning and its end.
        language: the language of the text, as BCP 47 writes it.
        weight: of the turn's loss, against 1 for the others; 0 makes it context only.
        speaker_name: what the data call the speaker, where that is no number.
    """

    name: str
    audio: Path
    text: str
    speaker: int
    source: Path
    line: int | None = None
    start: float | None = None
    end: float | None = None
    language: str = "en"
    weight: float = 1.0
    speaker_name: str | None = None


def is_copy(audio: str | Path) -> bool:
    """Whether a sound file is a copy under a hash in the cache folder, whose name says nothing to who reads it."""
    return re.match(r"[0-9a-f]{64}([.-]|$)", Path(audio).name) is not None


def clean_text(text: str) -> str:
    """The text in NFC on one line, with single spaces and no byte order mark."""
    return " ".join(unicodedata.normalize("NFC", text.replace("\ufeff", " ")).split())


def text_problem(text: str) -> str | None:
    """What keeps a cleaned text from being anyone's words, to be read after a file's name; None if nothing does."""
    if not text:
        return "has an empty text"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return "has a text with control characters in it (was it written as UTF-16?)"
    return None


def weight_problem(value: Any) -> str | None:
    """What keeps a value from being a turn's weight, to be read after a place; None if nothing does."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and value >= 0:
        return None
    return f"has the weight {value!r}, which is not a number from 0"


def natural_key(name: str) -> tuple[object, ...]:
    """Sorts as people count: `a2` before `a10`, folder by folder."""
    parts = []
    for part in name.split("/"):
        pieces = re.split(r"(\d+)", part)  # odd places are digits
        numbers = [digits.lstrip("0") for digits in pieces[1::2]]
        pieces[1::2] = [f"{len(digits):05d}{digits}" for digits in numbers]
        parts.append(tuple(pieces))
    return tuple(parts), name
