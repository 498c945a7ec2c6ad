"""Codec: a wave -> codes and back. The class is named by `model_type` in the model folder's codec config.

`MimiCodec` is transformers' own MimiModel, `TinyCodec` the spectral codec of csm-tiny. Both compute in fp32 whatever
the folder's dtype is, and encode each clip by itself: Mimi's codes of a padded batch are not those of its clips.
Limit: no streaming; a decode sees all its frames at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from csm import tiny_codec
from csm.errors import CsmError
from csm.weights import check_shapes

# What transformers writes beside a codec's own settings; none of it changes a code.
_BESIDE_THE_SETTINGS = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


class Codec(Protocol):
    """What turns sound into the integers that CSM speaks.

    Attributes:
        sample_rate: of the waves, in Hz.
        frame_rate: code frames a second.
        codebooks: K, the codes of one frame.
        codebook_size: codes are 0..codebook_size - 1.
        fingerprint: sha256 (hex) of the settings, K and the weights in fp32: equal where the codes are equal.
    """

    sample_rate: int
    frame_rate: float
    codebooks: int
    codebook_size: int
    fingerprint: str

    def encode(self, wave: np.ndarray) -> np.ndarray:
        """Float32 `(samples,)` at `sample_rate` -> int64 `(K, T)`, the last frame padded with silence."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Integers `(K, T)` -> float32 `(samples,)`, T whole frames."""


class _TorchCodec:
    """Numpy at the border, checks of what comes in, and the fingerprint; the two codecs add the torch between."""

    sample_rate: int
    frame_rate: float
    codebooks: int
    codebook_size: int

    def encode(self, wave: np.ndarray) -> np.ndarray:
        """Float32 `(samples,)` -> int64 `(K, T)`. Raises CsmError where the wave is no finite mono wave."""
        wave = np.ascontiguousarray(wave, dtype=np.float32)
        if wave.ndim != 1 or not np.isfinite(wave).all():
            raise CsmError(f"A wave of shape {wave.shape} was not encoded: it must be mono and finite.")
        if len(wave) == 0:
            return np.zeros((self.codebooks, 0), np.int64)
        with torch.inference_mode():
            return self._encode(torch.from_numpy(wave).to(self._device)).cpu().numpy()

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Integers `(K, T)` -> float32 `(samples,)`. Raises CsmError where the codes are not this codec's."""
        codes = np.ascontiguousarray(codes)
        if codes.ndim != 2 or len(codes) != self.codebooks or not np.issubdtype(codes.dtype, np.integer):
            what = f"{codes.dtype} of shape {codes.shape}"
            raise CsmError(f"Codes were not decoded: they are {what}, not integers of shape ({self.codebooks}, T).")
        if codes.shape[1] == 0:
            return np.zeros(0, np.float32)
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            found = f"{codes.min()}..{codes.max()}"
            raise CsmError(f"Codes were not decoded: they span {found}, not 0..{self.codebook_size - 1}.")
        with torch.inference_mode():
            return self._decode(torch.from_numpy(codes.astype(np.int64)).to(self._device)).cpu().numpy()

    @cached_property
    def fingerprint(self) -> str:
        """See `Codec`. Reads every weight, so it is worked out when first asked for."""
        settings = {k: v for k, v in self._settings.items() if k not in _BESIDE_THE_SETTINGS}
        digest = hashlib.sha256(json.dumps([settings, self.codebooks], sort_keys=True).encode())
        for name, value in sorted(self._weights.items()):
            digest.update(f"{name} {tuple(value.shape)} ".encode())
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def _device(self) -> torch.device:
        return next(iter(self._weights.values())).device

    # What a codec adds.
    _settings: dict[str, Any]
    _weights: dict[str, Tensor]  # by their names in the model folder

    def _encode(self, wave: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode(self, codes: Tensor) -> Tensor:
        raise NotImplementedError


class MimiCodec(_TorchCodec):
    """Kyutai's Mimi (Defossez et al. 2024) through `transformers.MimiModel`, with the first K of its codebooks."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str, codebooks: int | None):
        from transformers import MimiModel
        from transformers.core_model_loading import revert_weight_conversion

        settings = _mimi_config(config)
        self.codebooks = codebooks or settings.num_quantizers
        if not settings.num_semantic_quantizers <= self.codebooks <= settings.num_quantizers:
            has = f"{settings.num_semantic_quantizers} to {settings.num_quantizers}"
            raise CsmError(f"the model has {self.codebooks} codebooks a frame; its Mimi codec can give {has}.")
        self.sample_rate, self.frame_rate = settings.sampling_rate, float(settings.frame_rate)
        self.codebook_size, self._settings = settings.codebook_size, settings.to_dict()
        self._model = MimiModel(settings).eval().requires_grad_(False)
        # In memory MimiModel's tensors have other names than in files; this view has the files' names.
        _fill(revert_weight_conversion(self._model, self._model.state_dict()), tensors)
        self._model.to(device)
        self._weights = revert_weight_conversion(self._model, self._model.state_dict())

    def _encode(self, wave: Tensor) -> Tensor:
        return self._model.encode(wave[None, None], num_quantizers=self.codebooks).audio_codes[0]

    def _decode(self, codes: Tensor) -> Tensor:
        return self._model.decode(codes[None]).audio_values[0, 0]


class TinyCodec(_TorchCodec):
    """The spectral codec of csm-tiny; see `csm.tiny_codec`."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str, codebooks: int | None):
        shape = tiny_codec.TinyCodecShape.from_config(config)
        if codebooks not in (None, shape.num_quantizers):
            raise CsmError(f"the model has {codebooks} codebooks a frame; its codec has {shape.num_quantizers}.")
        self.sample_rate, self.frame_rate = shape.sampling_rate, shape.frame_rate
        self.codebooks, self.codebook_size, self._settings = shape.num_quantizers, shape.codebook_size, asdict(shape)
        self._net = tiny_codec.SpectralCodec(shape).eval().requires_grad_(False)
        _fill(self._net.state_dict(), tensors)
        self._weights = self._net.to(device).state_dict()

    def _encode(self, wave: Tensor) -> Tensor:
        return self._net.encode(wave)

    def _decode(self, codes: Tensor) -> Tensor:
        return self._net.decode(codes)


def load_codec(
    codec_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: str = "cpu",
    num_codebooks: int | None = None,
    source: str = "the model folder",
) -> Codec:
    """The codec of a model folder.

    Args:
        codec_config: the folder's `codec_config`; `model_type` names the class.
        tensors: the folder's tensors whose names begin with `codec_model.`, without that prefix, of any float dtype.
        device: where torch computes.
        num_codebooks: the K of the model; a Mimi may hold more codebooks than that. None takes all.
        source: what the sentence of an error calls the folder.

    Raises:
        CsmError: the type is not known, K does not fit, or a tensor is missing, unexpected or of another shape.
    """
    kinds: dict[Any, Any] = {"mimi": MimiCodec, tiny_codec.MODEL_TYPE: TinyCodec}
    kind = codec_config.get("model_type")
    if kind not in kinds:
        raise CsmError(f"{source}: the codec type {kind!r} is not known.", f"Known are {' and '.join(kinds)}.")
    try:
        return kinds[kind](codec_config, tensors, device, num_codebooks)
    except CsmError as error:
        raise CsmError(f"{source}: {error.message}", error.hint) from None


def _mimi_config(config: Mapping[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import MimiConfig

    try:
        return MimiConfig(**{key: value for key, value in config.items() if key not in _BESIDE_THE_SETTINGS})
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise CsmError(f"the codec config is none of a Mimi: {' '.join(str(error).split())}.") from error


def _fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into `own`, name by name, raised to its fp32; every fault is gathered, then told at once."""
    found, wanted = ({name: tuple(t.shape) for name, t in side.items()} for side in (tensors, own))
    check_shapes(found, wanted, "the codec")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
