"""Audio codes, cached by content: a clip is decoded, prepared and encoded once, whatever it is called later."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from csm.data.ahead import ahead
from csm.data.clips import SETTINGS, load_sound, text_fault
from csm.data.faults import Fault, of_row, render, require_usable
from csm.data.row import Row
from csm.data.shards import CodeShards
from csm.data.turns import CodedTurn, Turns
from csm.errors import CsmError

if TYPE_CHECKING:  # it imports torch
    from csm.codec import Codec


@dataclass(frozen=True)
class Tokenised:
    """The conversations that are left to train on, what was left out, and the frames a second of the codes.

    `folder` is the folder of codes that all was read from, None where sound files were named.
    """

    conversations: Sequence[Sequence[CodedTurn]]
    faults: list[Fault]
    frame_rate: float
    folder: Path | None = None

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


@dataclass(frozen=True)
class Prepared:
    """A clip on its way: the key of its codes, and its wave, None where the codes are there already."""

    key: bytes
    wave: np.ndarray | None


class CodeCache:
    """Codes on disk under the hash of the sound file, of what is done to it, and of the codec.

    Processes may share a folder; see `csm.data.shards`. Codes that cannot be right count as absent.
    """

    def __init__(self, folder: str | Path, codec: Codec):
        self.folder = Path(folder)
        self.codec = codec
        self.shards = CodeShards(self.folder)
        self._salt = json.dumps([SETTINGS, codec.sample_rate, codec.fingerprint]).encode()
        self._digest_of_long = lru_cache(16)(_file_digest)

    def codes_of(self, row: Row) -> np.ndarray | Fault:
        """The row's codes `(K, T)` int64, or what is wrong with its sound or its text. Lets go of the shard."""
        try:
            place = self.place_of(row, self.prepare(row))
        finally:
            self.close()
        return place if isinstance(place, Fault) else self.read(place)

    def prepare(self, row: Row) -> Prepared | Fault:
        """Read and level the row's sound, unless its codes are there; in any thread.

        Sounds with a fault are not cached.
        """
        try:
            key = self._key(row)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            return Fault(row.audio, "is not there" if missing else f"cannot be read ({error.strerror})")
        if self.shards.find(key) is not None:
            return Prepared(key, None)
        wave = self._load(row)
        return wave if isinstance(wave, Fault) else Prepared(key, wave)

    def place_of(self, row: Row, prepared: Prepared | Fault) -> int | Fault:
        """Where the row's codes are, encoded where they were not there.

        The text is held against the number of frames, cached or new, so that the same data gets the same verdict.
        """
        if isinstance(prepared, Fault):
            return prepared
        place = self.shards.find(prepared.key)
        if place is None:
            wave = prepared.wave if prepared.wave is not None else self._load(row)
            if isinstance(wave, Fault):
                return wave
            codes = np.asarray(self.codec.encode(wave))
            assert len(codes) == self.codec.codebooks, codes.shape
            place = self.shards.add(prepared.key, codes)
        frames = int(self.shards.entry(place)["frames"])
        return text_fault(row, frames / self.codec.frame_rate) or place

    def read(self, place: int) -> np.ndarray:
        """The codes `(K, T)` int64 at a place. Raises CsmError where they are damaged."""
        codes = self.shards.read(place)
        if codes is None:
            raise CsmError(f"codes in {self.folder} are damaged.", "Run the same command again: it encodes them anew.")
        return codes

    def _load(self, row: Row) -> np.ndarray | Fault:
        return load_sound(row.audio, self.codec.sample_rate, True, row.start, row.end)

    def close(self) -> None:
        """Let other processes write to this one's shard."""
        self.shards.close()

    def _key(self, row: Row) -> bytes:
        if row.start is None and row.end is None:
            return hashlib.sha256(self._salt + _file_digest(row.audio)).digest()
        stat = row.audio.stat()  # a long recording has many parts
        digest = self._digest_of_long(row.audio, stat.st_mtime_ns, stat.st_size)
        return hashlib.sha256(self._salt + digest + json.dumps([row.start, row.end]).encode()).digest()


def _file_digest(path: Path, *_: int) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


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
    threads: int = 0,
    needed: bool = True,
) -> Tokenised:
    """Encode every turn, leave out those with a fault, and conversations of which nothing is left.

    Args:
        conversations: rows, in order.
        cache: gives the codes, which stay there until they are asked for.
        progress: called with (turns done, turns in all) after each.
        faults: what was found wrong before, while the layout was read: joined with what is found here.
        strict: any fault is an error.
        threads: that read and level sounds ahead of the encoder; with 0 they are read when their turn comes.
        needed: whether it is an error that nothing usable is left.

    Raises:
        CsmError: nothing usable is left, or `strict` and there is a fault.
    """
    found: dict[Fault, list[str]] = {fault: [] for fault in faults}
    first: dict[Fault, Row] = {}
    sizes, rows, places = np.zeros(len(conversations), np.int64), list[Row](), array("Q")
    total = sum(len(conversation) for conversation in conversations)
    turns = ((c, i, row) for c, conversation in enumerate(conversations) for i, row in enumerate(conversation, 1))
    try:
        clips = ahead(turns, lambda turn: cache.prepare(turn[2]), threads)
        for done, ((conversation, number, row), clip) in enumerate(clips, 1):
            place = cache.place_of(row, clip)
            if isinstance(place, Fault):
                first.setdefault(place, row)
                found.setdefault(place, []).extend(_place(row, number, len(conversations[conversation])))
            else:
                sizes[conversation] += 1
                rows.append(row)
                places.append(place)
            if progress:
                progress(done, total)
    finally:
        cache.close()
    placed = ((of_row(fault, first[fault]) if fault in first else fault, where) for fault, where in found.items())
    told = [_with_places(fault, where) for fault, where in placed]
    require_usable(len(rows) or not needed, told, strict)
    return Tokenised(_turns(sizes[sizes > 0], rows, places, cache), told, cache.codec.frame_rate)


def _turns(sizes: np.ndarray, rows: list[Row], places: array[int], cache: CodeCache) -> Turns:
    shapes, sounds = np.empty((len(places), 2), np.int64), np.empty(len(places), np.uint64)
    for i, place in enumerate(places):
        entry = cache.shards.entry(place)
        shapes[i], sounds[i] = (entry["codebooks"], entry["frames"]), entry["sound"]
    return Turns.of_rows(sizes, rows, shapes, sounds, lambda i: cache.read(places[i]), np.array(places, np.uint64))


def _place(row: Row, number: int, turns: int) -> list[str]:
    """Where a dialogue goes on without this turn: its later turns lose it as context."""
    if turns == 1:
        return []
    return [f"turn {number} of {turns} in {row.source}" + (f", line {row.line}" if row.line is not None else "")]


def _with_places(fault: Fault, places: list[str]) -> Fault:
    return replace(fault, message=f"{fault.message}; left out: {', '.join(places)}") if places else fault


def summary(tokenised: Tokenised) -> str:
    """What is used, in one line: conversations where they have several turns, clips, minutes, speakers, weights, skipped."""
    clips, speakers, weights = len(tokenised.turns.frames), tokenised.speakers, tokenised.turns.weights
    named = ", ".join(map(str, speakers[:8])) + (f" ... ({len(speakers)} in all)" if len(speakers) > 8 else "")
    parts = [_count(clips, "clip"), f"{tokenised.minutes():.1f} minutes", f"speaker{'s' * (len(speakers) > 1)} {named}"]
    if weights is not None:
        parts.append(f"weights {weights.min():g} to {weights.max():g}")
    if len(tokenised.conversations) < clips:
        parts.insert(0, _count(len(tokenised.conversations), "conversation"))
    skipped = len(render(tokenised.faults).splitlines())
    return f"{', '.join(parts)}; {skipped} skipped"


def data_fingerprint(conversations: Sequence[Sequence[CodedTurn]]) -> str:
    """A hash of names, texts, speakers, weights and codes, in their order and grouping, wherever the files lie."""
    turns = Turns.of(conversations)
    digest = hashlib.sha256(np.asarray(turns.starts, "<i8").tobytes())
    digest.update(turns.identities.tobytes())
    return digest.hexdigest()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
