"""Where each word of a known text lies in its sound: forced alignment by pocketsphinx, in a process of its own.

English only: the acoustic model and the dictionary are those in pocketsphinx's wheel. Numbers are read as
`evaluation.spelling` writes them; a word outside the dictionary is sounded out by rule, which places it well enough for its
neighbours' sake. Ends of words come out 0.05 to 0.2 s early or late. The decoder can abort its process, so it has one.
Source of the way of use: pocketsphinx's two-pass alignment (word, then state).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import TracebackType
from typing import Any

import numpy as np

from csm.audio import resample
from csm.errors import CsmError

RATE = 16_000
LONGEST_SECONDS = 1200.0  # one utterance's search holds every frame in memory
_INSTALL = "Run: pip install 'csm-finetune[align]'"


def require_language(language: str) -> None:
    """Refuse a language that the aligner does not know.

    Raises:
        CsmError: it is not English.
    """
    if language.lower().replace("_", "-").split("-")[0] != "en":
        raise CsmError(
            f"--align knows English words only, and the data's language is {language!r}.",
            "Align with Montreal Forced Aligner, which has models for many languages, and give its --alignment-dir.",
        )


class PhoneAligner:
    """Finds the words of texts in their sounds; a context manager, which ends the process behind it.

    Raises:
        CsmError: pocketsphinx is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("pocketsphinx") is None:
            raise CsmError("--align needs pocketsphinx, which is not installed.", _INSTALL)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PhoneAligner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def __call__(self, wave: np.ndarray, rate: int, text: str, language: str) -> list[tuple[str, float, float]] | str:
        """The words of `text` as it writes them, each with its start and end in seconds of the wave `(samples,)`.

        Returns:
            the words, or why the text could not be found in the sound.
        """
        require_language(language)
        if len(wave) > LONGEST_SECONDS * rate:
            return f"it lasts {len(wave) / rate:.0f} s, and the aligner takes {LONGEST_SECONDS:.0f}"
        samples = np.clip(resample(np.asarray(wave, np.float32), rate, RATE) * 32767, -32768, 32767).astype("<i2")
        words = text.split()
        answer = self._ask({"words": words, "samples": len(samples)}, samples.tobytes())
        if isinstance(answer, str):
            return answer
        return [(word, start, end) for word, (start, end) in zip(words, answer, strict=True)]

    def _ask(self, question: dict[str, Any], samples: bytes) -> list[tuple[float, float]] | str:
        if self._process is None:
            command = [sys.executable, "-m", "evaluation.alignment_process"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n" + samples)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self._end()
            return "the aligner broke off over it"
        answer = json.loads(line)
        return answer["problem"] if "problem" in answer else [tuple(span) for span in answer["spans"]]

    def _end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None
