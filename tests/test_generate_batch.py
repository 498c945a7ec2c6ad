"""Many rows side by side say what each says alone: different lengths, ends, samplings; and threads that share a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csm.backend import Backend, FrameRequest, Sampling
from csm.errors import CsmError
from csm.generator import Generator, NothingSpokenError, Request, Speech, load_generator
from csm.model_folder import open_folder
from csm.samples import speak_samples
from csm.segment import Segment

CPU = Backend("cpu", "float32", "test")
FRAMES = 100
TEXTS = (
    "hello there.",
    "a longer sentence, with more words in it?",
    "no.",
    "what is it that you want to say to me tonight?",
    "yes!",
    "one more, please.",
    "the last.",
)
SAMPLINGS = (Sampling(0.0), Sampling(0.9, 50, 1), Sampling(0.7, 5, 2), Sampling(1.0, 500, 3))


@pytest.fixture(scope="module")
def generator(toy_folder: Path) -> Generator:
    return Generator(open_folder(toy_folder), CPU)


@pytest.fixture(scope="module")
def tiny() -> Generator:
    return load_generator("csm-tiny", "cpu", threads=1)


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame whose first code divides by 9 is an end: rows of the toy end at any time, some before their first."""
    for module in ("generate", "batch"):
        monkeypatch.setattr(f"csm.torch.{module}.is_end", lambda codes: codes[0] % 9 == 0)


def requests_of(generator: Generator, samplings: Sequence[Sampling], limit: int = FRAMES) -> list[FrameRequest]:
    """A row for each text, of as many lengths as there are, with the samplings in turn."""
    prompts = [generator.prompt(text, number) for number, text in enumerate(TEXTS)]
    return [FrameRequest(p, samplings[i % len(samplings)], limit - 7 * i) for i, p in enumerate(prompts)]


def alone(generator: Generator, request: FrameRequest) -> np.ndarray:
    frames = list(generator.model.frames(request.prompt, request.sampling, request.limit))
    return np.stack(frames, 1) if frames else np.zeros((generator.codec.codebooks, 0), np.int64)


def assert_as_alone(generator: Generator, requests: list[FrameRequest], size: int | None) -> list[int]:
    """Every row's codes are its own; the order in which they ended."""
    spoken = list(generator.model.batch(requests, size))
    assert sorted(number for number, _ in spoken) == list(range(len(requests)))
    for number, codes in spoken:
        np.testing.assert_array_equal(codes, alone(generator, requests[number]), err_msg=f"row {number}")
    return [number for number, _ in spoken]


@pytest.mark.parametrize("size", [1, 3, None])
@pytest.mark.parametrize("samplings", [SAMPLINGS[:1], SAMPLINGS[1:2], SAMPLINGS], ids=["greedy", "sampled", "mixed"])
def test_each_row_is_as_it_is_alone(generator: Generator, samplings: Sequence[Sampling], size: int | None) -> None:
    """Different prompts, limits and samplings; with fewer places than rows, a row takes the place of one that ended."""
    order = assert_as_alone(generator, requests_of(generator, samplings), size)
    if size is None:
        assert order == list(reversed(range(len(TEXTS))))  # limits fall from row to row


def test_all_codes_may_be_drawn_from(generator: Generator) -> None:
    """top-k 0 draws noise for every code; it goes with other samplings in one batch."""
    assert_as_alone(generator, requests_of(generator, [Sampling(0.8, 0, 4), SAMPLINGS[0], SAMPLINGS[1]], 60), 4)


def test_greedy_rows_equal_transformers(generator: Generator, toy_transformers: Any) -> None:
    texts = TEXTS[:4]
    requests = [FrameRequest(generator.prompt(text, 3), Sampling(0.0), FRAMES) for text in texts]
    spoken = dict(generator.model.batch(requests))
    for number, text in enumerate(texts):
        ids = torch.from_numpy(generator.tokenizer.encode(text, 3))[None]
        theirs = toy_transformers.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=FRAMES,
            do_sample=False,
            depth_decoder_do_sample=False,
        )
        np.testing.assert_array_equal(spoken[number], theirs[0].T.numpy())


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("size", [2, 4, None])
def test_rows_end_when_they_end(generator: Generator, size: int | None) -> None:
    requests = [
        FrameRequest(generator.prompt(text, 0), Sampling(1.0, 60, seed), 50) for seed in range(6) for text in TEXTS
    ]
    assert_as_alone(generator, requests, size)
    lengths = {alone(generator, request).shape[1] for request in requests}
    assert 0 in lengths
    assert len(lengths) > 6


def test_no_rows_are_no_work(generator: Generator) -> None:
    assert list(generator.model.batch([])) == []
    assert generator.speak_batch([]) == []


@pytest.mark.usefixtures("early")
def test_one_says_nothing_and_the_others_go_on(generator: Generator) -> None:
    """Its error stands at its place, with its seed; the others are what `speak` gives."""
    requests = [Request(TEXTS[seed % 7], seed % 4, seed=seed, temperature=1.0) for seed in range(24)]
    spoken = generator.speak_batch(requests, 5)
    silent = 0
    for request, result in zip(requests, spoken, strict=True):
        values = {"seed": request.seed, "temperature": 1.0}
        if isinstance(result, NothingSpokenError):
            silent += 1
            with pytest.raises(NothingSpokenError, match=f"seed {request.seed}\\)"):
                generator.speak(request.text, request.speaker, **values)
            assert f"seed {request.seed})" in result.message
            continue
        one = generator.speak(request.text, request.speaker, **values)
        np.testing.assert_array_equal(result.wave, one.wave)
        assert (result.stop_reason, result.seed) == (one.stop_reason, one.seed)
    assert 0 < silent < len(requests)


def test_what_cannot_be_said_is_told_before_anything_is(generator: Generator) -> None:
    turns = [Segment("word " * 40, 0)] * 2
    for wrong, match in ((Request(" "), "text is empty"), (Request("hello.", context=turns), "leaves no room")):
        with pytest.raises(CsmError, match=match):
            next(iter(generator.speak_each([Request("hello."), wrong])))


def test_csm_tiny_ends_by_itself_in_a_batch(tiny: Generator) -> None:
    requests = [Request(text, 3, seed=seed) for seed, text in enumerate(("please close the window.", "yes.", "go on."))]
    for request, speech in zip(requests, tiny.speak_batch(requests, 2), strict=True):
        one = tiny.speak(request.text, 3, seed=request.seed)
        assert isinstance(speech, Speech)
        np.testing.assert_array_equal(speech.codes, one.codes)
        np.testing.assert_array_equal(speech.wave, one.wave)
        assert speech.stop_reason == "end"


def test_places_are_as_many_as_memory_allows(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from csm.torch import batch

    model: Any = generator.model
    a_row = model.backbone.cache(1, 200).nbytes
    for free, rows in ((1, 1), (4 * 3 * a_row, 3), (10**12, batch.ROWS["cpu"])):
        monkeypatch.setattr(batch, "available_memory", lambda _, free=free: free)
        assert batch.useful_rows(model, 200) == rows


def test_threads_share_a_model(generator: Generator) -> None:
    """Eight threads at once, batches among them, say what each says alone; so do generations that take turns."""
    requests = requests_of(generator, SAMPLINGS[1:])
    wanted = [alone(generator, request) for request in requests]

    def batch(_: int) -> list[np.ndarray]:
        spoken = dict(generator.model.batch(requests, 3))
        return [spoken[number] for number in range(len(requests))]

    with ThreadPoolExecutor(8) as pool:
        batches = pool.map(batch, range(2))
        found = list(pool.map(lambda request: alone(generator, request), requests))
        for each in [found, *batches]:
            for codes, right in zip(each, wanted, strict=True):
                np.testing.assert_array_equal(codes, right)
    turns = [generator.model.frames(r.prompt, r.sampling, r.limit) for r in requests[:2]]
    both = list(zip(*turns, strict=False))
    for number in range(2):
        np.testing.assert_array_equal(np.stack([pair[number] for pair in both], 1), wanted[number][:, : len(both)])


def test_an_interrupted_folder_of_samples_goes_on(tiny: Generator, tmp_path: Path) -> None:
    """What had ended is kept, and not spoken again; the samples are those of `speak`."""
    texts, seeds = ("yes.", "no, thank you.", "hello."), (0, 1)
    with pytest.raises(KeyboardInterrupt):
        speak_samples(tiny, texts, 3, seeds, tmp_path, interrupted_after(2))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.wav")}
    assert len(kept) == 2
    counted: list[int] = []
    samples = speak_samples(tiny, texts, 3, seeds, tmp_path, lambda: counted.append(1))
    assert [(sample.text, sample.seed) for sample in samples] == [(text, seed) for text in texts for seed in seeds]
    assert len(counted) == len(samples) == len(list(tmp_path.glob("*.wav")))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    from csm.audio import read_audio

    for sample in samples:
        assert sample.path
        one = tiny.speak(sample.text, 3, seed=sample.seed)
        np.testing.assert_allclose(read_audio(sample.path)[0], one.wave.clip(-1, 1), atol=2**-15)
        assert sample.stop_reason == one.stop_reason


def interrupted_after(count: int) -> Callable[[], None]:
    """A `progress` that presses Ctrl-C."""
    left = [count]

    def progress() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return progress
