"""How fast a text is spoken: its syllables per second of sounding time, and per second from first sound to last.

The first is articulation, the second includes the pauses; silence at the ends is in neither. Syllables are those of
the text as written (`evaluation/syllables.py`, English), so a sample that skips or repeats words has a rate as if it
had not.
"""

from __future__ import annotations

import numpy as np

from evaluation.measures import Measures, fault
from evaluation.pauses import timing
from evaluation.syllables import count_syllables

KEYS = ("syllables_per_second_speech", "syllables_per_second")


def measure_rate(wave: np.ndarray, rate: int, text: str | None) -> Measures:
    """Syllables per second of sound (pauses left out), and of the time between first and last sound.

    Args:
        wave: `(samples,)` mono.
        rate: samples per second.
        text: what is said; None where it is not known.

    Returns:
        the values under `KEYS`.
    """
    if reason := fault(wave, rate):
        return Measures.absent(KEYS, reason)
    syllables = count_syllables(text or "")
    if syllables == 0:
        return Measures.absent(KEYS, "There is no text." if not (text or "").strip() else "The text has no syllables.")
    found = timing(wave, rate)
    if found is None:
        return Measures.absent(KEYS, "No sound in the clip is longer than a click.")
    measures = Measures()
    measures.put(KEYS[0], syllables / found.sounding)
    measures.put(KEYS[1], syllables / found.span)
    return measures
