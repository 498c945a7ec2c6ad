"""How high a voice speaks and how lively: median fundamental frequency, its spread, the voiced share.

Praat's autocorrelation method (Boersma 1993) through parselmouth, twice: a first pass over 60 to 700 Hz finds the
speaker's range, the second looks only there (after De Looze and Hirst 2008, with a higher ceiling, since an excited
voice leaves its usual range upwards). That keeps most octave errors out. Limits: creaky voice counts as unvoiced.

parselmouth is GPL-3.0-or-later; it is imported here and nowhere else.
"""

from __future__ import annotations

import numpy as np

from evaluation.measures import Measures, fault
from evaluation.pauses import sounding, step_seconds

WIDEST_HZ = (60.0, 700.0)
SHORTEST_SECONDS = 0.1
FEWEST_FRAMES = 5  # 50 ms of voice
KEYS = ("pitch_median_hz", "pitch_spread_semitones", "pitch_range_semitones", "voiced_share")


def measure_pitch(wave: np.ndarray, rate: int) -> Measures:
    """Median pitch in Hz, spread about it (root mean square) and range (5th to 95th percentile) in semitones, voiced share.

    Args:
        wave: `(samples,)` mono.
        rate: samples per second.

    Returns:
        the values under `KEYS`; a clip without voice has a share near 0 and no pitch, and says so.
    """
    if reason := fault(wave, rate):
        return Measures.absent(KEYS, reason)
    if len(wave) < SHORTEST_SECONDS * rate:
        return Measures.absent(KEYS, f"The clip is shorter than {SHORTEST_SECONDS} s.")
    sounds = sounding(wave, rate)
    if not sounds.any():
        return Measures.absent(KEYS, "No sound in the clip is longer than a click.")
    times, hertz = track(wave, rate)
    steps = np.minimum((times / step_seconds(rate)).astype(int), len(sounds) - 1)
    hertz = hertz[sounds[steps]]
    voiced = hertz[hertz > 0]
    measures = Measures()
    measures.put("voiced_share", len(voiced) / len(hertz) if len(hertz) else None, "The clip is too short.")
    if len(voiced) < FEWEST_FRAMES:
        measures.update(Measures.absent(KEYS[:3], "The clip has less than 0.05 s of voice."))
        return measures
    median = float(np.median(voiced))
    measures.put("pitch_median_hz", median)
    semitones = 12 * np.log2(voiced / median)
    low, high = np.percentile(semitones, [5, 95])
    measures.put("pitch_spread_semitones", float(np.sqrt(np.mean(semitones**2))))
    measures.put("pitch_range_semitones", float(high - low))
    return measures


def track(wave: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The pitch every 10 ms: times in seconds `(frames,)` and Hz `(frames,)`, 0 where there is no voice.

    `wave` is a sound that `fault` finds nothing wrong with, of `SHORTEST_SECONDS` or more.
    """
    import parselmouth

    sound = parselmouth.Sound(wave.astype(np.float64), rate)
    floor, ceiling = WIDEST_HZ
    wide = sound.to_pitch_ac(time_step=0.01, pitch_floor=floor, pitch_ceiling=ceiling)
    hertz = wide.selected_array["frequency"]
    if np.count_nonzero(hertz) >= FEWEST_FRAMES:
        low, high = np.percentile(hertz[hertz > 0], [25, 75])
        floor, ceiling = max(floor, 0.75 * float(low)), min(ceiling, 2.0 * float(high))
    narrow = sound.to_pitch_ac(time_step=0.01, pitch_floor=floor, pitch_ceiling=ceiling)
    return narrow.xs(), narrow.selected_array["frequency"]
