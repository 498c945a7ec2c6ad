"""How loud speech is and how much its level moves: RMS in dBFS over the sounding time alone, and its spread.

Silence and pauses (see `evaluation/pauses.py`) are in neither, so a longer pause does not make a voice quieter.
"""

from __future__ import annotations

import numpy as np

from csm.audio import frame_levels
from evaluation.measures import Measures, fault
from evaluation.pauses import STEP_SECONDS, sounding

KEYS = ("energy_db", "energy_spread_db")


def measure_energy(wave: np.ndarray, rate: int) -> Measures:
    """RMS level of the sounding time in dBFS (a full-scale sine is at -3.01), and the spread of its 10 ms levels in dB.

    Args:
        wave: `(samples,)` mono.
        rate: samples per second.

    Returns:
        the values under `KEYS`; the spread is the standard deviation.
    """
    if reason := fault(wave, rate):
        return Measures.absent(KEYS, reason)
    sounds = sounding(wave, rate)
    if not sounds.any():
        return Measures.absent(KEYS, "No sound in the clip is longer than a click.")
    levels = frame_levels(wave - wave.mean(), rate, STEP_SECONDS)[sounds]
    measures = Measures()
    measures.put("energy_db", 10 * np.log10(np.mean(10 ** (levels / 10))))
    measures.put("energy_spread_db", float(levels.std()))
    return measures
