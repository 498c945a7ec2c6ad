"""When somebody speaks and when not: silence at the ends, pauses inside, sounding time.

By level alone, in steps of 10 ms: a pause is 0.15 s or more inside the speech that stays below a threshold between
the clip's own floor and its loud parts. Limits: breath above the threshold counts as sound, music and hum too, and a
clip noisier than 25 dB below the speech shows fewer pauses than it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from csm.audio import frame_levels
from evaluation.measures import Measures, fault

STEP_SECONDS = 0.01
QUIETEST = -75  # dBFS
SHORTEST_PAUSE_SECONDS = 0.15  # longer than a plosive's closure
SHORTEST_SOUND_SECONDS = 0.03  # shorter is a click
KEYS = (
    "pauses_per_minute",
    "pause_median_seconds",
    "pause_p90_seconds",
    "pause_share",
    "leading_silence_seconds",
    "trailing_silence_seconds",
)


@dataclass(frozen=True)
class Timing:
    """Where a clip's time goes, in seconds.

    Args:
        total: the clip's length.
        leading, trailing: silence before the first sound and after the last.
        pauses: each pause's length, in order.
    """

    total: float
    leading: float
    trailing: float
    pauses: tuple[float, ...]

    @property
    def span(self) -> float:
        """From the first sound to the last."""
        return self.total - self.leading - self.trailing

    @property
    def sounding(self) -> float:
        """The span without its pauses."""
        return self.span - sum(self.pauses)


def sounding(wave: np.ndarray, rate: int) -> np.ndarray:
    """Whether each 10 ms holds sound, `(steps,)` bool; the wave is a sound that `fault` finds nothing wrong with."""
    levels = frame_levels(wave - wave.mean(), rate, STEP_SECONDS)  # an offset is not loudness
    heard = levels[levels > levels.max() - 40]
    loud, floor = np.percentile(heard, 90), np.percentile(levels, 5)
    sounds = levels > max(np.clip((loud + floor) / 2, loud - 40, loud - 25), QUIETEST)
    for start, stop, sound in _runs(sounds):
        if sound and (stop - start) * step_seconds(rate) < SHORTEST_SOUND_SECONDS:
            sounds[start:stop] = False
    return sounds


def step_seconds(rate: int) -> float:
    """How long a step of `sounding` is: 10 ms in whole samples, so that nothing drifts at 22,050 Hz."""
    return max(1, round(rate * STEP_SECONDS)) / rate


def timing(wave: np.ndarray, rate: int) -> Timing | None:
    """The clip's timing, to about 10 ms; None when nothing in it is longer than a click. `wave` as for `sounding`."""
    runs = _runs(sounding(wave, rate))
    heard = [at for at, (_, _, sound) in enumerate(runs) if sound]
    if not heard:
        return None
    step, total = step_seconds(rate), len(wave) / rate
    quiet = [(stop - start) * step for start, stop, sound in runs[heard[0] : heard[-1]] if not sound]
    return Timing(
        total=total,
        leading=runs[heard[0]][0] * step,
        trailing=max(0.0, total - runs[heard[-1]][1] * step),
        pauses=tuple(seconds for seconds in quiet if seconds > SHORTEST_PAUSE_SECONDS - step / 2),
    )


def measure_pauses(wave: np.ndarray, rate: int) -> Measures:
    """Pauses per minute and their share (both of the time between first and last sound), median and 90th percentile of
    their length, silent ends.

    Args:
        wave: `(samples,)` mono.
        rate: samples per second.

    Returns:
        the values under `KEYS`; a clip without a pause has no lengths, and says so.
    """
    if reason := fault(wave, rate):
        return Measures.absent(KEYS, reason)
    found = timing(wave, rate)
    if found is None:
        return Measures.absent(KEYS, "No sound in the clip is longer than a click.")
    measures = Measures()
    measures.put("pauses_per_minute", 60 * len(found.pauses) / found.span)
    median, long = np.percentile(found.pauses, [50, 90]) if found.pauses else (None, None)
    measures.put("pause_median_seconds", median, "The clip has no pause.")
    measures.put("pause_p90_seconds", long, "The clip has no pause.")
    measures.put("pause_share", sum(found.pauses) / found.span)
    measures.put("leading_silence_seconds", found.leading)
    measures.put("trailing_silence_seconds", found.trailing)
    return measures


def _runs(flags: np.ndarray) -> list[tuple[int, int, bool]]:
    """The stretches of equal flags, as (start, stop, flag)."""
    runs, at = [], 0
    for flag, same in groupby(flags.tolist()):
        length = len(list(same))
        runs.append((at, at + length, flag))
        at += length
    return runs
