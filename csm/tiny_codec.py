"""The spectral codec of csm-tiny: log mel -> a phonetic book and seven residual books; codes -> log mel -> Griffin-Lim.

Eight mel frames of 10 ms make one code frame of 80 ms. Book 0 is k-means on the bottleneck of a small phoneme
classifier; books 1.. are residual k-means on principal components of what book 0's centre leaves. A convolution over
the codes of six frames on each side turns them back into a log mel. Codes are 1..codebook_size - 1: code 0 is left to
the end of speech. Limit: fitted on one family of synthetic voices; it has no codes for most human ones.

`SpectralCodec` holds the mathematics; `csm.codec.TinyCodec` is its numpy face, and `register_with_transformers`
builds its transformers face when called, so that importing this file imports no transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csm.errors import CsmError

MODEL_TYPE = "csm_tiny_codec"
SAMPLE_RATE, HOP, N_FFT, BANDS, GROUP = 24_000, 240, 1024, 80, 8
FRAME = HOP * GROUP  # samples of one code frame: 80 ms, 12.5 a second
WIDE = BANDS * GROUP  # values of one code frame's log mel
FLOOR = 1e-3  # of a mel magnitude, and its logarithm below: the level of digital silence
QUIET = -6.9
PHONETIC = 40  # width of the classifier's bottleneck
LEAD = (N_FFT - HOP) // 2  # samples before the first hop in the first window


@dataclass(frozen=True)
class TinyCodecShape:
    """What a codec config of type `csm_tiny_codec` says. Sizes in entries, rates in Hz."""

    num_quantizers: int = 8
    codebook_size: int = 1024
    dimension: int = 160
    sampling_rate: int = SAMPLE_RATE
    frame_size: int = FRAME
    frame_rate: float = SAMPLE_RATE / FRAME
    iterations: int = 24

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TinyCodecShape:
        """Read the fields that the codec has; keys of the folder's other layers (dtype, version) are left alone."""
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("num_quantizers", "codebook_size", "dimension", "iterations")}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 2:
                raise CsmError(f"the codec config says {name} = {value!r}, which is no whole number above 1.")
        if (self.sampling_rate, self.frame_size, self.frame_rate) != (SAMPLE_RATE, FRAME, SAMPLE_RATE / FRAME):
            found = f"{self.sampling_rate} Hz, {self.frame_size} samples a frame and {self.frame_rate} frames a second"
            raise CsmError(f"a {MODEL_TYPE} of {found} is not known.", f"It has {SAMPLE_RATE}, {FRAME} and 12.5.")


class ContextDecoder(nn.Module):
    """Codes' centres of this frame and six on each side -> what to add to book 0's own log mel."""

    def __init__(self, dimension: int, width: int = 256) -> None:
        super().__init__()
        self.a = nn.Conv1d(2 * dimension, width, 5, padding=2)
        self.b = nn.Conv1d(width, width, 5, padding=4, dilation=2)
        self.c = nn.Conv1d(width, width, 3, padding=1)
        self.out = nn.Conv1d(width, WIDE, 1)

    def forward(self, centre: Tensor, rest: Tensor) -> Tensor:
        """`(T, dimension)` of book 0 and of the later books' sum -> `(T, 640)`."""
        hidden = F.gelu(self.a(torch.cat([centre, rest], 1).T[None] / 10))
        hidden = hidden + F.gelu(self.b(hidden))
        hidden = hidden + F.gelu(self.c(hidden))
        return self.out(hidden)[0].T


class SpectralCodec(nn.Module):
    """The codec on torch tensors, fp32, on the device of its weights. Parameter names are those of the model folder."""

    def __init__(self, shape: TinyCodecShape) -> None:
        super().__init__()
        entries, dimension = shape.codebook_size - 1, shape.dimension
        self.shape = shape
        self.phonetic = nn.Sequential(
            nn.Linear(2 * WIDE, 256), nn.GELU(), nn.Linear(256, 192), nn.GELU(), nn.Linear(192, PHONETIC)
        )
        self.wide_mean, self.wide_std = _constant(2 * WIDE), _constant(1)
        self.phonetic_book = _constant(entries, PHONETIC)
        self.first, self.books = _constant(entries, dimension), _constant(shape.num_quantizers - 1, entries, dimension)
        self.mel_mean, self.basis = _constant(WIDE), _constant(WIDE, dimension)
        self.decoder = ContextDecoder(dimension)

    @torch.no_grad()
    def encode(self, wave: Tensor) -> Tensor:
        """`(samples,)` at 24 kHz -> codes `(K, T)` in 1..codebook_size - 1; the end is padded to a whole frame."""
        mel = log_mel(wave).reshape(-1, WIDE)  # (T, 640)
        codes = [_nearest(self._phonetic_place(mel), self.phonetic_book)]
        left = (mel - self.mel_mean) @ self.basis - self.first[codes[0]]
        for book in self.books:
            codes.append(_nearest(left, book))
            left = left - book[codes[-1]]
        return torch.stack(codes) + 1

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """`(K, T)` -> wave `(T * 1920,)`. A code of 0, which names no sound, is read as 1."""
        at = (codes - 1).clamp(min=0)
        centre = self.first[at[0]]
        rest = torch.stack([book[at[k + 1]] for k, book in enumerate(self.books)]).sum(0)
        mel = centre @ self.basis.T + self.mel_mean + self.decoder(centre, rest)
        return griffin_lim(mel.reshape(-1, BANDS), self.shape.iterations)

    def _phonetic_place(self, mel: Tensor) -> Tensor:
        """Each frame with half a frame on each side, through the classifier, to `(T, 40)` of unit scale."""
        half = WIDE // 2
        quiet = mel.new_full((1, half), QUIET)
        before, after = torch.cat([quiet, mel[:-1, half:]]), torch.cat([mel[1:, :half], quiet])
        wide = (torch.cat([before, mel, after], 1) - self.wide_mean) / self.wide_std
        return F.layer_norm(self.phonetic(wide), (PHONETIC,))


def log_mel(wave: Tensor) -> Tensor:
    """`(samples,)` at 24 kHz -> natural logarithm of 80 mel magnitudes each 10 ms, `(ceil(samples / 1920) * 8, 80)`."""
    frames = -(-len(wave) // FRAME) * GROUP
    padded = F.pad(wave, (LEAD, frames * HOP + N_FFT - LEAD - len(wave)))
    spectrum = torch.fft.rfft(padded.unfold(0, N_FFT, HOP)[:frames] * _on(_window(), wave)).abs()
    return (spectrum @ _on(_mel_bank(), wave).T).clamp(min=FLOOR).log()


def griffin_lim(mel: Tensor, iterations: int, momentum: float = 0.99) -> Tensor:
    """Log mel `(frames, 80)` -> wave `(frames * 240,)`: phases found by projection, from a fixed random start.

    Griffin and Lim 1984, accelerated as in Perraudin, Balazs and Soendergaard 2013.
    """
    size = _magnitudes(mel)  # (frames, 513)
    turns = np.random.default_rng(0).random(tuple(size.shape))  # always the same start: decoding is a function
    spectrum = torch.polar(size, _on(2 * np.pi * turns, size))
    window, old = _on(_window(), size), torch.zeros_like(spectrum)
    weight = _overlap_add((window**2).expand(len(size), -1)).clamp(min=1e-3)
    for _ in range(iterations):
        wave = _overlap_add(torch.fft.irfft(spectrum, N_FFT) * window) / weight
        new = torch.fft.rfft(wave.unfold(0, N_FFT, HOP)[: len(size)] * window)
        ahead = torch.lerp(old, new, 1 + momentum)
        old, spectrum = new, ahead * (size / ahead.abs().clamp(min=1e-8))
    wave = _overlap_add(torch.fft.irfft(spectrum, N_FFT) * window) / weight
    return wave[LEAD : LEAD + len(size) * HOP]


def _magnitudes(mel: Tensor, rounds: int = 8) -> Tensor:
    """Linear magnitudes `(frames, 513)` whose mel bands are the ones given: pseudo-inverse, then multiplicative."""
    bank, target = _on(_mel_bank(), mel), mel.exp()
    share = bank / bank.sum(0).clamp(min=1e-8)
    size = (target @ _on(_mel_inverse(), mel).T).clamp(min=1e-5)
    for _ in range(rounds):
        size = size * ((target / (size @ bank.T).clamp(min=1e-5)) @ share)
    return size


def _overlap_add(windows: Tensor) -> Tensor:
    """`(frames, 1024)` at hops of 240 -> their sum, in whole hops."""
    frames, steps = len(windows), -(-N_FFT // HOP)
    pieces = F.pad(windows, (0, steps * HOP - N_FFT)).reshape(frames, steps, HOP)
    total = windows.new_zeros(frames + steps - 1, HOP)
    for step in range(steps):
        total[step : step + frames] += pieces[:, step]
    return total.reshape(-1)


def _nearest(points: Tensor, book: Tensor) -> Tensor:
    return torch.cdist(points, book).argmin(1)


def _constant(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


def _on(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like)


@lru_cache(maxsize=1)
def _window() -> np.ndarray:
    """Hann's, periodic."""
    return np.hanning(N_FFT + 1)[:-1].astype(np.float32)


@lru_cache(maxsize=1)
def _mel_bank() -> np.ndarray:
    """Triangles `(80, 513)` between 82 points from 30 Hz to 12 kHz on O'Shaughnessy's scale, rows summing to 1."""
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (30, SAMPLE_RATE / 2))
    edges = 700 * (10 ** (np.linspace(lowest, highest, BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    bank = np.maximum(0, np.minimum(rising, falling))
    return (bank / np.maximum(bank.sum(1, keepdims=True), 1e-8)).astype(np.float32)


@lru_cache(maxsize=1)
def _mel_inverse() -> np.ndarray:
    return np.linalg.pinv(_mel_bank()).astype(np.float32)


@lru_cache(maxsize=1)
def register_with_transformers() -> type:
    """Teach transformers' Auto classes the codec, so that `CsmForConditionalGeneration` loads csm-tiny.

    Returns:
        the `PreTrainedModel` class, with the `encode` and `decode` that CSM calls. Calling again changes nothing.
    """
    from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
    from transformers.utils import ModelOutput

    class TinyCodecConfig(PreTrainedConfig):
        model_type = MODEL_TYPE

        def __init__(self, **kwargs: Any) -> None:
            for name, value in asdict(TinyCodecShape.from_config(kwargs)).items():
                setattr(self, name, value)
                kwargs.pop(name, None)
            super().__init__(**kwargs)

    @dataclass
    class TinyCodecOutput(ModelOutput):
        audio_codes: Tensor | None = None
        audio_values: Tensor | None = None

    class TinyCodecModel(PreTrainedModel):
        """Holds the weights in any dtype; each call computes in fp32 with a `SpectralCodec` of their values."""

        config_class = TinyCodecConfig
        main_input_name = "input_values"

        def __init__(self, config: TinyCodecConfig) -> None:
            super().__init__(config)
            net = SpectralCodec(TinyCodecShape.from_config(config.to_dict()))
            for name, child in net.named_children():
                self.add_module(name, child)
            for name, value in net.named_parameters(recurse=False):
                self.register_parameter(name, value)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            """A codec is fitted, not initialised."""

        def _spectral(self) -> SpectralCodec:
            net = SpectralCodec(TinyCodecShape.from_config(self.config.to_dict())).to(self.device)
            net.load_state_dict(self.state_dict())
            return net

        def encode(self, input_values: Tensor, **_: Any) -> TinyCodecOutput:
            """`(B, 1, samples)` -> audio_codes `(B, K, T)`, each wave by itself."""
            net = self._spectral()
            return TinyCodecOutput(audio_codes=torch.stack([net.encode(wave.float()) for wave in input_values[:, 0]]))

        def decode(self, audio_codes: Tensor, **_: Any) -> TinyCodecOutput:
            """`(B, K, T)` -> audio_values `(B, 1, T * 1920)`."""
            net = self._spectral()
            return TinyCodecOutput(audio_values=torch.stack([net.decode(codes) for codes in audio_codes])[:, None])

        def get_encoded_length(self, length: Any) -> Any:
            """Samples -> code frames."""
            return -(-length // FRAME)

        def get_audio_codes_mask(self, padding_mask: Tensor, padding_side: str = "right") -> Tensor:
            """`(B, samples)` of what is sound -> `(B, T)` of which frames are."""
            frames = self.get_encoded_length(padding_mask.sum(-1))
            mask = torch.arange(int(frames.max()), device=frames.device)[None] < frames[:, None]
            return mask if padding_side == "right" else mask.flip(-1)

    AutoConfig.register(MODEL_TYPE, TinyCodecConfig, exist_ok=True)
    AutoModel.register(TinyCodecConfig, TinyCodecModel, exist_ok=True)
    return TinyCodecModel
