"""--denoise: steady noise is taken out of whole recordings by a spectral gate, and what changed is told.

A denoised recording is a file of its own, kept under the hash of the original and of the settings; rows then name it in
place of the original, so that everything after, the key of cached codes too, sees other bytes. The noise is learned from the
quietest tenth of a recording: one without any pause loses some of its soft sounds. Method: noisereduce's stationary gate
(Sainburg et al. 2020).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from csm import audio
from csm.data.faults import Fault
from csm.data.remote import write_whole
from csm.data.row import Row
from csm.errors import CsmError

STRENGTH = 0.9  # of the noise that the gate takes: some is left, since holes sound worse than hiss
WINDOW_SECONDS = 0.064
BLOCK_SECONDS = 0.1
QUIETEST_SHARE = 0.1
DIGITAL_SILENCE_DBFS = -90.0
SETTINGS = f"denoise 1: stationary {STRENGTH}, {WINDOW_SECONDS} s, from {QUIETEST_SHARE} in blocks of {BLOCK_SECONDS} s"


@dataclass(frozen=True)
class Change:
    """What denoising did to one recording: its noise floor and its loud parts, in dBFS, before and after."""

    floor_before: float
    floor_after: float
    loud_before: float
    loud_after: float


@dataclass(frozen=True)
class Denoised:
    """The conversations with denoised recordings, what is left out, and the change of each recording."""

    conversations: list[list[Row]]
    faults: list[Fault]
    changes: dict[Path, Change]

    def describe(self) -> str:
        """What was changed, in one line."""
        if not self.changes:
            return "no recording was changed"
        middle = {
            key: median(getattr(change, key) for change in self.changes.values()) for key in Change.__annotations__
        }
        return (
            f"{len(self.changes)} recordings; noise floor {middle['floor_before']:.0f} dBFS, now "
            f"{middle['floor_after']:.0f}; loud parts {middle['loud_before']:.1f} dBFS, now {middle['loud_after']:.1f} "
            "(medians)"
        )


def denoise(
    conversations: Sequence[Sequence[Row]], folder: Path, progress: Callable[[int, int], None] | None = None
) -> Denoised:
    """Denoise every recording once, into `folder`; what was denoised before is taken from there.

    Raises:
        CsmError: noisereduce is not installed.
    """
    if importlib.util.find_spec("noisereduce") is None:
        raise CsmError(
            "--denoise needs noisereduce, which is not installed.", "Run: pip install 'csm-finetune[denoise]'"
        )
    made: dict[Path, tuple[Path, Change] | Fault] = {}
    kept = []
    done, total = 0, sum(map(len, conversations))
    for conversation in conversations:
        turns = []
        for row in conversation:
            if row.audio not in made:
                made[row.audio] = _denoised(row.audio, folder)
            found = made[row.audio]
            if not isinstance(found, Fault):
                turns.append(replace(row, audio=found[0]))
            done += 1
            if progress:
                progress(done, total)
        if turns:
            kept.append(turns)
    faults = [found for found in made.values() if isinstance(found, Fault)]
    return Denoised(kept, faults, {path: found[1] for path, found in made.items() if not isinstance(found, Fault)})


def reduce_noise(wave: np.ndarray, rate: int) -> np.ndarray:
    """The wave `(samples,)` float32 without its steady noise; one that is silent in its pauses stays as it is."""
    from noisereduce import reduce_noise as gate

    noise = _quietest(wave, rate)
    if len(noise) == 0:
        return wave
    points = 2 ** round(np.log2(WINDOW_SECONDS * rate))
    # the library's smoothing of the mask takes more of the speech than of the noise: 13 dB against 32 at 29 dB of noise
    unsmoothed = {"freq_mask_smooth_hz": None, "time_mask_smooth_ms": None}
    quiet = gate(y=wave, sr=rate, y_noise=noise, stationary=True, prop_decrease=STRENGTH, n_fft=points, **unsmoothed)
    return quiet.astype(np.float32)


def _quietest(wave: np.ndarray, rate: int) -> np.ndarray:
    """The quietest blocks, joined; empty where the quietest are digital silence."""
    size = round(rate * BLOCK_SECONDS)
    blocks = wave[: len(wave) // size * size].reshape(-1, size)
    if len(blocks) == 0:
        return wave[:0]
    levels = 20 * np.log10(np.maximum(np.sqrt(np.mean(np.square(blocks, dtype=np.float64), axis=1)), 1e-6))
    chosen = np.sort(np.argsort(levels, kind="stable")[: max(3, round(QUIETEST_SHARE * len(blocks)))])
    heard = chosen[levels[chosen] > DIGITAL_SILENCE_DBFS]
    return blocks[heard].reshape(-1)


def _denoised(path: Path, folder: Path) -> tuple[Path, Change] | Fault:
    try:
        with open(path, "rb") as file:
            key = hashlib.file_digest(file, lambda: hashlib.sha256(SETTINGS.encode())).hexdigest()
        target = folder / key[:2] / f"{key}.flac"
        change = _read_change(target)
        if change is None:
            wave, rate = audio.read_audio(path)
            change = _write(target, wave, reduce_noise(wave, rate), rate)
    except CsmError as error:
        return Fault(path, error.message.removeprefix(f"{path} ").rstrip("."))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        return Fault(path, "is not there" if missing else f"cannot be read ({error.strerror})")
    return target, change


def _read_change(target: Path) -> Change | None:
    report = target.with_suffix(".json")
    if not (report.is_file() and target.is_file()):
        return None
    return Change(**json.loads(report.read_text()))


def _write(target: Path, before: np.ndarray, after: np.ndarray, rate: int) -> Change:
    """The sound first, then the report, which says that both are whole."""
    was, now = (audio.frame_levels(wave, rate) for wave in (before, after))
    floors, louds = ([round(float(np.percentile(levels, q)), 2) for levels in (was, now)] for q in (5, 95))
    change = Change(*floors, *louds)
    audio.write_wave(target, after, rate)
    write_whole(target.with_suffix(".json"), [json.dumps(vars(change)).encode()])
    return change
