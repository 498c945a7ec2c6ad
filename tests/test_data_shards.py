"""Shards of codes: what is read is what was written or nothing, whoever wrote it and however it ended."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from csm.data import shards
from csm.data.shards import ENTRY, OPEN_SHARDS, CodeShards
from csm.data.turns import sound_of

KEYS = [hashlib.sha256(bytes([i])).digest() for i in range(200)]


def codes(number: int, frames: int = 25) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 2048, (4, frames))


def filled(folder: Path, count: int = 6) -> CodeShards:
    store = CodeShards(folder)
    for i in range(count):
        store.add(KEYS[i], codes(i))
    store.close()
    return CodeShards(folder)


def read(store: CodeShards, number: int) -> np.ndarray | None:
    place = store.find(KEYS[number])
    return None if place is None else store.read(place)


def test_what_is_written_is_read_by_whoever_opens_the_folder(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for i in range(6):
        found = read(store, i)
        assert found is not None
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, codes(i))
        place = store.find(KEYS[i])
        assert place is not None
        assert store.entry(place)["frames"] == 25
        assert store.entry(place)["sound"] == sound_of(codes(i))
    assert store.find(KEYS[7]) is None
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["00000.codes", "00000.entries"]
    assert (tmp_path / "00000.codes").stat().st_size == 6 * 4 * 25 * 2, "two bytes a code"
    assert (tmp_path / "00000.entries").stat().st_size == 6 * 64


@pytest.mark.parametrize(("highest", "size"), [(32_767, 2), (32_768, 2), (65_535, 2), (65_536, 4), (2**40, 8)])
def test_the_smallest_type_holds_them(tmp_path: Path, highest: int, size: int) -> None:
    store, values = CodeShards(tmp_path), np.array([[0, highest]])
    place = store.add(KEYS[0], values)
    np.testing.assert_array_equal(store.read(place), values)
    assert (tmp_path / "00000.codes").stat().st_size == 2 * size


@pytest.mark.parametrize("suffix", ["codes", "entries"])
def test_damage_anywhere_costs_only_what_it_hit(tmp_path: Path, suffix: str) -> None:
    whole = (filled(tmp_path).folder / f"00000.{suffix}").read_bytes()
    length = len(whole) // 6
    path = tmp_path / f"00000.{suffix}"
    for at in range(0, len(whole), 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        store = CodeShards(tmp_path)
        for i in range(6):
            found = read(store, i)
            assert (found is None) == (i == at // length)
            assert found is None or np.array_equal(found, codes(i))
        assert read(CodeShards(tmp_path), 6) is None
    for end in (0, 1, length, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert [read(CodeShards(tmp_path), i) is None for i in range(6)] == [i >= end // length for i in range(6)]


def test_what_was_damaged_is_written_again_and_found(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = tmp_path / "00000.codes"
    path.write_bytes(bytes(len(path.read_bytes())))
    store = CodeShards(tmp_path)
    assert store.find(KEYS[2]) is None
    store.add(KEYS[2], codes(2))
    store.close()
    for one in (store, CodeShards(tmp_path)):
        np.testing.assert_array_equal(read(one, 2), codes(2))
        assert read(one, 3) is None


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = CodeShards(tmp_path), os.write
    store.add(KEYS[0], codes(0))
    for allowed in (0, 1, 150, 200, 230):  # bytes until the disk is full: in the codes, between, in the entry
        left = allowed

        def full(handle: int, data: bytes) -> int:
            nonlocal left
            if left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = real(handle, bytes(data)[:left])
            left -= written
            return written

        with monkeypatch.context() as patch:
            patch.setattr(shards.os, "write", full)
            with pytest.raises(OSError, match="No space"):
                store.add(KEYS[1], codes(1))
        assert (tmp_path / "00000.codes").stat().st_size == 200
        assert (tmp_path / "00000.entries").stat().st_size == 64
    store.add(KEYS[1], codes(1))
    for one in (store, CodeShards(tmp_path)):
        np.testing.assert_array_equal(read(one, 0), codes(0))
        np.testing.assert_array_equal(read(one, 1), codes(1))


WRITER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_data_shards import KEYS, CodeShards, codes
    store = CodeShards(Path({folder!r}))
    for i in range({first}, {last}):
        store.add(KEYS[i], codes(i))
        print(i, flush=True)
        sys.stdin.readline()
"""


def writer(folder: Path, first: int, last: int) -> subprocess.Popen[str]:
    script = textwrap.dedent(WRITER).format(
        tests=str(Path(__file__).parent), folder=str(folder), first=first, last=last
    )
    return subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def test_processes_write_at_once_each_to_a_shard_of_its_own_and_one_killed_leaves_it(tmp_path: Path) -> None:
    one, two = writer(tmp_path, 0, 50), writer(tmp_path, 50, 100)
    try:
        for i in range(10):
            assert said(one) == f"{i}\n"
            assert said(two) == f"{50 + i}\n"
            if i < 9:
                go_on(one)
                go_on(two)
        store = CodeShards(tmp_path)
        assert [i for i in range(200) if read(store, i) is not None] == [*range(10), *range(50, 60)]
        os.kill(one.pid, signal.SIGKILL)
        one.wait()
        with open(tmp_path / "00000.entries", "ab") as file:
            file.write(b"half an entry")
        with open(tmp_path / "00000.codes", "ab") as file:
            file.write(b"codes that no entry names")
        assert {path.name for path in tmp_path.glob("*.codes")} == {"00000.codes", "00001.codes"}
        store.add(KEYS[10], codes(10))
        store.close()
        found = CodeShards(tmp_path)
        assert [i for i in range(200) if read(found, i) is not None] == [*range(11), *range(50, 60)]
        assert {path.name for path in tmp_path.glob("*.codes")} == {"00000.codes", "00001.codes"}
        np.testing.assert_array_equal(read(found, 10), codes(10))
    finally:
        for process in (one, two):
            process.kill()
            process.communicate()


def test_full_shards_are_left_and_few_are_open(tmp_path: Path) -> None:
    store = CodeShards(tmp_path, shard_bytes=300)
    for i in range(200):
        store.add(KEYS[i], codes(i))
    store.close()
    assert len(list(tmp_path.glob("*.codes"))) == 100 > OPEN_SHARDS
    store = CodeShards(tmp_path)
    for i in range(200):
        np.testing.assert_array_equal(read(store, i), codes(i))
    assert len(store._maps) == OPEN_SHARDS
    assert store._heads.nbytes + store._places.nbytes == 200 * 16
    assert ENTRY.itemsize == 64
