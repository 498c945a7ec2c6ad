"""A folder of codes that a run can be trained from alone: shards, and a file of its rows, `rows`.

`rows` is mapped: 8 bytes that say how long the head is, the head (JSON), 88 bytes a turn (`ROW`), then each turn's row as a
line of JSON. Where processes share the work each writes `rows-2-of-8`; the last to end joins them.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from csm.data.clips import SETTINGS
from csm.data.row import Row
from csm.data.shards import CodeShards
from csm.data.turns import Turns, file_of, identity_of, name_of, starts_of, weights_of
from csm.errors import CsmError

ROWS, SCHEMA = "rows", 1
ROW = np.dtype(
    [("place", "<u8"), ("sound", "<u8"), ("name", "<u8"), ("file", "<u4"), ("identity", "u1", 16), ("line_at", "<u8"),
     ("speaker", "<i8"), ("conversation", "<u4"), ("frames", "<u4"), ("text_rows", "<u4"), ("line_size", "<u4"),
     ("codebooks", "<u4"), ("weight", "<f4"), ("spare", "<u4")]
)  # fmt: skip
PACKED = struct.Struct("<QQQI16sQqIIIIIf4x")
assert PACKED.size == ROW.itemsize
FIELDS = ("name", "text", "speaker", "line", "start", "end", "language", "weight")


@dataclass(frozen=True)
class Part:
    """Which part of the work: number `number`, from 0, of `count`."""

    number: int = 0
    count: int = 1

    def of(self, conversations: int) -> range:
        """The conversations of this part."""
        return range(self.number * conversations // self.count, (self.number + 1) * conversations // self.count)

    @property
    def file(self) -> str:
        return ROWS if self.count == 1 else f"{ROWS}-{self.number}-of-{self.count}"


@dataclass(frozen=True)
class Head:
    """What `rows` says of itself.

    Attributes:
        data: a hash of the rows of all parts, as their layout gave them.
        codec, settings, sample_rate, frame_rate, codebooks: what made the codes.
        tokenizer: fingerprint of the tokenizer that the text's ids were counted with.
        turns: rows in this file.
        conversations: in this file.
        check: CRC-32 of all after the head.
    """

    data: str
    codec: str
    settings: str
    sample_rate: int
    frame_rate: float
    codebooks: int
    tokenizer: str
    turns: int = 0
    conversations: int = 0
    check: int = 0
    schema_version: int = SCHEMA


def is_codes_folder(path: Path) -> bool:
    """Whether a folder is one that `tokenize` has finished or begun."""
    return (path / ROWS).is_file() or next(path.glob(f"{ROWS}-*-of-*"), None) is not None


def data_digest(conversations: Sequence[Sequence[Row]]) -> str:
    """A hash of rows as a layout gives them, so that parts of other data are not joined."""
    digest = hashlib.sha256()
    for conversation in conversations:
        digest.update(b"[" + b",".join(_line(row) for row in conversation))
    return digest.hexdigest()


def write_rows(
    folder: Path, part: Part, head: Head, turns: Iterable[tuple[int, Row, int, np.ndarray | np.void, int]]
) -> bool:
    """Write a part's rows, and join all parts where it is the last; whether the folder is complete now.

    Args:
        turns: of each the number of its conversation in this part, its row, the place of its codes, their entry
            (`csm.data.shards.ENTRY`), and the number of ids of its text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{ROWS}.lock"):
        with tempfile.TemporaryFile(dir=folder) as index, tempfile.TemporaryFile(dir=folder) as lines:
            count, last, at = 0, -1, 0
            for conversation, row, place, entry, text_rows in turns:
                line, frames, codebooks = _line(row) + b"\n", int(entry["frames"]), int(entry["codebooks"])
                sound = int(entry["sound"])
                record = PACKED.pack(
                    place, sound, name_of(row.name), file_of(row.audio), identity_of(row, (codebooks, frames), sound),
                    at, row.speaker, conversation, frames, text_rows, len(line), codebooks, row.weight,
                )  # fmt: skip
                index.write(record)
                lines.write(line)
                at, count, last = at + len(line), count + 1, conversation
            _assemble(
                folder / part.file, Head(**{**vars(head), "turns": count, "conversations": last + 1}), index, lines
            )
        if part.count == 1:
            _drop_parts(folder)
            return True
        return _join(folder, part.count, head)


def _line(row: Row) -> bytes:
    values = {key: getattr(row, key) for key in FIELDS}
    files = {"audio": _absolute(row.audio), "source": _absolute(row.source)}
    return json.dumps({**values, **files}, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _absolute(path: Path) -> str:
    text = str(path)
    return text if text.startswith("/") else os.path.abspath(text)


def _assemble(path: Path, head: Head, index: IO[bytes], lines: IO[bytes]) -> None:
    """Head, index and lines in one file, beside it first."""
    check = 0
    for part in (index, lines):
        part.seek(0)
        for data in iter(lambda part=part: part.read(1 << 20), b""):  # type: ignore[misc]
            check = zlib.crc32(data, check)
    text = json.dumps({**vars(head), "check": check}).encode()
    text += b" " * (-(len(text) + 8) % 64)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for part in (index, lines):
                part.seek(0)
                shutil.copyfileobj(part, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def _join(folder: Path, count: int, head: Head) -> bool:
    """Join the parts of `count` into `rows` where all of this data are there; the lock is held."""
    files = [folder / Part(number, count).file for number in range(count)]
    if not all(file.is_file() for file in files):
        return False
    parts = [RowsFile(file) for file in files]
    if any((part.head.data, part.head.codec) != (head.data, head.codec) for part in parts):
        return False
    with tempfile.TemporaryFile(dir=folder) as index, tempfile.TemporaryFile(dir=folder) as lines:
        at = conversations = turns = 0
        for part in parts:
            rows = np.array(part.rows)
            rows["line_at"] += at
            rows["conversation"] += conversations
            index.write(rows.tobytes())
            lines.write(part.lines)
            at, conversations = at + len(part.lines), conversations + part.head.conversations
            turns += len(rows)
        whole = {**vars(head), "turns": turns, "conversations": conversations}
        _assemble(folder / ROWS, Head(**whole), index, lines)
    _drop_parts(folder)
    return True


def _drop_parts(folder: Path) -> None:
    for path in folder.glob(f"{ROWS}-*-of-*"):
        path.unlink()


class RowsFile:
    """A file of rows, mapped.

    Raises:
        CsmError: it is no such file, or cut short.
    """

    def __init__(self, path: Path):
        self.path = path
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = file.read(min(length, size))
        try:
            values: dict[str, Any] = json.loads(head)
            self.head = Head(**values)
        except (ValueError, TypeError):
            raise self._damaged() from None
        if self.head.schema_version != SCHEMA:
            raise CsmError(f"{path} is of version {self.head.schema_version}, and {SCHEMA} is read.", "Tokenize anew.")
        begin, count = 8 + length, self.head.turns
        with open(path, "rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if size < begin + count * ROW.itemsize or zlib.crc32(mapped[begin:]) != self.head.check:
            raise self._damaged()
        self.rows = np.memmap(path, ROW, "r", begin, (count,)) if count else np.zeros(0, ROW)
        self.lines = mapped[begin + count * ROW.itemsize :]

    def _damaged(self) -> CsmError:
        return CsmError(f"{self.path} is damaged.", "Run csm-finetune tokenize again: what is encoded stays.")

    def row(self, number: int) -> Row:
        """The row of a turn."""
        values = self._values(number)
        values["audio"], values["source"] = Path(values["audio"]), Path(values["source"])
        return Row(**values)

    def text(self, number: int) -> str:
        return self._values(number)["text"]

    def _values(self, number: int) -> dict[str, Any]:
        begin, size = int(self.rows["line_at"][number]), int(self.rows["line_size"][number])
        return json.loads(bytes(self.lines[begin : begin + size]).decode("utf-8", "surrogateescape"))


def complete_rows(folder: Path) -> RowsFile:
    """The rows of a folder of codes.

    Raises:
        CsmError: it is not complete (the parts that lack are named), or damaged.
    """
    names = sorted(path.name for path in folder.glob(f"{ROWS}-*-of-*"))
    if not names:
        return RowsFile(folder / ROWS)
    count = int(names[0].rsplit("-", 1)[1])
    lack = [f"{i}/{count}" for i in range(count) if Part(i, count).file not in names]
    if not lack:
        raise CsmError(
            f"{folder} holds parts of different data or codecs.", "Run csm-finetune tokenize again, all parts."
        )
    raise CsmError(
        f"{folder} is not complete: part {', '.join(lack[:8])} is missing.", f"Run it with --shard {lack[0]}."
    )


def read_rows(folder: Path) -> list[list[Row]]:
    """The conversations of a folder of codes, as rows. Raises as `complete_rows`."""
    file = complete_rows(folder)
    out: list[list[Row]] = [[] for _ in range(file.head.conversations)]
    for number, conversation in enumerate(file.rows["conversation"].tolist()):
        out[conversation].append(file.row(number))
    return out


def read_turns(folder: Path, codec: str) -> tuple[Turns, float]:
    """The turns of a folder of codes, mapped, and their frames a second.

    Args:
        codec: the fingerprint of the codec that the model speaks with.

    Raises:
        CsmError: the folder is not complete, or was made with another codec or by another version's settings.
    """
    file = complete_rows(folder)
    if file.head.codec != codec:
        raise CsmError(f"the codes in {folder} are of another codec than the model's.", "Tokenize with --model-path.")
    if file.head.settings != SETTINGS:
        raise CsmError(f"the codes in {folder} were made with other settings of loudness or cutting.", "Tokenize anew.")
    rows, shards = file.rows, CodeShards(folder, index=False)

    def codes(number: int) -> np.ndarray:
        found = shards.read(int(rows["place"][number]))
        if found is None:
            hint = "Run csm-finetune tokenize again: it encodes anew only what is damaged."
            raise CsmError(f"the codes of {file.row(number).name} in {folder} are damaged.", hint)
        return found

    starts = starts_of(np.bincount(rows["conversation"], minlength=file.head.conversations))
    turns = Turns(
        starts, rows["speaker"], rows["frames"], rows["sound"], rows["name"], rows["identity"], rows["file"], file.row, codes,
        file.text, rows["text_rows"], file.head.tokenizer, rows["place"], weights_of(rows["weight"]),
    )  # fmt: skip
    return turns, file.head.frame_rate
