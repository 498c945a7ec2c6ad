"""What a scorer gives: numbers under keys that name their unit, and for each number that cannot be had, the reason.

A number is finite or absent; NaN never leaves this file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

LOWEST_RATE = 4000
QUIETEST_PEAK = 10 ** (-70 / 20)  # -70 dBFS: below it there is nothing that could be speech


@dataclass
class Measures:
    """Values by key, None where there is none, and a sentence for every None."""

    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def absent(cls, keys: Iterable[str], reason: str) -> Measures:
        """None for every key, for one and the same reason."""
        keys = tuple(keys)
        return cls(dict.fromkeys(keys), dict.fromkeys(keys, reason))

    def put(self, key: str, value: float | None, reason: str = "The value is not a finite number.") -> None:
        """Keep a value as a plain float; None and what is not finite become None with the reason."""
        if value is None or not math.isfinite(value):
            self.values[key], self.reasons[key] = None, reason
        else:
            self.values[key] = float(value)
            self.reasons.pop(key, None)

    def update(self, other: Measures) -> None:
        """Take over another scorer's values and reasons."""
        self.values.update(other.values)
        self.reasons.update(other.reasons)


def fault(wave: np.ndarray, rate: int) -> str | None:
    """Why this sound cannot be measured at all, or None when it can.

    Args:
        wave: `(samples,)` mono, any float type.
        rate: samples per second.
    """
    if wave.ndim != 1:
        return f"The wave has {wave.ndim} dimensions; one channel is expected."
    if rate < LOWEST_RATE:
        return f"The sample rate is {rate} Hz; speech needs {LOWEST_RATE} Hz."
    if len(wave) == 0:
        return "The sound is empty."
    if not np.isfinite(wave).all():
        return "The sound holds values that are not numbers (NaN or infinity)."
    if float(np.abs(wave).max()) < QUIETEST_PEAK:
        return "The sound is silent (its peak is below -70 dBFS)."
    return None
