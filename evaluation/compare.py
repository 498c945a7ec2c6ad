"""Is one system better than another, beyond the luck of the draw: paired differences and their bootstrap interval.

The same text with the same seed is one pair; seeds are averaged within a text and texts are drawn again, since seeds
of one text are no independent evidence. The percentile interval is widened for few texts (Hesterberg, What Teachers
Should Know About the Bootstrap, 2015, section 3.3), and with fewer than five there is none: four values drawn again
cannot reach 95 %. Limits: no correction for looking at several checkpoints and figures at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csm.errors import CsmError

FEWEST_TEXTS = 5
PHRASES = {  # metric: what it is, unit, decimals
    "speaker_similarity": ("speaker similarity", "", 3),
    "word_error_rate": ("word error rate", "", 3),
    "term_hit_rate": ("share of the terms that was heard", "", 2),
    "predicted_mos": ("predicted opinion", "", 2),
    "stopped": ("share that stopped by itself", "", 2),
    "syllables_per_second_speech": ("speech rate", " syllables/s", 2),
    "pitch_median_hz": ("median pitch", " Hz", 1),
    "pitch_spread_semitones": ("pitch spread", " semitones", 2),
    "pauses_per_minute": ("pauses", " per minute", 1),
    "pause_share": ("share of pauses", "", 3),
    "energy_db": ("energy of the speech", " dB", 1),
    "pitch_contour_distance_semitones": ("distance from the recordings' melody", " semitones", 2),
    "energy_profile_correlation": ("correlation with the recordings' loudness", "", 2),
}
METRICS = tuple(PHRASES)
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Difference:
    """Tuned minus base.

    Args:
        metric: the key that was compared.
        mean_difference: in the metric's unit, each text counted once.
        interval_95: low and high end, or None with fewer than five texts.
        texts, pairs: how many were compared; a pair needs the value on both sides.
    """

    metric: str
    mean_difference: float
    interval_95: tuple[float, float] | None
    texts: int
    pairs: int


def paired_bootstrap(
    base_rows: Rows, tuned_rows: Rows, metric: str, resamples: int = 2000, seed: int = 0
) -> Difference:
    """The mean paired difference of a metric, tuned minus base, with its 95 % interval over texts.

    Raises:
        CsmError: no text and seed has the metric on both sides.
    """
    pairs = _differences(base_rows, tuned_rows, metric)
    if not pairs:
        raise CsmError(
            f"Nothing pairs: no text and seed has {metric} on both sides.", "Let both systems speak the same texts."
        )
    texts = np.array([np.mean(values) for values in pairs.values()])
    interval = _interval(texts, resamples, seed) if len(texts) >= FEWEST_TEXTS else None
    return Difference(metric, float(texts.mean()), interval, len(texts), sum(map(len, pairs.values())))


def interval_of_mean(rows: Rows, metric: str, resamples: int = 2000, seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of a system's mean over texts; None with fewer than five texts that have the metric."""
    by_text: dict[str, list[float]] = defaultdict(list)
    for (text, _), values in _by_text_and_seed(rows, metric).items():
        by_text[text] += values
    if len(by_text) < FEWEST_TEXTS:
        return None
    return _interval(np.array([np.mean(values) for values in by_text.values()]), resamples, seed)


def has_pairs(base_rows: Rows, tuned_rows: Rows, metric: str) -> bool:
    """Whether some text and seed has the metric on both sides."""
    return bool(_differences(base_rows, tuned_rows, metric))


def in_words(comparison: dict[str, Any]) -> str:
    """One comparison as a sentence; `no significant difference` where the interval covers 0."""
    what, unit, decimals = PHRASES[comparison["metric"]]
    difference, interval, texts = comparison["mean_difference"], comparison["interval_95"], comparison["texts"]
    measured = f"{comparison['system']} {difference:+.{decimals}f}{unit} against {comparison['against']}"
    if interval is None:
        return f"{what}: {measured}; over {texts} texts no interval can be given (it takes {FEWEST_TEXTS})."
    low, high = interval
    spread = f"95 % interval {low:+.{decimals}f} to {high:+.{decimals}f}, {texts} texts"
    if low <= 0 <= high:
        return f"{what}: no significant difference ({measured}; {spread})."
    return f"{what}: {'higher' if difference > 0 else 'lower'}: {measured} ({spread})."


def _differences(base_rows: Rows, tuned_rows: Rows, metric: str) -> dict[str, list[float]]:
    """Tuned minus base for every text, one value a seed, texts in the tuned rows' order."""
    base, tuned = _by_text_and_seed(base_rows, metric), _by_text_and_seed(tuned_rows, metric)
    differences: dict[str, list[float]] = defaultdict(list)
    for (text, seed), values in tuned.items():
        if (text, seed) in base:
            differences[text].append(float(np.mean(values) - np.mean(base[text, seed])))
    return differences


def _by_text_and_seed(rows: Rows, metric: str) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in rows:
        if row["text"] is not None and row.get(metric) is not None:
            found[row["text"].strip(), row["seed"]].append(row[metric])
    return found


def _interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    from scipy.special import ndtr, stdtrit

    count = len(values)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    means = values[drawn].mean(axis=1)
    tail = float(ndtr(np.sqrt(count / (count - 1)) * stdtrit(count - 1, 0.025)))  # 0.025, widened
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
