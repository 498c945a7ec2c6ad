"""Segment: one utterance, and Conversation: the turns of a dialogue. What users hand in and what prompts are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from csm.errors import CsmError


@dataclass
class Segment:
    """One utterance of one speaker.

    Args:
        text: what is said, without the `[speaker]` prefix.
        speaker: the number that is written before the text; it names a voice only where training made it do so.
        audio: a path, a mono wave `(samples,)` at 24 kHz (numpy, torch or a list), codes `(K, T)` of an integer type,
            or None for a turn of which only the text is known.
        weight: of the turn's loss in training, against 1 for the others; 0 makes it context only.
    """

    text: str
    speaker: int
    audio: str | Path | Sequence[float] | Any | None = None
    weight: float = 1.0


Conversation = list[Segment]


def checked_turns(value: Any, what: str) -> list[Segment]:
    """A conversation as a list, from whatever a caller handed in as one.

    Args:
        what: what to call it.

    Raises:
        CsmError: it is no list of Segments, or one of them has a text that is no string or a speaker that is no number.
    """
    if not is_list(value):
        raise CsmError(f"{what} is {_brief(value)}; it is a list of Segments.", "Give [] for none.")
    return [checked_segment(turn, f"{what}[{number}]") for number, turn in enumerate(value)]


def is_list(value: Any) -> bool:
    """Whether a value is many of something, and no text or table."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def checked_segment(value: Any, what: str) -> Segment:
    """The segment itself. Raises CsmError as `checked_turns`."""
    if not isinstance(value, Segment):
        raise CsmError(f"{what} is {_brief(value)}; it is a Segment.", 'Make one: Segment("hello.", 0, "hello.wav").')
    if not isinstance(value.text, str):
        raise CsmError(f"the text of {what} is {_brief(value.text)}; it is a string.")
    if not isinstance(value.speaker, Integral) or isinstance(value.speaker, bool) or value.speaker < 0:
        raise CsmError(f"the speaker of {what} is {_brief(value.speaker)}; it is a whole number from 0.")
    return value


def _brief(value: Any) -> str:
    """A value as an error names it: itself where it is short, else its type."""
    text = repr(value)
    return text if len(text) <= 60 else f"of type {type(value).__name__}"
