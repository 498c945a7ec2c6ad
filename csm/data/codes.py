"""Audio codes, cached by content: a clip is decoded, prepared and encoded once, whatever it is called later."""

from __future__ import annotations

import hashlib
import io
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from csm.data.clips import SETTINGS, load_sound, text_fault
from csm.data.faults import Fault, render, require_usable
from csm.data.row import Row
from csm.data.turns import CodedTurn, Turns

if TYPE_CHECKING:  # it imports torch
    from csm.codec import Codec


@dataclass(frozen=True)
class Tokenised:
    """The conversations that are left to train on, what was left out, and the frames a second of the codes."""

    conversations: Sequence[Sequence[CodedTurn]]
    faults: list[Fault]
    frame_rate: float

    @cached_property
    def turns(self) -> Turns:
        """The conversations as columns."""
        return Turns.of(self.conversations)

    @property
    def speakers(self) -> list[int]:
        return np.unique(self.turns.speakers).tolist()

    def minutes(self, of: np.ndarray | None = None) -> float:
        """Minutes of all turns, or of those that a mask `(N,)` names."""
        frames = self.turns.frames if of is None else self.turns.frames[of]
        return int(frames.sum(dtype=np.int64)) / self.frame_rate / 60


class CodeCache:
    """Codes on disk under the hash of the sound file, of what is done to it, and of the codec.

    Processes may share a folder: entries appear whole. An entry that cannot be right counts as absent.
    """

    def __init__(self, folder: str | Path, codec: Codec):
        self.folder = Path(folder)
        self.codec = codec
        self._salt = json.dumps([SETTINGS, codec.sample_rate, codec.fingerprint]).encode()

    def codes_of(self, row: Row) -> np.ndarray | Fault:
        """The row's codes `(K, T)` int64, or what is wrong with its sound or its text.

        Sounds with a fault are not cached. The text is held against the number of frames, cached or new, so that the
        same data gets the same verdict either way.
        """
        try:
            entry = self._entry(row)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            return Fault(row.audio, "is not there" if missing else f"cannot be read ({error.strerror})")
        codes = read_entry(entry, self.codec.codebooks)
        if codes is None:
            wave = load_sound(row.audio, self.codec.sample_rate, True, row.start, row.end)
            if isinstance(wave, Fault):
                return wave
            codes = np.asarray(self.codec.encode(wave)).astype(np.int64)
            assert len(codes) == self.codec.codebooks, codes.shape
            write_entry(entry, codes)
        return text_fault(row, codes.shape[1] / self.codec.frame_rate) or codes

    def _entry(self, row: Row) -> Path:
        part = json.dumps([row.start, row.end]).encode() if (row.start, row.end) != (None, None) else b""
        with open(row.audio, "rb") as file:
            key = hashlib.file_digest(file, lambda: hashlib.sha256(self._salt + part)).hexdigest()
        return self.folder / key[:2] / f"{key}.npy"


def read_entry(path: Path, codebooks: int) -> np.ndarray | None:
    """The codes `(codebooks, T)` int64 in a cache entry; None if it is absent, damaged or of another shape."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    body, checksum = data[:-4], data[-4:]
    if zlib.crc32(body).to_bytes(4, "little") != checksum:
        return None
    try:
        codes = np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    if codes.ndim != 2 or codes.shape[0] != codebooks or codes.size == 0 or codes.dtype.kind not in "iu":
        return None
    return codes.astype(np.int64)


def write_entry(path: Path, codes: np.ndarray) -> None:
    """Write codes as .npy in the smallest type that holds them, four bytes of CRC-32 after it, and swap it in.

    It is not synced: what a power cut leaves fails the checksum, and is encoded again.
    """
    kinds = (np.int16, np.uint16, np.int32, np.int64)
    kind = next(kind for kind in kinds if np.iinfo(kind).min <= codes.min() and codes.max() <= np.iinfo(kind).max)
    body = io.BytesIO()
    np.save(body, codes.astype(kind), allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        beside.write_bytes(body.getvalue() + zlib.crc32(body.getvalue()).to_bytes(4, "little"))
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def default_cache_folder() -> Path:
    """Where codes are kept unless a command says otherwise: the user's cache folder."""
    return platformdirs.user_cache_path("csm") / "codes"


def tokenise(
    conversations: Sequence[Sequence[Row]],
    cache: CodeCache,
    progress: Callable[[int, int], None] | None = None,
    *,
    faults: Iterable[Fault] = (),
    strict: bool = False,
) -> Tokenised:
    """Encode every turn, leave out those with a fault, and conversations of which nothing is left.

    Args:
        conversations: rows, in order.
        cache: gives the codes.
        progress: called with (turns done, turns in all) after each.
        faults: what was found wrong before, while the layout was read: joined with what is found here.
        strict: any fault is an error.

    Raises:
        CsmError: nothing usable is left, or `strict` and there is a fault.
    """
    found: dict[Fault, list[str]] = {fault: [] for fault in faults}
    kept: list[list[CodedTurn]] = []
    done, total = 0, sum(len(conversation) for conversation in conversations)
    for conversation in conversations:
        turns = []
        for number, row in enumerate(conversation, 1):
            codes = cache.codes_of(row)
            if isinstance(codes, Fault):
                found.setdefault(codes, []).extend(_place(row, number, len(conversation)))
            else:
                turns.append(CodedTurn(row, codes))
            done += 1
            if progress:
                progress(done, total)
        if turns:
            kept.append(turns)
    told = [_with_places(fault, places) for fault, places in found.items()]
    require_usable(len(kept), told, strict)
    return Tokenised(kept, told, cache.codec.frame_rate)


def _place(row: Row, number: int, turns: int) -> list[str]:
    """Where a dialogue goes on without this turn: its later turns lose it as context."""
    if turns == 1:
        return []
    return [f"turn {number} of {turns} in {row.source}" + (f", line {row.line}" if row.line is not None else "")]


def _with_places(fault: Fault, places: list[str]) -> Fault:
    return replace(fault, message=f"{fault.message}; left out: {', '.join(places)}") if places else fault


def summary(tokenised: Tokenised) -> str:
    """What is used, in one line: conversations where they have several turns, clips, minutes, speakers, skipped."""
    clips, speakers = len(tokenised.turns.frames), tokenised.speakers
    named = ", ".join(map(str, speakers[:8])) + (f" ... ({len(speakers)} in all)" if len(speakers) > 8 else "")
    parts = [_count(clips, "clip"), f"{tokenised.minutes():.1f} minutes", f"speaker{'s' * (len(speakers) > 1)} {named}"]
    if len(tokenised.conversations) < clips:
        parts.insert(0, _count(len(tokenised.conversations), "conversation"))
    skipped = len(render(tokenised.faults).splitlines())
    return f"{', '.join(parts)}; {skipped} skipped"


def data_fingerprint(conversations: Sequence[Sequence[CodedTurn]]) -> str:
    """A hash of names, texts, speakers and codes, in their order and grouping, wherever the files lie."""
    turns = Turns.of(conversations)
    digest = hashlib.sha256(np.asarray(turns.starts, "<i8").tobytes())
    digest.update(turns.identities.tobytes())
    return digest.hexdigest()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
