"""The figures that tables show: their heads, units and decimals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

COLUMNS = {  # key: head, its unit, decimals; the unit stands below the head, so that the table stays narrow
    "speaker_similarity": ("similarity", "", 3),
    "speaker_similarity_pooled": ("pooled", "", 3),
    "same_voice_share": ("same", "voice", 2),
    "nearest_other_similarity": ("nearest", "other", 3),
    "word_error_rate": ("words", "WER", 3),
    "term_hit_rate": ("terms", "heard", 2),
    "predicted_mos": ("opinion", "1-5", 2),
    "stopped": ("ended", "", 2),
    "looped": ("looped", "", 2),
    "empty": ("empty", "", 2),
    "clipped_share": ("clipped", "share", 4),
    "syllables_per_second_speech": ("rate", "syl/s", 2),
    "characters_per_second_speech": ("rate", "char/s", 1),
    "pitch_median_hz": ("pitch", "Hz", 1),
    "pitch_spread_semitones": ("spread", "st", 2),
    "pauses_per_minute": ("pauses", "/min", 1),
    "energy_db": ("energy", "dB", 1),
    "style_distance": ("style", "dist.", 2),
}
ABSENT = "–"
QUIETLY = 1.0  # dB: levels nearer than this sound alike
AUDIBLY = 0.001  # of the samples at full scale


def _some(values: Sequence[float]) -> bool:
    return bool(values)


def _not_all(expected: float) -> Callable[[Sequence[float]], bool]:
    return lambda values: any(value != expected for value in values)


SAYS_SOMETHING: Mapping[str, Callable[[Sequence[float]], bool]] = {
    "same_voice_share": _not_all(1),
    "nearest_other_similarity": _some,
    "word_error_rate": _some,
    "term_hit_rate": _some,
    "predicted_mos": _some,
    "stopped": _not_all(1),
    "looped": _not_all(0),
    "empty": _not_all(0),
    "clipped_share": lambda values: any(value >= AUDIBLY for value in values),
    "characters_per_second_speech": _some,
    "energy_db": lambda values: bool(values) and max(values) - min(values) > QUIETLY,
    "style_distance": _some,
}
"""Columns that a table has only where somebody has a value that says something; the others it always has."""


def shown(summaries: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str, int]]:
    """The columns that a table of these summaries needs; of the two rates one."""
    told = {key: [one[key] for one in summaries if one.get(key) is not None] for key in COLUMNS}
    kept = {key: column for key, column in COLUMNS.items() if SAYS_SOMETHING.get(key, _always)(told[key])}
    if told["characters_per_second_speech"] and not told["syllables_per_second_speech"]:
        kept.pop("syllables_per_second_speech")
    return kept


def cell(values: Mapping[str, Any], key: str) -> str:
    """The value as the table shows it; a dash where there is none."""
    value = values.get(key)
    return ABSENT if value is None else f"{value:.{COLUMNS[key][2]}f}"


def _always(_: Sequence[float]) -> bool:
    return True
