"""From turns to frames: the one place that knows how text and audio are laid out in rows.

A frame is K + 1 integers: K codes and a text id. A text row has its mask on the last column alone, an audio row on the
first K. A turn is its text rows (`[speaker]text` between BOS and EOS), its audio rows, and one row of K zeros that says
"the end". Source: Sesame's generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

END_CODE = 0


@dataclass(frozen=True)
class Frames:
    """Rows of a prompt or an example: `frames` `(T, K + 1)` int32 and `mask` `(T, K + 1)` bool."""

    frames: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def audio_rows(self) -> np.ndarray:
        """(T,) bool: the rows that are audio, ends included."""
        return self.mask[:, 0]


def text_rows(ids: np.ndarray, codebooks: int) -> Frames:
    """ids (L,) -> L rows."""
    frames = np.zeros((len(ids), codebooks + 1), np.int32)
    mask = np.zeros((len(ids), codebooks + 1), bool)
    frames[:, -1], mask[:, -1] = ids, True
    return Frames(frames, mask)


def audio_rows(codes: np.ndarray, end: bool = True) -> Frames:
    """codes (K, T) -> T rows, and the end row after them unless `end` is false."""
    codebooks, length = codes.shape
    frames = np.zeros((length + end, codebooks + 1), np.int32)
    frames[:length, :-1] = codes.T
    frames[length:, :-1] = END_CODE
    mask = np.zeros_like(frames, bool)
    mask[:, :-1] = True
    return Frames(frames, mask)


def join(parts: Sequence[Frames]) -> Frames:
    """The rows of `parts`, one after the other."""
    return Frames(np.concatenate([p.frames for p in parts]), np.concatenate([p.mask for p in parts]))


def turn(ids: np.ndarray, codes: np.ndarray | None, codebooks: int, end: bool = True) -> Frames:
    """One turn: text ids (L,) and codes (K, T), or the text alone where there is no sound; `end` as in `audio_rows`."""
    text = text_rows(ids, codebooks)
    return text if codes is None else join([text, audio_rows(codes, end)])


def is_end(codes: np.ndarray) -> bool:
    """Whether the frame `codes` (K,) says the end: all but the last are 0 (transformers' rule)."""
    return bool((codes[:-1] == END_CODE).all())
