"""Shards: codes in a few large files, found by key, that processes share.

A shard is two files that only grow: `00000.codes`, the codes one after the other, and `00000.entries`, 64 bytes a clip.
Each process writes to a shard of its own, held by a lock that ends with the process; a shard whose writer is gone is
written on. An entry is written after its codes and both carry a checksum, so what a kill or a power cut leaves is either
whole or not there.
"""

from __future__ import annotations

import mmap
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from csm.data.turns import sound_of

SHARD_BYTES = 4 << 30  # codes in a shard, before another is begun
OPEN_SHARDS = 64  # mapped at a time
KINDS: tuple[type[np.signedinteger] | type[np.unsignedinteger], ...] = (np.int16, np.uint16, np.int32, np.int64)
ENTRY = np.dtype(
    [("key", "V32"), ("at", "<u8"), ("sound", "<u8"), ("frames", "<u4"), ("codebooks", "<u2"), ("kind", "<u2"),
     ("check", "<u4"), ("entry_check", "<u4")]
)  # fmt: skip
"""`at` is the first byte of the codes, `kind` their type's place in KINDS, `check` their CRC-32."""


class CodeShards:
    """A folder of shards.

    A place is a number that names an entry: shard and entry within it. In memory stand 16 bytes an entry, the beginnings
    of the keys in order and the places; all else is mapped. Without `index` codes are read by their places alone.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, index: bool = True):
        self.folder, self.shard_bytes = folder, shard_bytes
        self._entries: dict[int, np.ndarray] = {}
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._added: dict[bytes, int] = {}
        self._writer: _Writer | None = None
        self._mapping = threading.Lock()
        self._heads = self._places = np.zeros(0, np.uint64)
        if index:
            self._index()

    def _index(self) -> None:
        """Read the entries of all shards, once."""
        for path in sorted(self.folder.glob("*.entries")):
            if path.stem.isdigit():
                self._entries[int(path.stem)] = _mapped_entries(path)
        heads = [_heads(entries) for entries in self._entries.values()]
        places = [np.arange(len(e), dtype=np.uint64) | np.uint64(n << 32) for n, e in self._entries.items()]
        joined = np.concatenate([np.zeros(0, np.uint64), *heads])
        order = np.argsort(joined, kind="stable")
        self._heads = joined[order]
        self._places = np.concatenate([np.zeros(0, np.uint64), *places])[order]

    def find(self, key: bytes) -> int | None:
        """The place of a key (32 bytes) whose codes are whole; None if there is none."""
        added = self._added.get(key)
        if added is not None and self._whole(added) is not None:
            return added
        head = np.frombuffer(key[:8], "<u8")[0]
        first, last = np.searchsorted(self._heads, head, "left"), np.searchsorted(self._heads, head, "right")
        for place in self._places[first:last][::-1].tolist():  # what was redone stands later
            if self.entry(place)["key"].tobytes() == key and self._whole(place) is not None:
                return place
        return None

    def entry(self, place: int) -> np.ndarray | np.void:
        """The entry at a place, of `ENTRY`."""
        shard, number = place >> 32, place & 0xFFFFFFFF
        if shard not in self._entries or number >= len(self._entries[shard]):
            path = self._path(shard, "entries")
            if path.is_file():
                self._entries[shard] = _mapped_entries(path)
        if shard not in self._entries or number >= len(self._entries[shard]):
            return np.zeros(1, ENTRY)[0]
        return self._entries[shard][number]

    def read(self, place: int) -> np.ndarray | None:
        """The codes `(K, T)` int64 at a place; None where they are damaged or gone."""
        found = self._whole(place)
        return None if found is None else found.astype(np.int64)

    def _whole(self, place: int) -> np.ndarray | None:
        entry = self.entry(place)
        if zlib.crc32(entry.tobytes()[:-4]) != entry["entry_check"] or entry["kind"] >= len(KINDS):
            return None
        kind, shape = np.dtype(KINDS[entry["kind"]]), (int(entry["codebooks"]), int(entry["frames"]))
        begin, size = int(entry["at"]), kind.itemsize * shape[0] * shape[1]
        data = self._bytes(place >> 32, begin, size)
        if size == 0 or data is None or zlib.crc32(data) != entry["check"]:
            return None
        return np.frombuffer(data, kind.newbyteorder("<")).reshape(shape)

    def _bytes(self, shard: int, begin: int, size: int) -> bytes | None:
        path = self._path(shard, "codes")
        if not path.is_file() or path.stat().st_size < begin + size:  # reading past the end of a map kills the process
            return None
        with self._mapping:
            mapped = self._maps.pop(shard, None)
            if mapped is None or len(mapped) < begin + size:
                with open(path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._maps[shard] = mapped
            if len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)
            return mapped[begin : begin + size]

    def add(self, key: bytes, codes: np.ndarray) -> int:
        """Write codes `(K, T)` in the smallest type that holds them, and give their place.

        Not synced: what a power cut leaves fails its checksum, and is encoded again.
        """
        if self._writer is None or self._writer.size >= self.shard_bytes:
            self.close()
            self._writer = self._open_writer()
        place = self._added[key] = (self._writer.shard << 32) | self._writer.add(key, codes)
        return place

    def _open_writer(self) -> _Writer:
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = 0
        while True:
            path = self._path(shard, "codes")
            if not path.is_file() or path.stat().st_size < self.shard_bytes:
                lock = FileLock(self._path(shard, "lock"), timeout=0)
                try:
                    lock.acquire()
                except Timeout:
                    pass
                else:
                    return _Writer(self.folder / f"{shard:05d}", shard, lock)
            shard += 1

    def close(self) -> None:
        """Let others write to this process's shard."""
        if self._writer:
            self._writer.close()
            self._writer = None

    def _path(self, shard: int, suffix: str) -> Path:
        return self.folder / f"{shard:05d}.{suffix}"


class _Writer:
    """The one who writes to a shard."""

    def __init__(self, stem: Path, shard: int, lock: FileLock):
        self.shard, self._lock = shard, lock
        self._codes, self._entries = (
            os.open(stem.with_suffix(f".{suffix}"), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            for suffix in ("codes", "entries")
        )
        self.size = os.fstat(self._codes).st_size
        self._count = os.fstat(self._entries).st_size // ENTRY.itemsize
        os.ftruncate(self._entries, self._count * ENTRY.itemsize)

    def add(self, key: bytes, codes: np.ndarray) -> int:
        """Append codes, then their entry; the number of the entry. OSError leaves neither."""
        kind = next(
            i for i, kind in enumerate(KINDS)
            if np.iinfo(kind).min <= codes.min(initial=0) and codes.max(initial=0) <= np.iinfo(kind).max
        )  # fmt: skip
        data = np.ascontiguousarray(codes, np.dtype(KINDS[kind]).newbyteorder("<")).tobytes()
        entry = np.zeros((), ENTRY)
        shape, sound = codes.shape, sound_of(codes)
        entry[()] = (np.void(key), self.size, sound, shape[1], shape[0], kind, zlib.crc32(data), 0)
        entry["entry_check"] = zlib.crc32(entry.tobytes()[:-4])
        try:
            _write(self._codes, data)
            _write(self._entries, entry.tobytes())
        except BaseException:
            os.ftruncate(self._codes, self.size)
            os.ftruncate(self._entries, self._count * ENTRY.itemsize)
            raise
        self.size, self._count = self.size + len(data), self._count + 1
        return self._count - 1

    def close(self) -> None:
        os.close(self._codes)
        os.close(self._entries)
        self._lock.release()


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _mapped_entries(path: Path) -> np.ndarray:
    """The whole entries of a shard, mapped; what a kill left at the end is passed over."""
    count = path.stat().st_size // ENTRY.itemsize
    return np.memmap(path, ENTRY, "r", shape=(count,)) if count else np.zeros(0, ENTRY)


def _heads(entries: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each key as a number."""
    return entries.view(np.dtype([("head", "<u8"), ("rest", "V56")]))["head"]
