"""Generator: from text and context to sound, with one model and its codec.

`load_csm_1b` and `Generator.generate` are the documented faces (Sesame's own names); `load_generator` and `speak` say more.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csm.audio import load_wave, normalise_loudness, trim
from csm.backend import Backend, FrameRequest, Sampling, choose_backend
from csm.errors import CsmError
from csm.frames import Frames, join, text_rows, turn
from csm.model_folder import ModelFolder, open_folder
from csm.segment import Segment, checked_segment, checked_turns
from csm.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import torch

MAX_AUDIO_MS = 90_000
SLOWEST_CHARACTERS_PER_SECOND = 7.0
BUDGET_SECONDS = 2.0


class NothingSpokenError(CsmError):
    """The model's first frame was the end."""


@dataclass(frozen=True)
class Speech:
    """What was spoken.

    Attributes:
        wave: float32 `(samples,)`.
        sample_rate: Hz.
        codes: `(K, T)` int64, without the end frame.
        stop_reason: "end" where the model stopped by itself, "length" where the budget did.
        seed: repeats it.
        unread: characters of the text that the model's tokenizer does not know.
    """

    wave: np.ndarray
    sample_rate: int
    codes: np.ndarray
    stop_reason: str
    seed: int
    unread: str = ""

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate


@dataclass(frozen=True)
class Request:
    """One thing to say of several; the arguments of `Generator.speak`."""

    text: str
    speaker: int = 0
    context: Sequence[Segment] = ()
    temperature: float | None = None
    top_k: int | None = None
    seed: int | None = None
    max_audio_length_ms: float | None = None


class Generator:
    """A model folder made ready to speak; made by `load_generator`.

    Args:
        folder: a checked model folder.
        backend: where it runs.
        own: `temperature` and `top_k` in place of the folder's.
    """

    def __init__(self, folder: ModelFolder, backend: Backend, own: Mapping[str, Any] | None = None):
        self.folder, self.backend, self.own = folder, backend, own or {}
        self.tokenizer = TextTokenizer(folder.beside)
        self.model = backend.frame_generator(folder)
        self.codec = backend.codec(folder)

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    def speak(
        self,
        text: str,
        speaker: int = 0,
        *,
        context: Sequence[Segment] = (),
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        max_audio_length_ms: float | None = None,
    ) -> Speech:
        """Say `text` as `speaker`, after the turns of `context`.

        Args:
            text: what to say.
            speaker: the number written before the text.
            context: earlier turns, their audio included where they have any.
            temperature: 0 is greedy; None takes the model folder's value, else 0.9.
            top_k: None takes the model folder's value, else 50.
            seed: None draws one; it is in the result.
            max_audio_length_ms: at most this much sound; None takes a budget from the text's length.

        Raises:
            CsmError: the text is empty or unreadable, the prompt leaves no room, or nothing was spoken.
        """
        request = Request(text, speaker, context, temperature, top_k, seed, max_audio_length_ms)
        return self._speak(text, self._asked(request))

    def speak_batch(self, requests: Sequence[Request], size: int | None = None) -> list[Speech | NothingSpokenError]:
        """Say several things side by side, each as `speak` says it alone with the same seed; see `speak_each`."""
        spoken = dict(self.speak_each(requests, size))
        return [spoken[number] for number in range(len(requests))]

    def speak_each(
        self, requests: Sequence[Request], size: int | None = None
    ) -> Iterator[tuple[int, Speech | NothingSpokenError]]:
        """As `speak_batch`: each request's number and what came of it, as soon as it has ended.

        Args:
            requests: what to say; where nothing was spoken the error is given, and the others go on.
            size: how many are spoken at a time; None takes what pays on the device and fits its memory.

        Raises:
            CsmError: as `speak`, for the first request that cannot be; before anything is said.
        """
        asked = [self._asked(request) for request in requests]
        for number, codes in self.model.batch(asked, size):
            try:
                yield number, self._speech(requests[number].text, asked[number], codes)
            except NothingSpokenError as nothing:
                yield number, nothing

    def _asked(self, request: Request) -> FrameRequest:
        """What the model is asked for: prompt, sampling, limit."""
        _check_numbers(seed=(request.seed, Integral), max_audio_length_ms=(request.max_audio_length_ms, Real))
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        sampling = replace(self.sampling(request.temperature, request.top_k), seed=seed)
        prompt = self.prompt(request.text, request.speaker, request.context)
        return self._limited(request.text, prompt, sampling, request.max_audio_length_ms)

    def _limited(self, text: str, prompt: Frames, sampling: Sampling, max_ms: float | None) -> FrameRequest:
        unread = self.tokenizer.unknown_characters(text)
        if text.strip() and not set(text) - set(unread) - set(string.whitespace + string.punctuation):
            raise CsmError(f"this model can read nothing of the text {text!r}.", "Write numbers as words.")
        return FrameRequest(prompt, sampling, self._frame_limit(text, max_ms, len(prompt)))

    def _speak(self, text: str, asked: FrameRequest) -> Speech:
        frames = list(self.model.frames(asked.prompt, asked.sampling, asked.limit))
        return self._speech(text, asked, np.stack(frames, axis=1) if frames else np.zeros((0, 0), np.int64))

    def _speech(self, text: str, asked: FrameRequest, codes: np.ndarray) -> Speech:
        """The codes as sound. Raises NothingSpokenError where there are none."""
        if codes.shape[1] == 0:
            raise NothingSpokenError(
                f"the model ended before it said anything (seed {asked.sampling.seed}).",
                "Try another --seed, or a longer text.",
            )
        stop, unread = "length" if codes.shape[1] == asked.limit else "end", self.tokenizer.unknown_characters(text)
        return Speech(self.codec.decode(codes), self.sample_rate, codes, stop, asked.sampling.seed, unread)

    def generate(
        self,
        text: str,
        speaker: int,
        context: Sequence[Segment] = (),
        max_audio_length_ms: float = MAX_AUDIO_MS,
        temperature: float = 0.9,
        topk: int = 50,
    ) -> torch.Tensor:
        """Sesame's call: the sound as a 1-D float32 tensor at `sample_rate`. Raises as `speak`."""
        import torch

        _check_numbers(max_audio_length_ms=(max_audio_length_ms, Real))
        prompt = self.prompt(text, speaker, context)
        most = (self.model.capacity - len(prompt)) * self._frame_ms
        sampling = replace(self.sampling(temperature, topk), seed=secrets.randbelow(2**31))
        asked = self._limited(text, prompt, sampling, min(max_audio_length_ms, max(most, self._frame_ms)))
        return torch.from_numpy(self._speak(text, asked).wave)

    def sampling(self, temperature: float | None = None, top_k: int | None = None) -> Sampling:
        """Given values, else the model folder's, else 0.9 and 50.

        Raises:
            CsmError: a value is negative or no number.
        """
        _check_numbers(temperature=(temperature, Real), top_k=(top_k, Integral))
        own = {**self.folder.sampling, **self.own}
        temperature = float(own.get("temperature", 0.9)) if temperature is None else temperature
        top_k = int(own.get("top_k", 50)) if top_k is None else top_k
        if not 0 <= temperature <= 100 or top_k < 0:
            raise CsmError(f"temperature {temperature:g} or top-k {top_k} cannot be: from 0 to 100, and from 0 on.")
        return Sampling(temperature, 0 if top_k >= self.folder.config.spoken_codes else top_k)

    def prompt(self, text: str, speaker: int, context: Sequence[Segment] = ()) -> Frames:
        """The rows that the model reads: the turns of `context`, then the text."""
        checked_segment(Segment(text, speaker), "what is to be said")
        context, codebooks = checked_turns(context, "context"), self.folder.config.num_codebooks
        turns = [turn(self.tokenizer.encode(s.text, s.speaker), self._codes(s), codebooks) for s in context]
        return join([*turns, text_rows(self.tokenizer.encode(text, speaker), codebooks)])

    @property
    def _frame_ms(self) -> float:
        return 1000 / self.codec.frame_rate

    def _frame_limit(self, text: str, max_ms: float | None, prompt_rows: int) -> int:
        room = self.model.capacity - prompt_rows
        if max_ms is None:
            seconds = BUDGET_SECONDS + len(text) / SLOWEST_CHARACTERS_PER_SECOND
            max_ms = min(MAX_AUDIO_MS, 1000 * seconds)
        limit = int(max_ms / self._frame_ms) if 0 < max_ms <= MAX_AUDIO_MS else 0
        if limit < 1:
            raise CsmError(
                f"a length of {max_ms:g} ms cannot be: it goes from {self._frame_ms:g} (one frame) to {MAX_AUDIO_MS}."
            )
        if limit > room:
            raise CsmError(
                f"the prompt takes {prompt_rows} of the model's {self.model.capacity} rows and leaves no room for "
                f"{limit} frames of sound.",
                "Give less context, a shorter text, or a lower --max-audio-length-ms.",
            )
        return limit

    def _codes(self, segment: Segment) -> np.ndarray | None:
        """A turn's codes (K, T) from codes, a wave or a file; None for a turn of text alone."""
        audio: Any = segment.audio
        if audio is None:
            return None
        if isinstance(audio, str | Path):
            wave = trim(load_wave(Path(audio).expanduser(), self.sample_rate), self.sample_rate)
            if len(wave) == 0:
                raise CsmError(f"{audio} is silent: it cannot be a turn of the context.")
            return self.codec.encode(normalise_loudness(wave, self.sample_rate))  # as training clips are
        array = np.asarray(audio.detach().cpu() if hasattr(audio, "detach") else audio)
        if array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
            if problem := self.folder.config.code_problem(array):
                raise CsmError(f"a segment {problem}.")
            return array.astype(np.int64)
        if array.ndim != 1 or len(array) == 0:
            raise CsmError(f"a segment's audio has shape {array.shape}; it is (samples,) or integer codes (K, T).")
        return self.codec.encode(array.astype(np.float32))


def _check_numbers(**given: tuple[Any, type]) -> None:
    for name, (value, kind) in given.items():
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise CsmError(f"{name} is {value!r:.60}; it is a {'whole ' if kind is Integral else ''}number.")


def load_generator(
    model: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    base: str | Path | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Generator:
    """A generator of a model folder, a run (its best checkpoint), `csm-tiny`, or a weights file with what it needs
    beside it or in the model folder `base`; `sampling` holds a `temperature` or `top_k` in place of the model folder's.

    Raises:
        CsmError: the folder is missing, broken or does not fit its config; the device is not there.
    """
    folder = open_folder(model, base)
    return Generator(folder, choose_backend(folder, device, dtype, threads), sampling)


def load_csm_1b(model_path: str | Path = "sesame/csm-1b", device: str = "auto") -> Generator:
    """The documented loader: any model folder, run or hub id, on a device."""
    return load_generator(model_path, device)
