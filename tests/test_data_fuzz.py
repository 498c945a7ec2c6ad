"""Manifests at random, and a folder of broken sounds: no stack, each fault once, good rows used, the right exit code."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import load_clip, spoken
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from csm.cli.finetune import main
from csm.data.faults import Fault, render
from csm.data.layout import FORMATS
from csm.data.manifest import read_data
from csm.errors import CsmError

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
WRONG: dict[str, Any] = {
    "path": st.sampled_from(["gone.wav", "~nobody/x.wav", "a\x01b", "y" * 5000, "x.wav/y", "..", "http://[", "zz://x"]),
    "text": st.sampled_from(["", "  ", "bell \x07"]),
    "start": st.sampled_from(["soon", "-1", "inf", "1e999", "0:01"]),
    "end": st.sampled_from(["later", "-0.5", "0"]),
    "speaker": st.sampled_from(["-1", "1.5e", "-7.0"]).filter(lambda word: word[0] == "-"),
    "language": st.sampled_from(["english please", "!", "e"]),
}
GOOD = {"path": "x.wav", "text": "good morning.", "start": "", "end": "", "speaker": "3", "language": "en"}


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[dict[str, str], bool]]:
    """Rows, each good, or wrong in one column."""
    made = []
    for number in range(draw(st.integers(1, 6))):
        row, column = dict(GOOD), draw(st.sampled_from([None, None, *WRONG]))
        if column:
            row[column] = draw(WRONG[column])
        else:
            row["text"] = f"good morning, number {number}."
        made.append((row, column is None))
    return made


def as_jsonl(path: Path, table: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, table)))
    return path


def as_csv(path: Path, table: list[dict[str, str]]) -> Path:
    lines = [",".join(GOOD), *(",".join('"' + cell + '"' for cell in row.values()) for row in table)]
    path.write_text("\n".join(lines))
    return path


def as_database(path: Path, table: list[dict[str, str]]) -> Path:
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("pragma synchronous = off")
        database.execute(f"create table data ({', '.join(GOOD).replace('end', '[end]')})")
        database.executemany("insert into data values (?, ?, ?, ?, ?, ?)", [list(row.values()) for row in table])
    database.close()
    return path


STORES: dict[str, Callable[[Path, list[dict[str, str]]], Path]] = {
    "rows.jsonl": as_jsonl,
    "rows.json": lambda path, table: (path.write_text(json.dumps(table)), path)[1],
    "rows.csv": as_csv,
    "rows.db": as_database,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "x.wav", spoken(1.5, 0), 24_000)
    return tmp_path


@pytest.mark.parametrize("name", STORES)
@FUZZ
@given(rows())
def test_each_wrong_row_is_named_once_and_good_ones_are_used(
    folder: Path, name: str, made: list[tuple[dict[str, str], bool]]
) -> None:
    path = STORES[name](folder / name, [row for row, _ in made])
    good = [row["text"] for row, fine in made if fine]
    try:
        conversations, faults = read_data([path])
    except CsmError:
        conversations, faults = [], None
    assert [row.text for conversation in conversations for row in conversation] == good
    if faults is None:
        return
    told = render(faults).splitlines()
    assert len(told) == len(faults) == len(made) - len(good)
    assert all(line.startswith(f"{path}, line ") for line in told)


PIECES = st.sampled_from(
    ["path", "text", "speaker", ",", "|", "\t", '"', "\n", "\r", "x.wav", "[1]:", "{", "}", "[", "]", ":", "a word here",
     "\ufeff", "\0", "\u2028", "é", "-", "speakers:", "data_path", "audio_dir", "&a", "*a", "!!python/object", "hf://a/b"]
)  # fmt: skip
NOISE = st.binary(max_size=80) | st.lists(PIECES, max_size=25).map(lambda words: "".join(words).encode())


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".txt", ".yaml", ".db", ".parquet", ".weird"])
@FUZZ
@given(NOISE, st.sampled_from([None, *FORMATS]))
@example(b"[1]: a word here\n", "script")
@example(b"SQLite format 3\0", None)
@example(b"speakers: &a [*a]", None)
@example(b"a: &a {b: *a}", None)
def test_no_bytes_in_any_format_raise_anything_but_a_sentence(
    folder: Path, suffix: str, content: bytes, format: str | None
) -> None:
    path = folder / f"data{suffix}"
    path.write_bytes(content)
    try:
        conversations, faults = read_data([path], speaker=0, format=format)
    except CsmError as error:
        str(error).encode()
    else:
        assert conversations
        render(faults).encode()


def broken_sounds(folder: Path) -> dict[str, str]:
    """A folder of sounds with transcripts; of each broken file a part of what is said of it."""
    wave = spoken(2.0, 0)
    whole = folder / "whole.wav"
    soundfile.write(whole, wave, 24_000)
    good = {"8bit.wav": ("PCM_U8", 24_000, 1), "six.wav": ("PCM_16", 24_000, 6), "192.wav": ("PCM_24", 192_000, 1)}
    for name, (subtype, rate, channels) in good.items():
        made = np.stack([spoken(2.0, len(name), rate)] * channels, axis=1)
        soundfile.write(folder / name, made, rate, subtype=subtype)
    data = whole.read_bytes()
    (folder / "truncated.wav").write_bytes(data[: len(data) // 2])
    (folder / "headless.wav").write_bytes(data[100:])
    (folder / "header.wav").write_bytes(data[:44])
    (folder / "zero.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no sound")
    (folder / "text.m4a").write_text("this is no sound either")
    soundfile.write(folder / "nan.wav", np.where(np.arange(len(wave)) == 900, np.nan, wave), 24_000, subtype="FLOAT")
    soundfile.write(folder / "silent.wav", np.zeros(48_000), 24_000)
    soundfile.write(folder / "loud.wav", np.sign(wave), 24_000)
    soundfile.write(folder / "short.wav", wave[:2_000], 24_000)
    three_hours(folder / "hours.wav")
    for path in [*folder.glob("*.wav"), *folder.glob("*.m4a")]:
        path.with_suffix(".txt").write_text("a sentence of some words.")
    (folder / "text.m4a").rename(folder / "film.m4a")
    (folder / "film.txt").write_text("a sentence of some words.")
    return {
        "truncated.wav": "is truncated",
        "headless.wav": "cannot be read as sound",
        "header.wav": "holds no samples",
        "zero.wav": "is an empty file",
        "text.wav": "cannot be read as sound",
        "film.m4a": "cannot be read as sound",
        "nan.wav": "not numbers",
        "silent.wav": "is silent",
        "loud.wav": "is clipped",
        "short.wav": "is too short",
        "hours.wav": "lasts 10800",
    }


def three_hours(path: Path) -> None:
    """Silence of three hours in a file that takes a kilobyte of the disk."""
    size = 3 * 3600 * 16_000 * 2
    head = (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    )
    with open(path, "wb") as file:
        file.write(head + b"data" + struct.pack("<I", size))
        file.truncate(44 + size)


def test_a_folder_of_broken_sounds(tmp_path: Path) -> None:
    says = broken_sounds(tmp_path)
    conversations, faults = read_data([tmp_path], speaker=0)
    assert faults == []
    results = {row.audio.name: load_clip(row) for conversation in conversations for row in conversation}
    assert {name for name, result in results.items() if isinstance(result, Fault)} == set(says)
    for name, part in says.items():
        fault = results[name]
        assert isinstance(fault, Fault)
        assert part in fault.text
        assert fault.file == tmp_path / name


@pytest.mark.slow
def test_exit_codes_of_training_on_it(tmp_path: Path) -> None:
    """0 with the good clips and every fault once; 1 under --strict, and where nothing can be used; never a stack."""
    says = broken_sounds(tmp_path / "data") if (tmp_path / "data").mkdir() is None else {}
    words = ["voice-adapt", "--speaker-id", "1", "--max-steps", "1", "--threads", "1", "--data-path"]
    places = ["--output-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path / "cache")]

    def train(*more: str) -> Any:
        return CliRunner().invoke(main, [*words, str(tmp_path / "data"), *places, *more])

    strict = train("--strict")
    assert (strict.exit_code, "Traceback" in strict.stderr) == (1, False)
    done = train()
    assert done.exit_code == 0, done.stderr
    for name, part in says.items():
        (line,) = [line for line in done.stderr.splitlines() if f"/{name} " in line]
        assert part in line
    assert "4 clips" in done.stderr
    assert f"{len(says)} skipped" in done.stderr
    for path in (tmp_path / "data").iterdir():
        if path.with_suffix(".wav").name not in says and path.name != "film.txt":
            path.unlink()
    nothing = train("--fresh")
    assert (nothing.exit_code, "Traceback" in nothing.stderr) == (1, False)
    assert "Nothing in the data can be used" in nothing.stderr
