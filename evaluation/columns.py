"""The figures that tables show: their heads, units and decimals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {  # key: head, its unit, decimals; the unit stands below the head, so that the table stays narrow
    "speaker_similarity": ("similarity", "", 3),
    "speaker_similarity_pooled": ("pooled", "", 3),
    "word_error_rate": ("words", "WER", 3),
    "predicted_mos": ("opinion", "1-5", 2),
    "stopped": ("ended", "", 2),
    "syllables_per_second_speech": ("rate", "syl/s", 2),
    "pitch_median_hz": ("pitch", "Hz", 1),
    "pitch_spread_semitones": ("spread", "st", 2),
    "pauses_per_minute": ("pauses", "/min", 1),
}
OPTIONAL = ("word_error_rate", "predicted_mos", "stopped")
ABSENT = "–"


def shown(summaries: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str, int]]:
    """The columns that a table of these summaries needs: optional ones where somebody has a value that says something."""
    told = {key: {summary[key] for summary in summaries if summary.get(key) is not None} for key in OPTIONAL}
    told["stopped"] -= {1}
    return {key: column for key, column in COLUMNS.items() if told.get(key, True)}


def cell(values: Mapping[str, Any], key: str) -> str:
    """The value as the table shows it; a dash where there is none."""
    value = values.get(key)
    return ABSENT if value is None else f"{value:.{COLUMNS[key][2]}f}"
