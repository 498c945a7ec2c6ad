"""How natural a voice sounds: the mean opinion score (1 bad to 5 excellent) that listeners would give, as a model predicts it.

The model is DistillMOS (Stahl and Gamper, arXiv 2502.05356; Microsoft, MIT), an optional package that carries its
weights. It looks at 7.68 s; a shorter sound is repeated until it fills them, since the silence that the package would add
costs .3 to .7. Limits: trained on telephony and codecs, so its scale is not that of a listening test of yours: compare
systems, not studies. Scores are taken before a watermark is put in.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from csm.audio import resample
from csm.errors import CsmError
from evaluation.measures import Measures, fault

RATE = 16_000
WINDOW = 122_880  # samples the model looks at
KEYS = ("predicted_mos",)
SHORTEST_SECONDS = 0.5
PREDICTOR = "distillmos 0.9.1, short sounds repeated"
INSTALL = "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0"


def installed() -> bool:
    """Whether the model can be had."""
    return all(importlib.util.find_spec(name) for name in ("distillmos", "xls_r_sqa"))


def measure_naturalness(wave: np.ndarray, rate: int) -> Measures:
    """The predicted mean opinion score, 1 to 5.

    Args:
        wave: `(samples,)` mono.
        rate: samples per second.

    Returns:
        the value under `KEYS`, absent with the reason where the sound or the package does not allow it.
    """
    if not installed():
        return Measures.absent(KEYS, f"The predictor is not installed: {INSTALL}")
    if reason := fault(wave, rate):
        return Measures.absent(KEYS, reason)
    if len(wave) < SHORTEST_SECONDS * rate:
        return Measures.absent(KEYS, f"The clip is shorter than {SHORTEST_SECONDS} s.")
    import torch

    narrow = resample(np.asarray(wave, dtype=np.float32), rate, RATE)
    if len(narrow) < WINDOW:
        narrow = np.resize(narrow, WINDOW)  # repeats it
    measures = Measures()
    with torch.inference_mode():
        measures.put("predicted_mos", float(_model()(torch.tensor(narrow)[None]).reshape(-1)[0]))
    return measures


@cache
def _model() -> Any:
    """Read once. The package imports torchaudio for its command line alone, which waves do not need."""
    if not installed():
        raise CsmError("Predicted naturalness needs the package distillmos.", INSTALL)
    stands_in = importlib.util.find_spec("torchaudio") is None
    if stands_in:
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from distillmos import ConvTransformerSQAModel

            return ConvTransformerSQAModel().eval()
    finally:
        if stands_in:
            del sys.modules["torchaudio"]
