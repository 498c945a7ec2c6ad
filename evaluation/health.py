"""Did the generation go well, whatever it sounds like: did it end by itself, is it too long, silent, clipped, stuck.

A loop is speech that goes on as it was: its spectrum at one moment equals that a fixed lag before, for at least two
rounds and a second. Human speech, songs aside, does not do that; models that lost their place do.
"""

from __future__ import annotations

import numpy as np

from csm.audio import resample
from evaluation.measures import Measures, fault
from evaluation.pauses import timing
from evaluation.speaker import RATE, mel_power
from evaluation.syllables import count_syllables, counts_in

KEYS = ("stopped", "seconds_per_syllable", "silence_share", "clipped_share", "looped", "empty")
STOPPED = "end"
FULL_SCALE = 0.999
HOP_SECONDS = 0.01
FLOOR = 1e-4  # of the power of the loudest band: what lies below is silence
SHORTEST_LAG_SECONDS, LONGEST_LAG_SECONDS = 0.12, 2.0
LOOPED_SECONDS = 1.0
ALIKE = 0.7  # cosine; finds 66 of 72 planted loops and none in 172 recordings
SOUNDING = 0.5  # of a loop at least: silence repeats itself


def measure_health(
    wave: np.ndarray, rate: int, text: str | None, stop_reason: str | None, language: str = "en"
) -> Measures:
    """What went wrong in a generation; every value but the seconds per syllable lies in 0..1.

    Args:
        wave: `(samples,)` mono.
        rate: samples per second.
        text: what was to be said; None where it is not known.
        stop_reason: why the generation ended; None for a recording.
        language: of the text, as BCP 47 writes it.

    Returns:
        the values under `KEYS`: whether it stopped by itself (absent for a recording), its length over the text's
        syllables, the share of it that is silence, the share of samples at full scale, whether it holds a loop, and
        whether there is nothing to hear.
    """
    measures = Measures()
    stopped = None if stop_reason is None else float(stop_reason == STOPPED)
    measures.put("stopped", stopped, "It is a recording: nothing was generated.")
    if reason := fault(wave, rate):
        measures.update(Measures.absent(KEYS[1:], reason))
        heard = wave.ndim == 1 and rate > 0 and len(wave) > 0 and not reason.startswith("The sound is silent")
        measures.put("empty", None if heard else 1.0, reason)
        return measures
    counts = counts_in(language)
    syllables = count_syllables(text or "") if counts else 0
    reason = "The text has no syllables." if text else "There is no text."
    if not counts:
        reason = f"There is no rule for syllables in the language {language}."
    measures.put("seconds_per_syllable", len(wave) / rate / syllables if syllables else None, reason)
    found = timing(wave, rate)
    measures.put("silence_share", 1.0 if found is None else 1 - found.sounding / found.total)
    measures.put("clipped_share", float(np.mean(np.abs(wave) >= FULL_SCALE)))
    measures.put("looped", float(loop_seconds(wave, rate) > 0))
    measures.put("empty", float(found is None))
    return measures


def loop_seconds(wave: np.ndarray, rate: int) -> float:
    """How long the longest loop in the sound is, in seconds; 0 where there is none. `wave` as for `sounding`."""
    power = mel_power(resample(np.asarray(wave, dtype=np.float32), rate, RATE))
    shape = np.log(power + FLOOR * power.max())
    loud = shape.max(axis=1) > np.log(FLOOR * power.max()) + 1
    shape = shape - shape[loud].mean(axis=0)
    shape /= np.linalg.norm(shape, axis=1, keepdims=True) + 1e-9
    longest = 0.0
    for lag in range(round(SHORTEST_LAG_SECONDS / HOP_SECONDS), round(LONGEST_LAG_SECONDS / HOP_SECONDS) + 1):
        if lag >= len(shape):
            break
        alike = (np.einsum("fb,fb->f", shape[lag:], shape[:-lag]) > ALIKE) | ~(loud[lag:] | loud[:-lag])
        start, stop = _longest_run(alike)
        if stop - start >= max(lag, LOOPED_SECONDS / HOP_SECONDS) and loud[lag:][start:stop].mean() >= SOUNDING:
            longest = max(longest, (stop - start + lag) * HOP_SECONDS)
    return longest


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    if len(ends) == 0:
        return 0, 0
    at = int((ends[1::2] - ends[::2]).argmax())
    return int(ends[2 * at]), int(ends[2 * at + 1])
