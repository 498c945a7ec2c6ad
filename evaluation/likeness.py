"""How closely a sample follows a recording of the same text: its melody and its loudness, moment by moment.

The two are laid over each other by dynamic time warping of their mel spectra (Sakoe and Chiba 1978), then pitch and
level are compared along the path. Level and mean pitch do not count: only the shape does. Limits: for other words
than the recording's the figures mean nothing, so both must say the same text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csm.audio import frame_levels, resample
from evaluation.measures import Measures, fault
from evaluation.pauses import sounding
from evaluation.pitch import track
from evaluation.speaker import HOP, RATE, mel_power

KEYS = ("pitch_contour_distance_semitones", "energy_profile_correlation")
FEWEST_FRAMES = 20
SIDESTEP = 1.5  # cost of a step that goes on in one sound alone
BAND_SHARE = 0.35  # of the longer sound: how far the path may stray from the diagonal


@dataclass(frozen=True)
class Contour:
    """A sound by frames of 10 ms, from its first sound to its last.

    Args:
        shape: log mel spectrum without its level, of length 1, `(frames, 40)`.
        levels: dBFS, `(frames,)`.
        semitones: pitch over the sound's own median, NaN where there is no voice, `(frames,)`.
    """

    shape: np.ndarray
    levels: np.ndarray
    semitones: np.ndarray


def contour(wave: np.ndarray, rate: int) -> Contour | None:
    """The sound's contour; None where too little of it sounds."""
    if fault(wave, rate):
        return None
    wave = resample(np.asarray(wave, dtype=np.float32), rate, RATE)
    heard = np.flatnonzero(sounding(wave, RATE))
    if len(heard) == 0 or heard[-1] - heard[0] < FEWEST_FRAMES:
        return None
    wave = wave[heard[0] * HOP : (heard[-1] + 1) * HOP]
    power = mel_power(wave)
    shape = np.log(power + 1e-5 * power.max())
    shape -= shape.mean(axis=0)
    shape /= np.linalg.norm(shape, axis=1, keepdims=True) + 1e-9
    levels = frame_levels(wave, RATE)
    count = min(len(levels), len(shape))
    times, hertz = track(wave, RATE)
    frames = np.full(count, np.nan)
    voiced = hertz > 0
    at = np.minimum((times[voiced] * 100).astype(int), count - 1)
    if len(at):
        frames[at] = 12 * np.log2(hertz[voiced] / np.median(hertz[voiced]))
    return Contour(shape[:count], levels[:count], frames)


def measure_likeness(sample: Contour | None, recording: Contour | None) -> Measures:
    """Distance of the two melodies in semitones (root mean square) and the correlation of the two loudness profiles.

    Returns:
        the values under `KEYS`; absent with the reason where there is no recording of the text, or too little voice.
    """
    if recording is None:
        return Measures.absent(KEYS, "The reference holds no usable recording of this text.")
    if sample is None:
        return Measures.absent(KEYS, "Too little of the sample sounds.")
    ours, theirs = warp(sample.shape, recording.shape)
    measures = Measures()
    difference = sample.semitones[ours] - recording.semitones[theirs]
    difference = difference[np.isfinite(difference)]
    enough = len(difference) >= FEWEST_FRAMES
    measures.put(
        "pitch_contour_distance_semitones",
        float(np.sqrt(np.mean((difference - np.median(difference)) ** 2))) if enough else None,
        "Sample and recording have too little voice in common.",
    )
    levels = np.maximum(sample.levels[ours], -70), np.maximum(recording.levels[theirs], -70)
    steady = min(float(part.std()) for part in levels) < 1e-6
    correlation = None if steady else float(np.corrcoef(*levels)[0, 1])
    measures.put("energy_profile_correlation", correlation, "A level that never moves correlates with nothing.")
    return measures


def warp(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest path through two sequences `(n, d)` and `(m, d)` of unit vectors: two index arrays of equal length.

    Steps go by one in either or both; a path strays from the diagonal by a third of the longer at most.
    """
    n, m = len(a), len(b)
    cost = 1 - a @ b.T
    off = np.abs(np.arange(n)[:, None] / max(n - 1, 1) - np.arange(m)[None, :] / max(m - 1, 1))
    cost[off > BAND_SHARE] = np.inf
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    for diagonal in range(2, n + m + 1):  # cells of one anti-diagonal depend on the two before alone
        i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
        j = diagonal - i
        straight = total[i - 1, j - 1] + cost[i - 1, j - 1]
        aside = np.minimum(total[i - 1, j], total[i, j - 1]) + SIDESTEP * cost[i - 1, j - 1]
        total[i, j] = np.minimum(straight, aside)
    return _path(total, cost)


def _path(total: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    i, j = total.shape[0] - 1, total.shape[1] - 1
    path = []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        here = cost[i - 1, j - 1]
        steps = ((1.0, i - 1, j - 1), (SIDESTEP, i - 1, j), (SIDESTEP, i, j - 1))
        _, i, j = min(steps, key=lambda step: total[step[1:]] + step[0] * here)
    ours, theirs = zip(*reversed(path), strict=True)
    return np.array(ours), np.array(theirs)
