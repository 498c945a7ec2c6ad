"""Who speaks: a speaker embedding, and the cosine between two of them.

The network is Resemblyzer's (GE2E, arXiv 1710.10467): three LSTM layers over 40 mel bands. Only its weights file is
used; the package itself is found and never imported, since it drags in a voice detector and librosa.

Limits: trained on telephone and read English at 16 kHz. A clip under 3 s is judged loosely (the same voice scores
about .73 at 1 s, .84 at 3 s, .95 at 10 s), so read a single short sample's similarity as a hint and the pooled one as
the figure; and always beside the reference's similarity to itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from csm.audio import resample
from csm.errors import CsmError
from evaluation.measures import fault
from evaluation.pauses import sounding

RATE = 16_000
WINDOW, HOP, BANDS = 400, 160, 40  # 25 ms every 10 ms
PIECE, STEP = 160, 77  # frames: pieces of 1.6 s, 1.3 of them a second
LEVEL = 10 ** (-30 / 20)  # RMS the network expects: its input is power, not log power
SHORTEST_SECONDS = 0.5


def embed(wave: np.ndarray, rate: int) -> np.ndarray:
    """The voice of one clip as `(256,)` float32 of length 1; the same clip always gives the same numbers.

    Quiet stretches are shortened to 0.2 s first, and the rest is brought to -30 dBFS RMS, so that neither a
    recording's level nor its silences count as voice.

    Raises:
        CsmError: the clip is not mono, not finite or silent, holds under 0.5 s of sound, or Resemblyzer is missing.
    """
    import torch

    if reason := unusable(wave, rate):
        raise CsmError(reason)
    wave = without_silences(resample(np.asarray(wave, dtype=np.float32), rate, RATE))
    wave = wave * np.float32(LEVEL / np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    network = _network()
    with torch.inference_mode():
        pieces = torch.from_numpy(_pieces(wave))  # (pieces, PIECE, BANDS)
        _, (hidden, _) = network["lstm"](pieces)
        voices = torch.nn.functional.normalize(torch.relu(network["linear"](hidden[-1])), dim=1)  # (pieces, 256)
    return _unit(np.mean(voices.numpy(), axis=0, dtype=np.float64))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two embeddings `(256,)`: in 0..1 here, since their entries are never negative."""
    return float(np.clip(np.dot(a.astype(np.float64), b.astype(np.float64)), -1.0, 1.0))


def mean_embedding(embeddings: Sequence[np.ndarray]) -> np.ndarray:
    """The voice that several clips share: their embeddings' mean, brought back to length 1, `(256,)` float32.

    Raises:
        CsmError: there are none.
    """
    if len(embeddings) == 0:
        raise CsmError("There is no embedding to average: no clip holds enough speech.")
    return _unit(np.mean(embeddings, axis=0, dtype=np.float64))


def unusable(wave: np.ndarray, rate: int) -> str | None:
    """Why `embed` would refuse this clip, or None when it would not."""
    if reason := fault(wave, rate):
        return reason
    seconds = len(without_silences(resample(np.asarray(wave, dtype=np.float32), rate, RATE))) / RATE
    if seconds < SHORTEST_SECONDS:
        return f"The clip holds {seconds:.2f} s of sound; a voice needs {SHORTEST_SECONDS} s."
    return None


def without_silences(wave: np.ndarray) -> np.ndarray:
    """A wave at `RATE`, `(samples,)`, without what lies farther than 0.1 s from any sound."""
    near = np.convolve(sounding(wave, RATE), np.ones(21), mode="full")[10:-10] > 0.5
    return wave[np.repeat(near, HOP)[: len(wave)]]


@cache
def _network() -> Any:
    """The two layers in float32 on the CPU, read once; the weights file is read as tensors, never unpickled."""
    import torch

    found = importlib.util.find_spec("resemblyzer")
    path = Path(found.origin).parent / "pretrained.pt" if found and found.origin else None
    if path is None or not path.is_file():
        raise CsmError(
            "Speaker similarity needs the weights in the package resemblyzer, which is not installed.",
            "Run: pip install --no-deps resemblyzer",
        )
    network = torch.nn.ModuleDict(
        {"lstm": torch.nn.LSTM(BANDS, 256, num_layers=3, batch_first=True), "linear": torch.nn.Linear(256, 256)}
    )
    stored = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    network.load_state_dict({name: value for name, value in stored.items() if name.startswith(("lstm.", "linear."))})
    return network.eval()


def _pieces(wave: np.ndarray) -> np.ndarray:
    """The wave's mel power in overlapping stretches `(pieces, PIECE, BANDS)`; the last is padded if 3/4 is there."""
    samples = PIECE * HOP
    starts = range(0, max(1, len(wave) - (3 * samples) // 4 + 1), STEP * HOP)
    mel = mel_power(np.pad(wave, (0, max(0, starts[-1] + samples - len(wave)))))
    return np.stack([mel[start // HOP : start // HOP + PIECE] for start in starts])


def mel_power(wave: np.ndarray) -> np.ndarray:
    """Power in mel bands `(frames, BANDS)` float32, frames centred on multiples of 10 ms."""
    padded = np.pad(wave, WINDOW // 2).astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    return (power @ _filters().T).astype(np.float32)


@cache
def _filters() -> np.ndarray:
    """Triangles of equal area on Slaney's mel scale (Auditory Toolbox, 1998), `(BANDS, WINDOW // 2 + 1)`."""
    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)  # linear to 1 kHz, which is mel 15, then 27 steps per 6.4
    mels = np.linspace(0, top, BANDS + 2)
    hz = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    triangles = [
        np.interp(bins, hz[band : band + 3], [0, 2 / (hz[band + 2] - hz[band]), 0], left=0, right=0)
        for band in range(BANDS)
    ]
    return np.stack(triangles)


def _unit(vector: Any) -> np.ndarray:
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
