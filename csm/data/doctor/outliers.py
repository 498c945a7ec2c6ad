"""Clips unlike the others of their speaker: by length for their text, by voice. Medians judge, so outliers do not hide.

Speech takes a + b x characters seconds (Theil and Sen's line of medians); what lies four robust deviations and a factor of
1.7 off that line is named. A voice is held against the mean of its speaker's other clips.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST = 8  # clips of a speaker below which only the fixed bounds judge
DEVIATIONS = 4.0
FACTOR = 1.7
CHARACTERS_PER_SECOND = (2.0, 30.0)  # beyond these no language is spoken, whatever the others do
SAMPLED = 600  # clips that the line is drawn through
LIKENESS = ((1.0, 0.68), (2.0, 0.78), (3.0, 0.81))  # seconds of speech, cosine below which a clip is somebody else's


def length_outliers(seconds: Sequence[float], characters: Sequence[int]) -> dict[int, float]:
    """Clips that are too long or too short for their text.

    Args:
        seconds: of sound, without silent ends.
        characters: of text.

    Returns:
        for each such clip, by number, its length over that expected of its text.
    """
    long, chars = np.maximum(np.asarray(seconds, float), 1e-3), np.maximum(np.asarray(characters, float), 1)
    if not len(long):
        return {}
    ratio, limit = long * 14 / chars, np.inf
    if len(long) >= FEWEST:
        ratio = long / _expected(long, chars)
        limit = max(np.log(FACTOR), DEVIATIONS * _deviation(np.log(ratio)))
    low, high = CHARACTERS_PER_SECOND
    beyond = (chars / long < low) | (chars / long > high) | (np.abs(np.log(ratio)) > limit)
    return {int(i): float(ratio[i]) for i in np.flatnonzero(beyond)}


def _expected(seconds: np.ndarray, characters: np.ndarray) -> np.ndarray:
    chosen = np.linspace(0, len(seconds) - 1, min(SAMPLED, len(seconds))).astype(int)
    x, y = characters[chosen], seconds[chosen]
    dx, dy = x[:, None] - x[None], y[:, None] - y[None]
    slope = float(np.median(dy[dx > 0] / dx[dx > 0])) if (dx > 0).any() else 0.0
    intercept = float(np.median(y - slope * x))
    return np.maximum(intercept + slope * characters, 0.25 * float(np.median(y)))


def voice_outliers(voices: np.ndarray, seconds: Sequence[float]) -> dict[int, float]:
    """Clips of one speaker that sound like another.

    Args:
        voices: embeddings `(n, d)` of length 1.
        seconds: of sound in each.

    Returns:
        for each such clip, by number, the cosine between it and the mean of the others.
    """
    if len(voices) < 4:
        return {}
    similarity = others_similarity(voices)
    long, least = zip(*LIKENESS, strict=True)
    fixed = np.interp(np.asarray(seconds, float), long, least)
    usual = float(np.median(similarity)) - 3.0 * max(_deviation(similarity), 0.02)
    return {int(i): float(similarity[i]) for i in np.flatnonzero(similarity < np.minimum(fixed, usual))}


def others_similarity(voices: np.ndarray) -> np.ndarray:
    """`(n,)` cosines between each embedding and the mean of all others, from `(n, d)`."""
    others = voices.sum(axis=0, dtype=np.float64) - voices
    return np.einsum("nd,nd->n", others, voices) / np.maximum(np.linalg.norm(others, axis=1), 1e-12)


def _deviation(values: np.ndarray) -> float:
    """The standard deviation as the median distance from the median says it."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
