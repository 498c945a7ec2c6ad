"""How far a system's way of speaking is from a target's: rate, pitch, energy and pauses, in the target's own spread.

Each feature's distance is the difference of the means over the standard deviation of the target's recordings (Cohen's
d with one side's spread); the one figure is their root mean square. A half of the target against the other half gives
the yardstick: what the same speaker in the same style scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.measures import Measures

FEATURES = (
    "syllables_per_second_speech",
    "characters_per_second_speech",  # of a text there is one rate or the other
    "pitch_median_hz",
    "pitch_spread_semitones",
    "energy_spread_db",
    "pause_share",
)
KEYS = ("style_distance", *(f"style_distance_{feature}" for feature in FEATURES))
FEWEST = 4
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Style:
    """A way of speaking to be reached.

    Args:
        name: where its recordings come from, as the report says it.
        rows: of the recordings.
    """

    name: str
    rows: Rows

    def to_json(self) -> dict[str, Any]:
        """Its name, how many recordings, and `style_distance`, the yardstick, None with fewer than eight."""
        return {"name": self.name, "recordings": len(self.rows), "style_distance": own_distance(self.rows)}


def measure_style(samples: Rows, target: Rows) -> Measures:
    """Standardised distances of samples from a target style.

    Args:
        samples: rows of the system.
        target: rows of the target's recordings, four at least with a value.

    Returns:
        the values under `KEYS`, without a unit; features that cannot be had are absent and left out of the one figure.
    """
    measures, squares = Measures(), []
    for feature in FEATURES:
        ours, theirs = _column(samples, feature), _column(target, feature)
        reason = f"It takes {FEWEST} recordings of the target style and one sample with {feature}."
        distance = None
        if len(theirs) >= FEWEST and len(ours):
            spread = float(np.std(theirs, ddof=1))
            distance = float(ours.mean() - theirs.mean()) / spread if spread > 1e-9 else None
            reason = f"The target's {feature} does not vary, so there is no yardstick."
        measures.put(f"style_distance_{feature}", distance, reason)
        if distance is not None:
            squares.append(distance**2)
    whole = float(np.sqrt(np.mean(squares))) if squares else None
    measures.put("style_distance", whole, "No feature of style could be compared.")
    return measures


def own_distance(target: Rows) -> float | None:
    """The style distance of every second recording from the others: the yardstick; None with fewer than eight."""
    return measure_style(target[::2], target[1::2]).values["style_distance"]


def _column(rows: Rows, feature: str) -> np.ndarray:
    return np.array([row[feature] for row in rows if row.get(feature) is not None], dtype=float)
