"""Generation against transformers' own, and the ways it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csm.backend import Backend, Sampling
from csm.errors import CsmError
from csm.frames import join, text_rows
from csm.generator import Generator, load_generator
from csm.model_folder import open_folder
from csm.segment import Segment

CPU = Backend("cpu", "float32", "test")
FRAMES = 100


@pytest.fixture(scope="module")
def generator(toy_folder: Path) -> Generator:
    return Generator(open_folder(toy_folder), CPU)


def their_codes(model: Any, ids: np.ndarray, wave: np.ndarray | None = None) -> np.ndarray:
    """transformers' greedy codes (K, T), its prompt's audio encoded by its own codec."""
    inputs = {"input_ids": torch.from_numpy(ids)[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if wave is not None:
        inputs |= {
            "input_values": torch.from_numpy(wave)[None, None],
            "input_values_cutoffs": torch.tensor([[len(wave)]]),
        }
    out = model.generate(**inputs, max_new_tokens=FRAMES, do_sample=False, depth_decoder_do_sample=False)
    return out[0].T.numpy()


def assert_same_or_tied(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal, or the first difference lies where rounding decides: none of the toy's seeds has such a tie."""
    assert ours.shape == theirs.shape
    assert (ours == theirs).all(), f"first difference at frame {(ours != theirs).any(0).argmax()}"


@pytest.mark.parametrize("text", ["hello there.", "a longer sentence, with more words in it?"])
def test_greedy_codes_equal_transformers(generator: Generator, toy_transformers: Any, text: str) -> None:
    prompt = generator.prompt(text, 3)
    ours = np.stack(list(generator.model.frames(prompt, Sampling(0.0), FRAMES)), 1)
    assert_same_or_tied(ours, their_codes(toy_transformers, generator.tokenizer.encode(text, 3)))
    assert len(np.unique(ours)) > 20


def test_greedy_codes_equal_transformers_with_audio_context(generator: Generator, toy_transformers: Any) -> None:
    """transformers' prompt: text, one audio token a frame, the audio end; then the new text."""
    wave = np.random.default_rng(0).standard_normal(1920 * 7).astype(np.float32) * 0.1
    before, text = generator.tokenizer.encode("what did you say?", 1), generator.tokenizer.encode("nothing.", 2)
    frames = generator.codec.encode(wave).shape[1]
    ids = np.concatenate([before, [3] * frames, [4], text])
    theirs = their_codes(toy_transformers, ids, wave)
    prompt = generator.prompt("nothing.", 2, [Segment("what did you say?", 1, wave)])
    ours = np.stack(list(generator.model.frames(prompt, Sampling(0.0), FRAMES)), 1)
    assert_same_or_tied(ours, theirs)


def test_generation_equals_teacher_forcing(generator: Generator, toy_folder: Path) -> None:
    """Each greedy code is the best of the logits that the training model gives for the same rows."""
    from csm.frames import audio_rows
    from csm.torch.checkpoint import load_model

    prompt = generator.prompt("hello there.", 0)
    codes = np.stack(list(generator.model.frames(prompt, Sampling(0.0), 20)), 1)
    rows = join([prompt, audio_rows(codes, end=False)])
    with torch.no_grad():
        first, depth = load_model(open_folder(toy_folder))(
            torch.from_numpy(rows.frames).long()[None], torch.from_numpy(rows.mask)[None]
        )
    start = len(prompt) - 1
    np.testing.assert_array_equal(first[0, start : start + 20].argmax(-1).numpy(), codes[0])
    np.testing.assert_array_equal(depth[0, start : start + 20].argmax(-1).numpy().T, codes[1:])


def test_same_seed_same_sound(generator: Generator) -> None:
    one = generator.speak("hello.", seed=7, max_audio_length_ms=800)
    two = generator.speak("hello.", seed=7, max_audio_length_ms=800)
    other = generator.speak("hello.", seed=8, max_audio_length_ms=800)
    np.testing.assert_array_equal(one.wave, two.wave)
    assert (one.codes != other.codes).any()
    assert (one.stop_reason, one.seconds) == ("length", 0.8)


def test_top_k_one_is_greedy(generator: Generator) -> None:
    prompt = generator.prompt("hello.", 0)
    greedy = list(generator.model.frames(prompt, Sampling(0.0), 10))
    narrow = list(generator.model.frames(prompt, Sampling(1.0, 1, 3), 10))
    np.testing.assert_array_equal(greedy, narrow)


def test_sampling_follows_the_distribution(generator: Generator) -> None:
    """First codes of many seeds are drawn as softmax(logits / T) says, within top-k."""
    from csm.torch.choice import Picker

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]])
    drawn = np.zeros(5)
    for seed in range(40):
        picker = Picker(Sampling(0.7, 3, seed), 200, 5, torch.device("cpu"))
        picker.new_frame()
        for codebook in range(200):
            drawn[int(picker(logits, codebook))] += 1
    wanted = (logits[0, :3] / 0.7).softmax(-1).numpy()
    np.testing.assert_allclose(drawn[:3] / drawn.sum(), wanted, atol=0.015)
    assert drawn[3:].sum() == 0


def test_the_documented_call_returns_a_tensor(generator: Generator) -> None:
    audio = generator.generate(text="hi.", speaker=0, context=[], max_audio_length_ms=400, temperature=0.9, topk=5)
    assert audio.ndim == 1
    assert audio.dtype == torch.float32
    assert generator.sample_rate == 24_000


def test_a_prompt_without_room_is_an_error(generator: Generator) -> None:
    turns = [Segment("word " * 40, 0)] * 2
    with pytest.raises(CsmError, match="leaves no room"):
        generator.speak("hello.", context=turns)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_an_error(generator: Generator, text: str) -> None:
    with pytest.raises(CsmError, match="text is empty"):
        generator.speak(text)


def test_an_empty_generation_is_an_error(toy_folder: Path) -> None:
    """A model whose first frame is the end says nothing: an error, no file."""
    generator = Generator(open_folder(toy_folder), CPU)
    generator.model.frames = lambda *_: iter(())  # type: ignore[method-assign]
    with pytest.raises(CsmError, match="before it said anything"):
        generator.speak("hello.")


def test_csm_tiny_stops_by_itself_and_reads_letters_only() -> None:
    generator = load_generator("csm-tiny", "cpu", threads=1)
    speech = generator.speak("please close the window.", 3, seed=0)
    assert speech.stop_reason == "end"
    assert 0.8 < speech.seconds < 3
    assert speech.codes.min() >= 1
    assert generator.tokenizer.unknown_characters("room 12, please") == "12"
    with pytest.raises(CsmError, match="no symbol for speaker 99"):
        generator.speak("hello.", 99)


def test_text_rows_only_mask_the_text_column() -> None:
    rows = text_rows(np.array([5, 6]), 4)
    assert rows.mask.sum() == 2
    assert rows.mask[:, -1].all()
