"""What can be measured of one recording by itself: level, clipping, noise, silence at its ends, highest frequency.

Noise: the floor is the level that 5 % of the 20 ms pieces stay below, speech the mean power of the pieces above twice the
floor, less the floor. That is NIST's STNR (Speech Quality Assurance package) with a percentile for its fitted mode. With
white noise added to 24 synthetic and 24 recorded prompts it was right to 1 dB from 15 to 40 dB and 2 dB high at 10; below that
it reads too high. Speech without a single pause reads too low, noise that is switched off in pauses is not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csm.audio import frame_levels, loudness, sounding_span
from csm.data.clips import TRIM_BELOW_PEAK_DB, clipped_share

FLOOR_PERCENTILE = 5.0
DIGITAL_SILENCE_DBFS = -90.0
FEWEST_PIECES = 20
WINDOW = 1024
AUDIBLE_DB = 65.0  # below the loudest frequency: fricatives are above it, a resampler's remains and 16-bit noise below


@dataclass(frozen=True)
class Sound:
    """Measures of a recording as it lies on disk. None where there is nothing to measure.

    Args:
        seconds: its length.
        rate: its sample rate in Hz.
        loudness: in LUFS (ITU-R BS.1770).
        peak: in dBFS.
        clipped: share of samples in runs of three or more at its own peak: clipping is seen after a change of gain too.
        snr: speech over noise in dB.
        leading, trailing: seconds of quiet (40 dB below the loudest 10 ms) before the first sound and after the last.
        bandwidth: the highest frequency in Hz that carries sound.
        offset: the mean of the samples, 1 being full scale.
    """

    seconds: float
    rate: int
    loudness: float | None
    peak: float
    clipped: float
    snr: float | None
    leading: float
    trailing: float
    bandwidth: float | None
    offset: float = 0.0


def measure_sound(wave: np.ndarray, rate: int) -> Sound:
    """Measure a wave `(samples,)` that is finite, not empty and not silent."""
    peak = float(np.abs(wave).max())
    offset = float(wave.mean(dtype=np.float64))
    level = wave - np.float32(offset)
    first, last = sounding_span(level, rate, TRIM_BELOW_PEAK_DB)
    return Sound(
        seconds=len(wave) / rate,
        rate=rate,
        loudness=loudness(wave, rate),
        peak=20 * float(np.log10(max(peak, 1e-9))),
        clipped=clipped_share(wave / np.float32(max(peak, 1e-9))),
        snr=signal_to_noise(level, rate),
        leading=first / rate,
        trailing=max(0.0, (len(wave) - last) / rate),
        bandwidth=bandwidth(level, rate),
        offset=offset,
    )


def signal_to_noise(wave: np.ndarray, rate: int) -> float | None:
    """Speech over noise in dB, as the module says; None where under 0.4 s of it is more than digital silence."""
    levels = frame_levels(wave, rate, 0.02)
    power = 10 ** (levels[levels > DIGITAL_SILENCE_DBFS] / 10)
    if len(power) < FEWEST_PIECES:
        return None
    floor = float(np.percentile(power, FLOOR_PERCENTILE))
    speech = power[power > 2 * floor]
    if len(speech) == 0:
        return 0.0
    return 10 * float(np.log10((speech.mean() - floor) / floor))


def bandwidth(wave: np.ndarray, rate: int) -> float | None:
    """The highest frequency in Hz within 65 dB of the loudest one, each by its louder moments; None below 1024 samples.

    What was resampled upwards keeps the bandwidth of its lower rate.
    """
    if len(wave) < WINDOW:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[:: WINDOW // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32), axis=1)) ** 2
    level = 10 * np.log10(np.percentile(power, 95, axis=0) + 1e-12)
    audible = np.flatnonzero(level > level.max() - AUDIBLE_DB)
    return float(audible[-1] * rate / WINDOW)
