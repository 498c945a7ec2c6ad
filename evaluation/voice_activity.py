"""Where somebody speaks, whatever else sounds: Silero's network (MIT), as faster-whisper ships it."""

from __future__ import annotations

import importlib.util

import numpy as np

from csm.audio import resample
from csm.errors import CsmError

RATE = 16_000
STEP_SECONDS = 512 / RATE


def speech_probabilities(wave: np.ndarray, rate: int) -> np.ndarray:
    """The probability that somebody speaks in each `STEP_SECONDS` of a wave `(samples,)`: `(steps,)` float32.

    Raises:
        CsmError: faster-whisper is not installed.
    """
    if importlib.util.find_spec("faster_whisper") is None:
        raise CsmError(
            "Finding speech needs faster-whisper, which is not installed.", "Run: pip install 'csm-finetune[asr]'"
        )
    from faster_whisper.vad import get_vad_model

    sound = resample(np.asarray(wave, np.float32), rate, RATE)
    if len(sound) == 0:
        return np.zeros(0, np.float32)
    return np.asarray(get_vad_model()(np.pad(sound, (0, -len(sound) % 512))), np.float32).reshape(-1)
