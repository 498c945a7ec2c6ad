"""`csm-finetune tokenize`: what it leaves trains like the sound files, whoever shared the work and however it ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import ASSETS, write_clips

from csm.backend import Backend
from csm.cli.finetune import main
from csm.data.codes import CodeCache, data_fingerprint, tokenise
from csm.data.codes_folder import Head, Part, RowsFile, read_rows, read_turns, write_rows
from csm.data.manifest import read_data
from csm.data.shards import ENTRY
from csm.errors import CsmError
from csm.model_folder import open_folder
from csm.tokenizer import TextTokenizer
from csm.training.finetuner import CSMFineTuner

CODEC = Backend("cpu", "float32", "").codec(open_folder(ASSETS))


def run(*words: object, code: int = 0, **environment: str) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words], env=environment)
    assert result.exit_code == code, result.stderr
    return result


def tokenized(clips: Path, out: Path, *words: object, **environment: str) -> Path:
    run("tokenize", clips, "--speaker-id", 5, "--output", out, *words, **environment)
    return out


def torchruns(rank: int, size: int) -> dict[str, str]:
    """The variables that torchrun sets for a process."""
    places = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    return {name: str(value) for name, value in places.items()} | {"TORCHELASTIC_RUN_ID": "none"}


def clips_there(folder: Path) -> int:
    return sum(path.stat().st_size // ENTRY.itemsize for path in folder.glob("*.entries"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_clips(root, 9)
    (root / "audio" / "silent.wav").write_bytes(b"")
    (root / "transcripts" / "silent.txt").write_text("Nothing is heard.")
    return root


@pytest.fixture(scope="module")
def codes(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenized(clips, tmp_path_factory.mktemp("codes") / "CODES")


def test_a_run_from_codes_alone_is_the_run_from_sound_files(clips: Path, codes: Path, tmp_path: Path) -> None:
    """The sound files are away; the recipe (data's fingerprint included) and every figure are the same."""
    settings = ("--max-steps", 3, "--log-to", "none", "--context-turns", 2)
    run(
        "voice-adapt",
        "--data-path",
        clips,
        "--speaker-id",
        5,
        "--cache-dir",
        codes,
        "--output-dir",
        tmp_path / "a",
        *settings,
    )
    away = shutil.copytree(codes, tmp_path / "CODES")
    hidden = clips.rename(clips.with_name("hidden"))
    try:
        run("voice-adapt", "--data-path", away, "--output-dir", tmp_path / "b", *settings)
    finally:
        hidden.rename(clips)
    one, two = ((tmp_path / name / "recipe.json").read_text() for name in "ab")
    assert one == two
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in "ab"
    )
    for old, new in zip(first, second, strict=True):
        changing = {"frames_per_second", "peak_memory_mb"}
        assert {k: v for k, v in old.items() if k not in changing} == {
            k: v for k, v in new.items() if k not in changing
        }


def test_rows_codes_and_counts_come_back(clips: Path, codes: Path) -> None:
    rows, _ = read_data([clips], speaker=5)
    turns, rate = read_turns(codes, CODEC.fingerprint)
    kept = [c for c in rows if c[0].name != "silent"]
    assert read_rows(codes) == read_data([codes])[0] == kept
    assert rate == CODEC.frame_rate
    expected = tokenise(kept, CodeCache(codes, CODEC)).turns
    for i, (conversation,) in enumerate(expected):
        np.testing.assert_array_equal(turns.codes(i), conversation.codes)
    for name in ("starts", "speakers", "frames", "sounds", "names", "identities"):
        np.testing.assert_array_equal(getattr(turns, name), getattr(expected, name))
    tokenizer = TextTokenizer(ASSETS)
    assert turns.text_rows_of == tokenizer.fingerprint
    np.testing.assert_array_equal(turns.text_rows, [len(tokenizer.encode(row.text, 5)) for (row,) in kept])


@pytest.mark.parametrize("launcher", ["shard", "torchrun"])
def test_parts_make_the_same_folder_and_the_last_completes_it(
    clips: Path, codes: Path, tmp_path: Path, launcher: str
) -> None:
    out, count = tmp_path / "CODES", 12  # more than there are clips
    for number in [*range(3, count), 0, 2, 1]:
        if number == 1:
            run("voice-adapt", "--data-path", out, "--output-dir", tmp_path / "run", code=1)
            with pytest.raises(CsmError, match=r"part 1/12 is missing"):
                read_turns(out, CODEC.fingerprint)
        if launcher == "shard":
            tokenized(clips, out, "--shard", f"{number}/{count}")
        else:
            tokenized(clips, out, **torchruns(number, count))
    assert not list(out.glob("rows-*"))
    assert clips_there(out) == 9
    whole, joined = (read_turns(folder, CODEC.fingerprint)[0] for folder in (codes, out))
    assert data_fingerprint(joined) == data_fingerprint(whole)
    for i in range(9):
        assert joined.row(i) == whole.row(i)
        np.testing.assert_array_equal(joined.codes(i), whole.codes(i))


def test_parts_are_whole_conversations_in_order() -> None:
    for total, count in ((0, 3), (1, 3), (10, 3), (1000, 7)):
        assert [i for n in range(count) for i in Part(n, count).of(total)] == list(range(total))


def test_parts_of_other_data_are_not_joined(clips: Path, tmp_path: Path, make_clips: object) -> None:
    other, out = make_clips(4), tmp_path / "CODES"  # type: ignore[operator]
    tokenized(clips, out, "--shard", "0/2")
    tokenized(other, out, "--shard", "1/2")
    with pytest.raises(CsmError, match="different data"):
        read_turns(out, CODEC.fingerprint)
    tokenized(clips, out, "--shard", "1/2")
    assert len(read_turns(out, CODEC.fingerprint)[0]) == 9


def test_a_killed_job_goes_on_and_encodes_nothing_twice(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", 60)
    out, straight = tmp_path / "CODES", tmp_path / "straight"
    words = ["tokenize", tmp_path / "clips", "--speaker-id", 5, "--output", out, "--threads", 1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "csm.cli.finetune", *map(str, words)], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while clips_there(out) < 10:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = clips_there(out)
    assert 10 <= before < 60
    assert not (out / "rows").exists()
    skipped = run(*words).stderr.count("does not fit its text")
    tokenized(tmp_path / "clips", straight)
    assert 60 - skipped <= clips_there(out) == clips_there(straight)
    one, two = (read_turns(folder, CODEC.fingerprint)[0] for folder in (out, straight))
    assert data_fingerprint(one) == data_fingerprint(two)


def test_a_damaged_shard_is_named_and_redone(clips: Path, codes: Path, tmp_path: Path) -> None:
    away = shutil.copytree(codes, tmp_path / "CODES")
    shard = away / "00000.codes"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    asked = (
        "voice-adapt",
        "--data-path",
        away,
        "--output-dir",
        tmp_path / "run",
        "--max-steps",
        30,
        "--log-to",
        "none",
    )
    assert "damaged" in run(*asked, code=1).stderr
    tokenized(clips, away)
    assert clips_there(away) == 10, "one clip anew"
    turns, whole = (read_turns(folder, CODEC.fingerprint)[0] for folder in (away, codes))
    for i in range(9):
        np.testing.assert_array_equal(turns.codes(i), whole.codes(i))


def test_damaged_rows_are_refused_wherever_they_are_damaged(codes: Path, tmp_path: Path) -> None:
    away = shutil.copytree(codes, tmp_path / "CODES")
    whole = (away / "rows").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    cut = [whole[:end] for end in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1)]
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 7, 8, *range(8 + length, len(whole), 61))
    ]
    for data in (*cut, *flipped, whole + b"x"):
        (away / "rows").write_bytes(data)
        with pytest.raises(CsmError, match="damaged"):
            read_turns(away, CODEC.fingerprint)


def test_refusals_are_sentences(clips: Path, codes: Path, toy_folder: Path, tmp_path: Path) -> None:
    out = ("--output-dir", tmp_path / "run")
    other = run("voice-adapt", "--data-path", codes, "--model-path", toy_folder, *out, code=1).stderr
    assert "another codec" in other
    mixed = run("voice-adapt", "--data-path", codes, "--data-path", clips, *out, code=1).stderr
    assert "other data are named beside it" in mixed
    assert "codes already" in run("tokenize", codes, "--output", tmp_path / "x", code=1).stderr
    for wrong in ("3/3", "1", "a/b", "-1/4"):
        assert "no part" in run("tokenize", clips, "--output", tmp_path / "x", "--shard", wrong, code=2).stderr
    assert "4 of 2" in run("tokenize", clips, "--output", tmp_path / "x", code=1, **torchruns(4, 2)).stderr
    assert "No data" in run("tokenize", "--output", tmp_path / "x", code=1).stderr
    silent = tmp_path / "silent"
    (silent / "audio").mkdir(parents=True)
    (silent / "transcripts").mkdir()
    (silent / "audio" / "a.wav").write_bytes(b"")
    (silent / "transcripts" / "a.txt").write_text("Nothing.")
    assert (
        "Nothing in the data" in run("tokenize", silent, "--speaker-id", 1, "--output", tmp_path / "x", code=1).stderr
    )


def test_the_python_api_reads_a_folder_of_codes(codes: Path, tmp_path: Path) -> None:
    tuner = CSMFineTuner(ASSETS, tmp_path / "run", backend=Backend("cpu", "float32", ""))
    data = tuner.read_codes(codes)
    assert len(data.conversations) == 9
    assert data.minutes() == pytest.approx(sum(t.codes.shape[1] for (t,) in data.conversations) / CODEC.frame_rate / 60)


def test_conversations_and_weights_are_kept(clips: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    rows = [row for c in read_data([clips], speaker=5)[0] for row in c if row.name != "silent"]
    talks = [[replace(rows[0], weight=0.5, language="de"), replace(rows[1], speaker=6)], [rows[2]], rows[3:6]]
    cache = CodeCache(tmp_path, CODEC)
    turns = tokenise(talks, cache).turns
    assert turns.places is not None
    entries = [cache.shards.entry(int(place)) for place in turns.places]
    listed = [
        (int(turns.conversation_of[i]), turns.row(i), int(turns.places[i]), entries[i], 3) for i in range(len(entries))
    ]
    head = Head("", CODEC.fingerprint, "", CODEC.sample_rate, CODEC.frame_rate, CODEC.codebooks, "")
    assert write_rows(tmp_path, Part(), head, listed)
    assert read_rows(tmp_path) == talks
    assert RowsFile(tmp_path / "rows").head.conversations == 3
