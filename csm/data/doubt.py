"""What keeps a recognised clip out of a data set: one rule a reason, each with its figure.

The figures were set on clear telephone prompts, alone, with chords at half their level under them, and with a second voice
over them: the prompts lie well inside all limits, the chords outside, of the second voices about three in four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from csm.audio import frame_levels, trim
from csm.data.clips import prepare_sound
from csm.data.pauses import LONGEST_SECONDS, SHORTEST_SECONDS, Span
from csm.data.row import text_problem
from csm.errors import CsmError

LEAST_SPEECH = 0.5  # share of the clip in which somebody speaks
LEAST_RANGE_DB = 13.0  # between the speech's loud and quiet tenths: below it something sounds under all of it
MOST_NO_SPEECH = 0.6
LEAST_LOG_PROBABILITY = -0.4
MOST_COMPRESSION = 2.4
CHARACTERS_PER_SECOND = (3.0, 30.0)
SPEAKERS_SECONDS = 4.0  # halves of shorter clips say too little of their voices
LEAST_LIKENESS = 0.6

SETTINGS = (
    f"doubt 1: {SHORTEST_SECONDS}-{LONGEST_SECONDS} s, speech {LEAST_SPEECH}, range {LEAST_RANGE_DB}, "
    f"{MOST_NO_SPEECH} {LEAST_LOG_PROBABILITY} {MOST_COMPRESSION}, {CHARACTERS_PER_SECOND}, {LEAST_LIKENESS}"
)


class Hearing(Protocol):
    """What a recogniser says of a clip; see `evaluation.recogniser.Heard`."""

    @property
    def text(self) -> str: ...
    @property
    def log_probability(self) -> float: ...
    @property
    def no_speech(self) -> float: ...
    @property
    def compression(self) -> float: ...


Likeness = Callable[[np.ndarray, np.ndarray, int], float]
"""How like the voices of two waves at one rate are, 0 to 1. Raises CsmError where one holds too little speech."""


def sound_doubt(span: Span, wave: np.ndarray, rate: int, likeness: Likeness | None) -> str | None:
    """Why a clip is left out whatever is said in it, or None."""
    if span.seconds < SHORTEST_SECONDS:
        return "too short"
    if span.seconds > LONGEST_SECONDS:
        return "too long without a pause"
    if span.speech < LEAST_SPEECH:
        return "little speech"
    if isinstance(prepare_sound(wave, rate), str):
        return "faulty sound"
    levels = frame_levels(trim(wave, rate, keep_seconds=0.0), rate)
    if np.percentile(levels, 90) - np.percentile(levels, 10) < LEAST_RANGE_DB:
        return "music or noise under the speech"
    if likeness and span.seconds >= SPEAKERS_SECONDS and _changes(wave, rate, likeness):
        return "several speakers"
    return None


def text_doubt(heard: Hearing, text: str, seconds: float) -> str | None:
    """Why what a recogniser heard is not to be trusted, or None; `text` is its text, cleaned."""
    if not text or heard.no_speech > MOST_NO_SPEECH:
        return "no words heard"
    if text_problem(text) or any(mark in text for mark in "[]♪*"):
        return "a sound, not words"
    if heard.log_probability < LEAST_LOG_PROBABILITY:
        return "unsure of the words"
    if heard.compression > MOST_COMPRESSION:
        return "words that repeat"
    fewest, most = CHARACTERS_PER_SECOND
    return None if fewest <= len(text) / seconds <= most else "too many or too few words for the time"


def _changes(wave: np.ndarray, rate: int, likeness: Likeness) -> bool:
    half = len(wave) // 2
    try:
        return likeness(wave[:half], wave[half:], rate) < LEAST_LIKENESS
    except CsmError:  # a half without enough speech tells nothing of speakers
        return False
