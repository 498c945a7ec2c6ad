"""How far a heard text is from the one that should have been said, in words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from evaluation.spelling import spell_numbers


def plain_words(text: str, language: str = "en") -> list[str]:
    """The words of a text as they are compared: lower case, no marks, English numbers written out."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    if language.split("-")[0] == "en":
        text = spell_numbers(text)
    return re.findall(r"\w+", text.replace("'", "").replace("_", " "))


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Words to replace, leave out or add until `heard` is `reference` (Levenshtein's distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    return row[-1]


def word_error(reference: str, heard: str, language: str = "en") -> float:
    """Errors per word of the reference text; 0 is the same words, and with many added ones it passes 1."""
    said = plain_words(reference, language)
    errors = word_errors(said, plain_words(heard, language))
    return errors / max(1, len(said))
