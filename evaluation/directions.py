"""Which way a score is better: up, down, or neither, where another value is only another way of speaking."""

from __future__ import annotations

DIRECTIONS = {
    "speaker_similarity": 1,
    "word_error_rate": -1,
    "character_error_rate": -1,
    "term_hit_rate": 1,
    "predicted_mos": 1,
    "stopped": 1,
    "looped": -1,
    "empty": -1,
    "clipped_share": -1,
    "silence_share": -1,
    "pitch_contour_distance_semitones": -1,
    "energy_profile_correlation": 1,
    "syllables_per_second_speech": 0,
    "syllables_per_second": 0,
    "pitch_median_hz": 0,
    "pitch_spread_semitones": 0,
    "pitch_range_semitones": 0,
    "pauses_per_minute": 0,
    "pause_share": 0,
    "energy_db": 0,
    "energy_spread_db": 0,
    "duration_seconds": 0,
}
"""1: higher is better, -1: lower is, 0: neither."""
