"""A clip: a row's sound as the codec wants it, or the fault that keeps it out of training.

Limits: channels are averaged before clipping is looked for, so a clip whose channels clip at different times passes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csm import audio
from csm.data.faults import Fault
from csm.data.row import Row
from csm.errors import CsmError

SHORTEST_SECONDS = 0.3
LONGEST_SECONDS = 90.0
LONGEST_RECORDING_SECONDS = 600.0  # a longer file is not read: no clip is left of it, whatever is silent in it
SILENT_DBFS = -50.0
FULL_SCALE = 0.9999  # a full-scale sine stays above it for fewer than three samples, down to 60 Hz at 24 kHz
CLIPPED_SHARE = 0.01
RATES = (4_000, 400_000)  # Hz; a header that says otherwise is broken
TRIM_BELOW_PEAK_DB = 40.0
TRIM_KEEP_SECONDS = 0.1
CHARACTERS_PER_SECOND = (0.5, 40.0)

SETTINGS = (
    f"clip 1: {audio.TARGET_LUFS} LUFS, trim {TRIM_BELOW_PEAK_DB} dB {TRIM_KEEP_SECONDS} s, "
    f"{SHORTEST_SECONDS}-{LONGEST_SECONDS} s, silent {SILENT_DBFS}, clipped {FULL_SCALE} {CLIPPED_SHARE}, rates {RATES}"
)
"""What was done to a wave, and what it had to pass, before it was encoded: part of the key of its cached codes."""


def load_sound(
    path: Path,
    sample_rate: int = audio.SAMPLE_RATE,
    trim: bool = True,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray | Fault:
    """A sound file, or its part from `start` to `end` seconds, as `(samples,)` float32.

    It is resampled, trimmed and at `audio.TARGET_LUFS`. A fault is a file that cannot be read, is truncated, empty,
    silent, clipped, too short or too long.
    """
    try:
        wave, rate = audio.read_audio(path, start, end, LONGEST_RECORDING_SECONDS)
    except CsmError as error:
        return Fault(path, error.message.removeprefix(f"{path} ").rstrip("."))
    except OSError as error:
        return Fault(path, f"cannot be read ({error.strerror})")
    prepared = prepare_sound(wave, rate, sample_rate, trim)
    return Fault(path, prepared) if isinstance(prepared, str) else prepared


def prepare_sound(
    wave: np.ndarray, rate: int, sample_rate: int = audio.SAMPLE_RATE, trim: bool = True
) -> np.ndarray | str:
    """A recorded wave `(samples,)` resampled, trimmed and levelled, or what is wrong with it ("is silent")."""
    problem = _recording_problem(wave, rate)
    if problem:
        return problem
    wave = audio.resample(wave, rate, sample_rate)
    if trim:
        wave = audio.trim(wave, sample_rate, TRIM_BELOW_PEAK_DB, TRIM_KEEP_SECONDS)
    return _length_problem(len(wave) / sample_rate) or audio.normalise_loudness(wave, sample_rate)


def text_fault(row: Row, seconds: float) -> Fault | None:
    """The fault of a text that cannot belong to `seconds` of speech, or None."""
    fewest, most = CHARACTERS_PER_SECOND
    rate = len(row.text) / seconds
    if fewest <= rate <= most:
        return None
    many = "many" if rate > most else "few"
    count = f"{len(row.text)} character{'' if len(row.text) == 1 else 's'}"
    place = row.source if row.line is None else f"{row.source}, line {row.line}"
    return Fault(row.audio, f"does not fit its text in {place}: {count} are too {many} for {seconds:.1f} s of speech")


def _recording_problem(wave: np.ndarray, rate: int) -> str | None:
    if len(wave) == 0:
        return "holds no samples"
    if not np.isfinite(wave).all():
        return "holds samples that are not numbers"
    if not RATES[0] <= rate <= RATES[1]:
        return f"has a sample rate of {rate} Hz, outside {RATES[0]} to {RATES[1]}"
    peak = 20 * np.log10(max(float(np.abs(wave).max()), 1e-6))
    if peak < SILENT_DBFS:
        return f"is silent: its peak is {'below -100' if peak < -100 else f'{peak:.0f}'} dBFS"
    share = clipped_share(wave)
    if share > CLIPPED_SHARE:
        return f"is clipped: {share:.0%} of it stands at full scale"
    return None


def clipped_share(wave: np.ndarray) -> float:
    """The share of samples that stand in runs of three or more at full scale."""
    full = np.abs(wave) >= FULL_SCALE
    run = full[:-2] & full[1:-1] & full[2:]
    inside = np.zeros_like(full)
    for shift in range(3):
        inside[shift : shift + len(run)] |= run
    return float(inside.mean())


def _length_problem(seconds: float) -> str | None:
    if seconds < SHORTEST_SECONDS:
        return f"is too short: {seconds:.2f} s of sound, and {SHORTEST_SECONDS} s are needed"
    if seconds > LONGEST_SECONDS:
        return f"is too long: {seconds:.0f} s of sound, and {LONGEST_SECONDS:.0f} s are the limit; cut it into clips"
    return None
