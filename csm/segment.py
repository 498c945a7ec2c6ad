"""Segment: one utterance, and Conversation: the turns of a dialogue. What users hand in and what prompts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
