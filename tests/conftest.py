"""Shared fixtures: toy models that are real (made by transformers, random), and data made on the spot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from csm.data.clips import load_sound, text_fault
from csm.data.faults import Fault
from csm.data.row import Row

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

ASSETS = Path(__file__).parent.parent / "csm" / "assets" / "csm-tiny"
TOY_CODEBOOKS = 6


def toy_config() -> object:
    """A CSM with every feature that shapes differ by: grouped keys, scaled RoPE, odd widths, a Mimi codec."""
    from transformers import CsmConfig

    def rope(original: int, low: float, high: float) -> dict:
        return {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }

    depth = {
        "num_codebooks": TOY_CODEBOOKS,
        "backbone_hidden_size": 48,
        "vocab_size": 67,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": TOY_CODEBOOKS + 1,
        "initializer_range": 0.2,
        "rope_parameters": rope(4, 0.01, 0.05),
    }
    codec = {
        "model_type": "mimi",
        "num_quantizers": TOY_CODEBOOKS,
        "codebook_size": 64,
        "hidden_size": 32,
        "num_filters": 4,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "upsample_groups": 32,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    return CsmConfig(
        num_codebooks=TOY_CODEBOOKS,
        vocab_size=67,
        text_vocab_size=54,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.2,
        rope_parameters=rope(64, 0.125, 0.5),
        bos_token_id=1,
        pad_token_id=0,
        audio_token_id=3,
        audio_eos_token_id=4,
        codebook_pad_token_id=66,
        depth_decoder_config=depth,
        codec_config=codec,
    )


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random toy CSM in transformers' layout, with csm-tiny's tokenizer; never says the end frame by itself."""
    from transformers import CsmForConditionalGeneration

    folder = tmp_path_factory.mktemp("toy") / "model"
    torch.manual_seed(0)
    model = CsmForConditionalGeneration(toy_config())
    for name, buffer in model.codec_model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_()
    out_of_range = [0, *range(64, 67)]
    model.lm_head.weight.data[out_of_range] = 0
    model.depth_decoder.codebooks_head.weight.data[:, :, out_of_range] = 0
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ASSETS / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def toy_transformers(toy_folder: Path) -> object:
    """The toy model as transformers runs it."""
    from transformers import CsmForConditionalGeneration

    return CsmForConditionalGeneration.from_pretrained(toy_folder, dtype=torch.float32).eval()


def spoken(seconds: float, seed: int, rate: int = 24_000) -> np.ndarray:
    """Something with the level and the on and off of speech: harmonics under a moving envelope."""
    time = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    pitch = 110 + 60 * rng.random() + 10 * np.sin(2 * np.pi * 2 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = sum(np.sin(k * phase) / k for k in range(1, 8)) * (0.6 + 0.4 * np.sin(2 * np.pi * (3 + rng.random()) * time))
    return (0.1 * wave + 0.002 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`audio/` and `transcripts/` of ten short clips."""
    root = tmp_path_factory.mktemp("clips")
    write_clips(root, 10)
    return root


def write_clips(root: Path, count: int) -> None:
    """Ten words, cut to different lengths, over waves of different lengths."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "sleeping", "dog"]
    for kind in ("audio", "transcripts"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        soundfile.write(root / "audio" / f"{i:03d}.wav", spoken(0.8 + 0.12 * (i % 7), i), 24_000)
        (root / "transcripts" / f"{i:03d}.txt").write_text(" ".join(words[: 3 + i % 6]) + ".")


@pytest.fixture
def make_clips(tmp_path: Path) -> Callable[[int], Path]:
    """A function that makes a folder of clips of its own for a test."""

    def make(count: int) -> Path:
        write_clips(tmp_path / "data", count)
        return tmp_path / "data"

    return make


def load_clip(row: Row, sample_rate: int = 24_000, trim: bool = True) -> np.ndarray | Fault:
    """What the cache encodes of a row, or the one fault of its sound or its text."""
    wave = load_sound(row.audio, sample_rate, trim, row.start, row.end)
    return wave if isinstance(wave, Fault) else text_fault(row, len(wave) / sample_rate) or wave
