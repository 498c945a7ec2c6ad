"""Were the words said: what an offline recogniser hears against what was to be said.

Both sides are normalised first by Whisper's normaliser (Radford et al. 2022, appendix C: case, punctuation, fillers,
contractions, number words to digits; for other languages than English case and punctuation alone), and numbers are read
digit by digit, since `10 30`, `1030` and `ten thirty` are one time of day. The recogniser is passed in as a function: this
package has none. Limits: its own errors count as the voice's, so look at the difference to the recordings' own rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from csm.errors import CsmError
from evaluation.measures import Measures

Recogniser = Callable[[np.ndarray, int], str]
"""From a wave `(samples,)` and its rate to the words heard."""

KEYS = ("word_error_rate", "character_error_rate")
_BRITISH = {
    "centre": "center", "colour": "color", "colours": "colors", "favourite": "favorite", "favour": "favor",
    "grey": "gray", "honour": "honor", "labour": "labor", "metre": "meter", "metres": "meters", "neighbour": "neighbor",
    "neighbours": "neighbors", "okay": "ok", "programme": "program", "realise": "realize", "theatre": "theater",
    "travelled": "traveled", "travelling": "traveling", "cannot": "can not",
}  # fmt: skip


def measure_words(text: str | None, heard: str | None, language: str = "en") -> Measures:
    """Errors (wrong, missing and added) over the words, and over the characters, of the text; may pass 1.

    Args:
        text: what was to be said; None where it is not known.
        heard: what the recogniser wrote; None where none is installed.
        language: of the text, as BCP 47 writes it.

    Returns:
        the values under `KEYS`, absent with the reason where something is missing.
    """
    if heard is None:
        return Measures.absent(KEYS, "No recogniser was given.")
    said = normalise(text or "", language)
    if not said:
        return Measures.absent(KEYS, "There is no text." if not (text or "").strip() else "The text has no words.")
    found, measures = normalise(heard, language), Measures()
    measures.put("word_error_rate", _jiwer().wer(said, found))
    measures.put("character_error_rate", _jiwer().cer(said, found))
    return measures


def word_errors(text: str, heard: str, language: str = "en") -> tuple[int, int]:
    """Words to replace, leave out or add until what was heard is the text, and the words of the text."""
    said, found = normalise(text, language), normalise(heard, language)
    if not said:
        return len(found.split()), 0
    counted = _jiwer().process_words(said, found)
    return counted.substitutions + counted.deletions + counted.insertions, len(said.split())


def normalise(text: str, language: str = "en") -> str:
    """The words as they are compared: lower case, no punctuation, digits one by one."""
    english = language.split("-")[0].lower() == "en"
    words = _normaliser(english)(text.replace("’", "'").replace(" %", "%")).split()
    words = [word for word in words if word.strip(".")]  # it leaves dots of `...` behind
    if english:
        words = [_BRITISH.get(word, word) for word in words]
    return re.sub(r"(?<=\d)(?=\d)", " ", " ".join(words))


def align(text: str, heard: str) -> list[tuple[list[str], list[str]]]:
    """Stretches of two normalised texts that stand for each other: (words said, words heard), either may be empty."""
    said, found = text.split(), heard.split()
    if not said:
        return [([], found)] if found else []
    stretches: list[tuple[list[str], list[str]]] = []
    for chunk in _jiwer().process_words(text, heard).alignments[0]:
        ours, theirs = said[chunk.ref_start_idx : chunk.ref_end_idx], found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if stretches and ours != theirs and stretches[-1][0] != stretches[-1][1]:
            ours, theirs = stretches[-1][0] + ours, stretches.pop()[1] + theirs
        stretches.append((ours, theirs))
    return stretches


@cache
def _normaliser(english: bool) -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer({}) if english else BasicTextNormalizer()


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError as error:
        raise CsmError("Word error rates need the package jiwer.", "pip install 'csm-finetune[asr]'") from error
    return jiwer
