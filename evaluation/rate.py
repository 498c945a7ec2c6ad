"""How fast a text is spoken: its syllables per second of sounding time, and per second from first sound to last.

The first is articulation, the second includes the pauses; silence at the ends is in neither. Syllables are those of
the text as written (`evaluation/syllables.py`), so a sample that skips or repeats words has a rate as if it had not.
Other languages than English get letters and digits per second of sounding time, under a key of its own: good for
comparing samples of one text, and no bridge between languages.
"""

from __future__ import annotations

import numpy as np

from evaluation.measures import Measures, fault
from evaluation.pauses import timing
from evaluation.syllables import count_syllables, counts_in

KEYS = ("syllables_per_second_speech", "syllables_per_second", "characters_per_second_speech")


def measure_rate(wave: np.ndarray, rate: int, text: str | None, language: str = "en") -> Measures:
    """Syllables per second of sound (pauses left out), and of the time between first and last sound.

    Args:
        wave: `(samples,)` mono.
        rate: samples per second.
        text: what is said; None where it is not known.
        language: of the text, as BCP 47 writes it.

    Returns:
        the values under `KEYS`; syllables where there is a rule for the language's, characters where there is none.
    """
    if reason := fault(wave, rate):
        return Measures.absent(KEYS, reason)
    by_syllable = counts_in(language)
    count = count_syllables(text or "") if by_syllable else sum(map(str.isalnum, text or ""))
    if count == 0:
        what = "syllables" if by_syllable else "letters"
        return Measures.absent(KEYS, "There is no text." if not (text or "").strip() else f"The text has no {what}.")
    found = timing(wave, rate)
    if found is None:
        return Measures.absent(KEYS, "No sound in the clip is longer than a click.")
    if not by_syllable:
        measures = Measures.absent(KEYS, f"There is no rule for syllables in the language {language}.")
        measures.put("characters_per_second_speech", count / found.sounding)
        return measures
    measures = Measures.absent(KEYS, "The rate is given in syllables.")
    measures.put("syllables_per_second_speech", count / found.sounding)
    measures.put("syllables_per_second", count / found.span)
    return measures
