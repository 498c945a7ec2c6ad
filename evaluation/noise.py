"""How much a system's mean score moves when nothing but the sampling seed does: what a gate must not call a change.

Rows of one text with several seeds differ by chance alone; their variance, pooled over the texts, is the noise of one
sample, and the mean over n samples of the same texts moves by its root over n. Limits: it knows nothing of the luck of
a training run, only of the luck of the draw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from csm.errors import CsmError
from evaluation.directions import DIRECTIONS

SCHEMA_VERSION = 1
FEWEST_FREEDOMS = 10


@dataclass(frozen=True)
class Noise:
    """The noise of one sample of one metric.

    Args:
        deviation: standard deviation between seeds of one text, in the metric's unit.
        freedoms: degrees of freedom it was estimated with.
    """

    deviation: float
    freedoms: int

    def of_difference(self, samples: float, others: float) -> float:
        """Standard deviation of the difference of two means over so many samples of the same texts."""
        return self.deviation * float(np.sqrt(1 / samples + 1 / others))

    def of_mean(self, samples: float) -> float:
        """Standard deviation of a mean over so many samples, the texts being what they are."""
        return self.deviation / float(np.sqrt(samples))

    def quantile(self, tail: float) -> float:
        """How many deviations a value lies off at most, but for a share of `tail` on that side (Student's t)."""
        from scipy.special import stdtrit

        return float(-stdtrit(self.freedoms, tail))


def calibrate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Noise]:
    """The noise of every metric that has enough repeats.

    Args:
        rows: a system's samples: texts, seeds and values as in `scores.json`.

    Raises:
        CsmError: no metric has texts with several seeds, ten repeats in all.
    """
    found = {metric: noise for metric in DIRECTIONS if (noise := _noise(rows, metric))}
    if not found:
        raise CsmError(
            "There are too few repeats to know the noise: texts must be spoken with several seeds, "
            f"{FEWEST_FREEDOMS} repeats in all.",
            "Speak each text several times: --samples-per-text 5.",
        )
    return found


def to_json(bands: Mapping[str, Noise], system: str) -> dict[str, Any]:
    """The document that `csm evaluate calibrate` writes."""
    noise = {metric: asdict(band) for metric, band in bands.items()}
    return {"schema_version": SCHEMA_VERSION, "system": system, "noise": noise}


def from_json(document: Any) -> dict[str, Noise]:
    """What `to_json` gave.

    Raises:
        CsmError: it is no such document, or of another schema version.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION or not isinstance(document.get("noise"), dict):
        raise CsmError("The noise file is none that csm evaluate calibrate wrote.", "Run csm evaluate calibrate.")
    try:
        bands = {
            metric: Noise(float(one["deviation"]), int(one["freedoms"])) for metric, one in document["noise"].items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CsmError(f"The noise file is damaged ({error}).", "Run csm evaluate calibrate again.") from error
    if any(not np.isfinite(band.deviation) or band.deviation < 0 or band.freedoms < 1 for band in bands.values()):
        raise CsmError("The noise file holds a number that is no noise.", "Run csm evaluate calibrate again.")
    return bands


def _noise(rows: Sequence[Mapping[str, Any]], metric: str) -> Noise | None:
    by_text: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["text"] is not None and row.get(metric) is not None:
            by_text[row["text"].strip()].append(row[metric])
    repeated = [np.array(values) for values in by_text.values() if len(values) > 1]
    freedoms = sum(len(values) - 1 for values in repeated)
    if freedoms < FEWEST_FREEDOMS:
        return None
    squares = sum(float(np.sum((values - values.mean()) ** 2)) for values in repeated)
    return Noise(float(np.sqrt(squares / freedoms)), freedoms)
