"""Loudness of a mono wave: ITU-R BS.1770-4, its K-weighting for any rate.

The two filters are Bristow-Johnson's shelf and high pass (Cookbook formulae for audio EQ biquad filter coefficients) with the
corners that give the standard's at 48 kHz, as pyloudnorm has them (Steinmetz and Reiss, 2021), and run in one pass.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

BLOCK_SECONDS, BLOCKS_OVERLAP = 0.4, 0.75
SHELF_DB, SHELF_Q, SHELF_HZ = 4.0, 1 / np.sqrt(2), 1500.0
PASS_Q, PASS_HZ = 0.5, 38.0
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0
OFFSET = -0.691


def integrated_loudness(wave: np.ndarray, rate: int) -> float | None:
    """The gated loudness in LUFS of `(samples,)`; None below one block of 0.4 s, and where all lies under the gate."""
    if len(wave) < BLOCK_SECONDS * rate:
        return None
    power = _block_power(wave, rate)
    with np.errstate(divide="ignore"):
        levels = OFFSET + 10 * np.log10(power)
    heard = power[levels >= ABSOLUTE_GATE]
    if len(heard) == 0:
        return None
    gate = OFFSET + 10 * np.log10(heard.mean()) + RELATIVE_GATE
    return float(OFFSET + 10 * np.log10(power[(levels > gate) & (levels > ABSOLUTE_GATE)].mean()))


def _block_power(wave: np.ndarray, rate: int) -> np.ndarray:
    """Mean square of each block of the weighted wave."""
    from scipy.signal import sosfilt

    weighted = sosfilt(_weighting(rate), wave.astype(np.float64))
    energy = np.concatenate([[0.0], np.cumsum(np.square(weighted))])
    step = 1.0 - BLOCKS_OVERLAP
    count = round((len(wave) / rate - BLOCK_SECONDS) / (BLOCK_SECONDS * step)) + 1
    begins = BLOCK_SECONDS * (np.arange(count) * step) * rate
    ends = BLOCK_SECONDS * (np.arange(count) * step + 1) * rate
    bounds = np.minimum(np.stack([begins, ends]).astype(np.int64), len(wave))
    return (energy[bounds[1]] - energy[bounds[0]]) / (BLOCK_SECONDS * rate)


@lru_cache(16)
def _weighting(rate: int) -> np.ndarray:
    """The two filters as second-order sections `(2, 6)`."""
    gain = 10 ** (SHELF_DB / 40)
    cosine, alpha = _angle(SHELF_HZ, SHELF_Q, rate)
    root = 2 * np.sqrt(gain) * alpha
    more, less = gain + 1, gain - 1
    shelf = [
        gain * (more + less * cosine + root), -2 * gain * (less + more * cosine), gain * (more + less * cosine - root),
        more - less * cosine + root, 2 * (less - more * cosine), more - less * cosine - root,
    ]  # fmt: skip
    cosine, alpha = _angle(PASS_HZ, PASS_Q, rate)
    high = [(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2, 1 + alpha, -2 * cosine, 1 - alpha]
    return np.array([np.array(section) / section[3] for section in (shelf, high)])


def _angle(hertz: float, q: float, rate: int) -> tuple[float, float]:
    angle = 2 * np.pi * hertz / rate
    return float(np.cos(angle)), float(np.sin(angle) / (2 * q))
