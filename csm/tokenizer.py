"""Text to ids, by the `tokenizer.json` of the model folder, which adds BOS and EOS itself."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from csm.errors import CsmError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 4096  # texts that are tokenised at a time


class TextTokenizer:
    """The tokenizer of a model folder.

    Raises:
        CsmError: `tokenizer.json` is missing or broken.
    """

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CsmError(f"{path} is not there.", "A model folder holds its tokenizer; copy it from the base model.")
        self._path = path
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            raise CsmError(f"{path} cannot be read as a tokenizer ({error}).") from None

    def encode(self, text: str, speaker: int) -> np.ndarray:
        """The ids of `[speaker]text`, BOS and EOS included, `(L,)` int64.

        Raises:
            CsmError: the text is empty, or the tokenizer has no symbol for this speaker number.
        """
        self._check_speaker(speaker)
        return np.array(self._tokenizer.encode(_prompt(text, speaker)).ids, np.int64)

    def lengths(self, texts: Iterable[str], speakers: np.ndarray) -> np.ndarray:
        """How many ids `encode` gives for each text and speaker, `(N,)` int32. Raises as `encode`."""
        for speaker in np.unique(speakers).tolist():
            self._check_speaker(speaker)
        prompts = map(_prompt, texts, speakers.tolist())
        found = np.empty(len(speakers), np.int32)
        for start in range(0, len(speakers), CHUNK):
            encoded = self._tokenizer.encode_batch(list(itertools.islice(prompts, CHUNK)))
            found[start : start + CHUNK] = [len(one.ids) for one in encoded]
        return found

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the tokenizer's file."""
        return hashlib.sha256(self._path.read_bytes()).hexdigest()

    def require_speakers(self, speakers: Iterable[int]) -> None:
        """Raises CsmError where there is no symbol for one of these numbers."""
        for speaker in sorted(set(speakers)):
            self._check_speaker(speaker)

    def _check_speaker(self, speaker: int) -> None:
        unknown = self._unknown_id()
        if unknown is not None and unknown in self._tokenizer.encode(f"[{speaker}]").ids:
            raise CsmError(f"this model has no symbol for speaker {speaker}.", self._known_speakers())

    def unknown_characters(self, text: str) -> str:
        """The characters of `text` that the model cannot read or that are dropped, each once; empty where it reads all."""
        unknown = self._unknown_id()
        nothing = [self._tokenizer.encode(blank).ids for blank in ("", " ")]

        def is_read(character: str) -> bool:
            ids = self._tokenizer.encode(character).ids
            return ids not in nothing and unknown not in ids

        return "".join(c for c in dict.fromkeys(text) if not c.isspace() and not is_read(c))

    def _unknown_id(self) -> int | None:
        return next(
            (self._tokenizer.token_to_id(t) for t in ("<unk>", "[UNK]") if self._tokenizer.token_to_id(t)), None
        )

    def _known_speakers(self) -> str:
        known = [n for n in range(256) if self._tokenizer.token_to_id(f"[{n}]") is not None]
        return f"It knows {known[0]} to {known[-1]}." if known else ""


def _prompt(text: str, speaker: int) -> str:
    if not text.strip():
        raise CsmError("the text is empty.")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise CsmError("the text holds bytes that are no text.", "Write it as UTF-8.")
    return f"[{speaker}]{text.strip()}"
