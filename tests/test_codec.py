"""The codec contract, and MimiCodec against transformers' own MimiModel on a small random one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csm.codec import Codec, load_codec
from csm.errors import CsmError

LENGTHS = [1, 960, 1920, 1921, 9000, 24_000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved MimiModel of 4 codebooks of 64 codes; its codebooks are drawn, so that codes differ."""
    from transformers import MimiModel

    torch.manual_seed(0)
    model = MimiModel(small_config())
    for name, values in model.named_buffers():
        if name.endswith("embed_sum"):
            values.normal_()
    path = tmp_path_factory.mktemp("mimi")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def codec(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Codec:
    return load_codec(config, tensors)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    from transformers import MimiModel

    return MimiModel.from_pretrained(folder).eval()


def small_config() -> Any:
    from transformers import MimiConfig

    small = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2)
    small |= dict.fromkeys(("num_hidden_layers", "num_residual_layers"), 1)
    small |= dict.fromkeys(("codebook_dim", "head_dim", "vector_quantization_hidden_dimension"), 16)
    small |= dict.fromkeys(("hidden_size", "intermediate_size", "upsample_groups"), 32)
    return MimiConfig(num_filters=4, codebook_size=64, num_quantizers=4, **small)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def test_mimi_describes_itself(codec: Codec) -> None:
    assert (codec.sample_rate, codec.frame_rate, codec.codebooks, codec.codebook_size) == (24_000, 12.5, 4, 64)


@pytest.mark.parametrize("samples", LENGTHS)
def test_mimi_encodes_and_decodes_as_transformers(codec: Codec, reference: Any, samples: int) -> None:
    wave = noise(samples)
    codes = codec.encode(wave)
    with torch.no_grad():
        expected = reference.encode(torch.from_numpy(wave)[None, None]).audio_codes
        sound = reference.decode(expected).audio_values[0, 0].numpy()
    assert codes.dtype == np.int64
    assert codes.shape == (4, -(-samples // 1920))
    np.testing.assert_array_equal(codes, expected[0].numpy())
    decoded = codec.decode(codes)
    assert decoded.dtype == np.float32
    assert decoded.shape == (codes.shape[1] * 1920,)
    np.testing.assert_allclose(decoded, sound, atol=1e-7)


def test_mimi_gives_the_first_codebooks_that_the_model_wants(
    codec: Codec, reference: Any, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    fewer = load_codec(config, tensors, num_codebooks=3)
    wave = noise(9000)
    np.testing.assert_array_equal(fewer.encode(wave), codec.encode(wave)[:3])
    with torch.no_grad():
        sound = reference.decode(torch.from_numpy(fewer.encode(wave))[None]).audio_values[0, 0].numpy()
    np.testing.assert_allclose(fewer.decode(fewer.encode(wave)), sound, atol=1e-7)


def test_a_padded_batch_has_other_codes_so_clips_are_encoded_alone(codec: Codec, reference: Any) -> None:
    """In a batch, transformers lets a clip's padding through the encoder as if it were sound."""
    short, long = noise(4000, seed=1), noise(12_000, seed=2)
    batch = np.stack([np.pad(short, (0, 8000)), long])[:, None]
    padding_mask = torch.zeros(2, 1, 12_000, dtype=torch.bool)
    padding_mask[0, :, :4000] = padding_mask[1] = True
    with torch.no_grad():
        together = reference.encode(torch.from_numpy(batch), padding_mask).audio_codes.numpy()
        alone = reference.encode(torch.from_numpy(short)[None, None]).audio_codes[0].numpy()
    np.testing.assert_array_equal(codec.encode(short), alone)
    np.testing.assert_array_equal(codec.encode(long), together[1])
    assert (together[0][:, : alone.shape[1]] != alone).any()


def test_half_precision_is_raised_to_fp32(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    half = {name: value.half() for name, value in tensors.items()}
    raised = load_codec(config, {name: value.float() for name, value in half.items()})
    from_half = load_codec({**config, "dtype": "float16"}, half)
    wave = noise(9000)
    codes = raised.encode(wave)
    np.testing.assert_array_equal(from_half.encode(wave), codes)
    np.testing.assert_array_equal(from_half.decode(codes), raised.decode(codes))
    assert from_half.fingerprint == raised.fingerprint


def test_the_codec_of_a_saved_csm_is_the_codec_inside_it(tmp_path: Path) -> None:
    from transformers import CsmConfig, CsmForConditionalGeneration

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "num_codebooks": 3}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "audio_token_id", "audio_eos_token_id"), 0)
    depth = {**tiny, "backbone_hidden_size": 16}
    csm_config = CsmConfig(
        **tiny, **ids, text_vocab_size=64, codebook_pad_token_id=0, depth_decoder_config=depth,
        codec_config=small_config().to_dict(),
    )  # fmt: skip
    model = CsmForConditionalGeneration(csm_config)
    for name, values in model.codec_model.named_buffers():
        if name.endswith("embed_sum"):
            values.normal_()
    model.save_pretrained(tmp_path)
    saved = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if k.startswith("codec_model.")}
    config = json.loads((tmp_path / "config.json").read_text())["codec_config"]
    codec = load_codec(config, {k.removeprefix("codec_model."): v for k, v in saved.items()}, num_codebooks=3)
    wave = noise(9000)
    with torch.no_grad():
        expected = model.codec_model.encode(torch.from_numpy(wave)[None, None]).audio_codes[0, :3].numpy()
    np.testing.assert_array_equal(codec.encode(wave), expected)


def test_the_fingerprint_follows_what_decides_the_codes(
    codec: Codec, config: dict[str, Any], tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.configuration_utils.__version__", "9.0")
    again = load_codec({**config, "transformers_version": "9.0", "_name_or_path": "here"}, tensors)
    assert again.fingerprint == codec.fingerprint
    assert len(codec.fingerprint) == 64
    name = "encoder.layers.0.conv.weight"
    changed = {**tensors, name: tensors[name] + 1e-3}
    others = [
        load_codec(config, changed),
        load_codec({**config, "sliding_window": 8}, tensors),
        load_codec(config, tensors, num_codebooks=3),
    ]
    assert len({codec.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_every_tensor_at_fault_is_named_at_once(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    wrong = dict(tensors)
    del wrong["downsample.conv.weight"], wrong["encoder.layers.0.conv.bias"]
    wrong["encoder.layers.99.conv.bias"] = torch.zeros(1)
    wrong["upsample.conv.weight"] = torch.zeros(2, 3)
    with pytest.raises(CsmError) as caught:
        load_codec(config, wrong, source="models/x")
    message = caught.value.message
    assert message.startswith("models/x")
    for part in ("downsample.conv.weight is missing", "encoder.layers.0.conv.bias is missing"):
        assert part in message
    assert "encoder.layers.99.conv.bias does not belong there" in message
    assert "upsample.conv.weight is [2, 3]" in message


@pytest.mark.parametrize(
    ("change", "codebooks", "sentence"),
    [
        ({"model_type": "dac"}, None, "codec type 'dac' is not known"),
        ({"model_type": None}, None, "codec type None is not known"),
        ({"hidden_size": "wide"}, None, "hidden_size"),
        ({}, 5, "5 codebooks a frame; its Mimi codec can give 1 to 4"),
    ],
)
def test_a_config_that_does_not_fit_is_told_in_a_sentence(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], change: dict, codebooks: int | None, sentence: str
) -> None:
    with pytest.raises(CsmError, match=sentence):
        load_codec({**config, **change}, tensors, num_codebooks=codebooks)


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        (np.zeros((3, 5), np.int64), "not integers of shape"),
        (np.zeros((4, 5), np.float32), "not integers of shape"),
        (np.zeros(4, np.int64), "not integers of shape"),
        (np.full((4, 5), 64), r"not 0\.\.63"),
        (np.full((4, 5), -1), r"not 0\.\.63"),
    ],
)
def test_foreign_codes_are_refused(codec: Codec, codes: np.ndarray, sentence: str) -> None:
    with pytest.raises(CsmError, match=sentence):
        codec.decode(codes)


@pytest.mark.parametrize("wave", [np.zeros((2, 4000), np.float32), np.array([0.0, np.nan], np.float32)])
def test_what_is_no_mono_wave_is_refused(codec: Codec, wave: np.ndarray) -> None:
    with pytest.raises(CsmError, match="mono and finite"):
        codec.encode(wave)


def test_nothing_in_is_nothing_out(codec: Codec) -> None:
    assert codec.encode(np.zeros(0, np.float32)).shape == (4, 0)
    assert codec.decode(np.zeros((4, 0), np.int64)).shape == (0,)


def test_importing_the_codec_imports_no_transformers() -> None:
    code = "import sys, csm.codec, csm.tiny_codec; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
