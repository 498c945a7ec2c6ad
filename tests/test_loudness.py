"""Loudness against pyloudnorm, another program for the same standard, and against the standard's own tone."""

from __future__ import annotations

import numpy as np
import pyloudnorm
import pytest

from csm.audio import normalise_loudness
from csm.loudness import integrated_loudness


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_it_is_what_pyloudnorm_measures(rate: int) -> None:
    """To the last bit that matters: the gain of a clip, float32, is the same, and so are its codes."""
    draw = np.random.default_rng(rate)
    for seconds in (0.4, 0.41, 0.55, 1.0, 3.333, 7.7):
        samples = round(seconds * rate)
        swell = np.interp(np.arange(samples), np.linspace(0, samples, 40), draw.random(40) ** 4)
        wave = (draw.uniform(0.01, 0.5) * swell * draw.standard_normal(samples)).astype(np.float32)
        measured, theirs = (
            integrated_loudness(wave, rate),
            pyloudnorm.Meter(rate).integrated_loudness(wave.astype(float)),
        )
        assert measured == pytest.approx(theirs, abs=1e-9)
        gain = min(10 ** ((-23 - theirs) / 20), 0.99 / float(np.abs(wave).max()))
        np.testing.assert_array_equal(normalise_loudness(wave, rate), wave * np.float32(gain))


def test_a_full_scale_tone_of_997_hertz_is_at_minus_3_01() -> None:
    wave = np.sin(2 * np.pi * 997 * np.arange(5 * 48_000) / 48_000).astype(np.float32)
    assert integrated_loudness(wave, 48_000) == pytest.approx(-3.01, abs=0.1)  # as the EBU lets meters be off


def test_what_has_no_loudness() -> None:
    assert integrated_loudness(np.ones(9_599, np.float32), 24_000) is None  # below a block
    assert integrated_loudness(np.full(48_000, 1e-6, np.float32), 24_000) is None  # under the gate
