"""The cache of codes, and what is left of the data when every clip is encoded."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csm.data import codes
from csm.data.codes import (
    CodeCache,
    CodedTurn,
    Tokenised,
    data_fingerprint,
    default_cache_folder,
    summary,
    tokenise,
)
from csm.data.faults import Fault, render
from csm.data.folders import read_folders
from csm.data.manifest import read_data
from csm.data.row import Row
from csm.data.shards import ENTRY
from csm.errors import CsmError

TEXT = "A sentence that takes a moment."


class CountingCodec:
    """Four codes a frame of 80 ms, made of the wave alone; counts how often it is asked."""

    sample_rate, frame_rate, codebooks, codebook_size = 24_000, 12.5, 4, 2048

    def __init__(self, fingerprint: str = "one", offset: int = 0):
        self.fingerprint, self.offset, self.calls = fingerprint, offset, 0

    def encode(self, wave: np.ndarray) -> np.ndarray:
        self.calls += 1
        frames = np.pad(wave, (0, -len(wave) % 1920)).reshape(-1, 1920)
        powers = [np.abs(frames).mean(1), frames.std(1), frames.max(1), -frames.min(1)]
        return (np.stack(powers) * 1000).astype(np.int64) % 2048 + self.offset


def sound(path: Path, seconds: float = 2.0, hertz: float = 200.0, gain: float = 0.3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * 24_000)) / 24_000
    soundfile.write(path, gain * np.sin(2 * np.pi * hertz * t) * (0.6 + 0.4 * np.sin(25 * t)), 24_000)
    return path


def row(audio: Path, text: str = TEXT, speaker: int = 0) -> Row:
    return Row(audio.stem, audio, text, speaker, audio.with_suffix(".txt"))


@pytest.fixture
def codec() -> CountingCodec:
    return CountingCodec()


@pytest.fixture
def cache(tmp_path: Path, codec: CountingCodec) -> CodeCache:
    return CodeCache(tmp_path / "cache", codec)  # type: ignore[arg-type]


def entries(cache: CodeCache) -> int:
    """How many clips the folder holds."""
    return sum(path.stat().st_size // ENTRY.itemsize for path in cache.folder.glob("*.entries"))


def codes_of(cache: CodeCache, clip: Row) -> np.ndarray:
    found = cache.codes_of(clip)
    assert isinstance(found, np.ndarray), found
    return found


class TestCache:
    def test_a_clip_is_encoded_once_whatever_it_is_called(
        self, tmp_path: Path, cache: CodeCache, codec: CountingCodec
    ) -> None:
        clip = row(sound(tmp_path / "x.wav"))
        first = codes_of(cache, clip)
        assert first.dtype == np.int64
        assert first.shape == (4, 25)
        np.testing.assert_array_equal(codes_of(cache, clip), first)
        copy = tmp_path / "elsewhere/y.wav"
        copy.parent.mkdir()
        copy.write_bytes(clip.audio.read_bytes())
        fresh = CodeCache(cache.folder, codec)  # type: ignore[arg-type]
        np.testing.assert_array_equal(codes_of(fresh, row(copy, "Other words, same sound.", 3)), first)
        assert codec.calls == 1

    def test_a_hit_does_not_read_the_sound(
        self, tmp_path: Path, cache: CodeCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clip = row(sound(tmp_path / "x.wav"))
        first = codes_of(cache, clip)
        monkeypatch.setattr(codes, "load_sound", lambda *_: pytest.fail("the sound was decoded again"))
        np.testing.assert_array_equal(codes_of(cache, clip), first)

    def test_codes_of_the_cache_are_those_of_the_prepared_wave(self, tmp_path: Path, cache: CodeCache) -> None:
        clip = row(sound(tmp_path / "x.wav"))
        wave = codes.load_sound(clip.audio, 24_000)
        assert isinstance(wave, np.ndarray)
        np.testing.assert_array_equal(codes_of(cache, clip), CountingCodec().encode(wave))

    def test_other_bytes_another_codec_and_other_settings_are_other_entries(
        self, tmp_path: Path, cache: CodeCache, codec: CountingCodec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clip = row(sound(tmp_path / "x.wav"))
        codes_of(cache, clip)
        other = CountingCodec("two", offset=7)
        changed = codes_of(CodeCache(cache.folder, other), clip)  # type: ignore[arg-type]
        np.testing.assert_array_equal(changed, codes_of(cache, clip) + 7)
        assert (codec.calls, other.calls) == (1, 1)
        monkeypatch.setattr(codes, "SETTINGS", "clip 2")
        codes_of(CodeCache(cache.folder, codec), clip)  # type: ignore[arg-type]
        assert codec.calls == 2
        sound(clip.audio, hertz=300)
        codes_of(cache, clip)
        assert codec.calls == 3
        assert entries(cache) == 4

    def test_sounds_with_a_fault_are_not_kept(self, tmp_path: Path, cache: CodeCache, codec: CountingCodec) -> None:
        silent = row(sound(tmp_path / "silent.wav", gain=0))
        for _ in range(2):
            fault = cache.codes_of(silent)
            assert isinstance(fault, Fault)
            assert "is silent" in fault.text
        (tmp_path / "folder.wav").mkdir()
        for name, told in (("gone", "is not there"), ("folder", "cannot be read")):
            fault = cache.codes_of(row(tmp_path / f"{name}.wav"))
            assert isinstance(fault, Fault)
            assert told in fault.text
        assert codec.calls == 0
        assert entries(cache) == 0
        sound(silent.audio)
        codes_of(cache, silent)

    def test_the_text_gets_the_same_verdict_before_and_after_caching(
        self, tmp_path: Path, cache: CodeCache, codec: CountingCodec
    ) -> None:
        audio = sound(tmp_path / "x.wav", seconds=0.5)
        frames = codes_of(cache, row(audio, "Just so.")).shape[1]
        fits = int(40 * frames / 12.5)
        for folder in (cache.folder, tmp_path / "fresh 1", tmp_path / "fresh 2"):
            for count, good in ((fits, True), (fits + 1, False)):
                place = folder if folder == cache.folder else folder / str(count)
                found = CodeCache(place, codec).codes_of(row(audio, "a" * count))  # type: ignore[arg-type]
                assert isinstance(found, np.ndarray) == good
        assert codec.calls == 5

    def test_processes_share_a_folder(self, tmp_path: Path, cache: CodeCache, codec: CountingCodec) -> None:
        clips = [row(sound(tmp_path / f"{i}.wav", 0.6, 100 + 10 * i), "Words.") for i in range(12)]
        script = f"""
            import sys
            from pathlib import Path
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from test_data_codes import CodeCache, CountingCodec, row
            cache = CodeCache({str(cache.folder)!r}, CountingCodec())
            print("ready", flush=True)
            sys.stdin.readline()
            for _ in range(8):
                for i in range(12):
                    codes = cache.codes_of(row(Path({str(tmp_path)!r}, f"{{i}}.wav"), "Words."))
                    assert codes.shape[0] == 4
                cache = CodeCache({str(cache.folder)!r}, CountingCodec())
        """
        run = [sys.executable, "-c", textwrap.dedent(script)]
        workers = [
            subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for worker in workers:
            assert worker.stdout
            worker.stdout.readline()
        for worker in workers:
            assert worker.stdin
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            assert worker.communicate(timeout=60)[1] == ""
            assert worker.returncode == 0
        assert 12 <= entries(cache) <= 24, "each is encoded once, or by both at one time"
        expected = CodeCache(tmp_path / "alone", codec)  # type: ignore[arg-type]
        for clip in clips:
            np.testing.assert_array_equal(codes_of(cache, clip), codes_of(expected, clip))


def voice_folder(place: Path) -> Path:
    for i in range(1, 5):
        sound(place / f"audio/clip{i}.wav", 1.5, 100 * i)
        (place / "transcripts").mkdir(exist_ok=True)
        (place / f"transcripts/clip{i}.txt").write_text(f"These are the words of {i}.")
    return place


class TestTokenise:
    def test_every_clip_with_its_codes_and_progress(self, tmp_path: Path, cache: CodeCache) -> None:
        conversations, faults = read_data([voice_folder(tmp_path / "voice")], speaker=5)
        seen: list[tuple[int, int]] = []
        result = tokenise(conversations, cache, lambda done, total: seen.append((done, total)), faults=faults)
        assert [turn.row for c in result.conversations for turn in c] == [row for c in conversations for row in c]
        for (turn,) in result.conversations:
            np.testing.assert_array_equal(turn.codes, cache.codes_of(turn.row))
        assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert result.faults == []
        assert summary(result) == "4 clips, 0.1 minutes, speaker 5; 0 skipped"

    def test_every_fault_of_the_folder_is_named_once(self, tmp_path: Path, cache: CodeCache) -> None:
        place = voice_folder(tmp_path / "voice")
        audio, texts = place / "audio", place / "transcripts"
        sound(audio / "clip2.wav", gain=0)
        (audio / "clip3.wav").write_text("not a sound at all")
        (texts / "clip4.txt").write_text("far too many words " * 30)
        sound(audio / "lonely.wav")
        (texts / "orphan.txt").write_text("Nobody says this.")
        sound(audio / "brief.wav", 0.1)
        (texts / "brief.txt").write_text("Oh.")
        mp3 = audio / "cut.mp3"
        soundfile.write(mp3, soundfile.read(audio / "clip1.wav")[0], 24_000, format="MP3")
        mp3.write_bytes(mp3.read_bytes()[:1501])
        (texts / "cut.txt").write_text("Words that end too early.")
        rows, faults = read_folders(audio, texts, 1)
        result = tokenise([[r] for r in rows], cache, faults=faults)
        assert [turn.row.name for (turn,) in result.conversations] == ["clip1"]
        lines = render(result.faults).splitlines()
        assert [Path(line.split()[0]).name for line in lines] == [
            "brief.wav", "clip2.wav", "clip3.wav", "clip4.wav", "cut.mp3", "lonely.wav", "orphan.txt",
        ]  # fmt: skip
        for line, told in zip(
            lines,
            ["too short", "silent", "cannot be read", "does not fit", "truncated", "no transcript", "no sound file"],
            strict=True,
        ):
            assert told in line
        assert summary(result).endswith("1 clip, 0.0 minutes, speaker 1; 7 skipped")

    def test_a_dialogue_loses_only_the_faulty_turn_and_says_so(self, tmp_path: Path, cache: CodeCache) -> None:
        good = [sound(tmp_path / f"{i}.wav", hertz=100 + 100 * i) for i in range(3)]
        silent = sound(tmp_path / "silent.wav", gain=0)
        data = tmp_path / "data.json"
        rows = [Row(path.stem, path, TEXT, i % 2, data, i + 3) for i, path in enumerate([good[0], silent, *good[1:]])]
        result = tokenise([rows, rows[1:2], rows[:2]], cache)
        assert [[turn.row.name for turn in c] for c in result.conversations] == [["0", "1", "2"], ["0"]]
        assert render(result.faults) == (
            f"{silent} is silent: its peak is below -100 dBFS; "
            f"left out: turn 2 of 4 in {data}, line 4, turn 2 of 2 in {data}, line 4."
        )
        assert summary(result) == "2 conversations, 4 clips, 0.1 minutes, speakers 0, 1; 1 skipped"

    def test_nothing_left_and_strict_are_errors(self, tmp_path: Path, cache: CodeCache) -> None:
        silent, good = row(sound(tmp_path / "silent.wav", gain=0)), row(sound(tmp_path / "good.wav"))
        early = Fault(Path("early.txt"), "has an empty text")
        with pytest.raises(CsmError, match="Nothing in the data can be used") as caught:
            tokenise([[silent]], cache, faults=[early])
        assert "silent.wav is silent" in (caught.value.hint or "")
        assert "early.txt has an empty text" in (caught.value.hint or "")
        with pytest.raises(CsmError, match="Nothing"):
            tokenise([], cache)
        for conversations, faults in (([[silent], [good]], []), ([[good]], [early])):
            assert len(tokenise(conversations, cache, faults=faults).faults) == 1
            with pytest.raises(CsmError, match="1 fault"):
                tokenise(conversations, cache, faults=faults, strict=True)
        assert tokenise([[good]], cache, strict=True).faults == []


def test_summary_shortens_many_speakers() -> None:
    turns = [[CodedTurn(row(Path(f"{i}.wav"), speaker=i), np.zeros((4, 750), np.int64))] for i in range(20)]
    assert (
        summary(Tokenised(turns, [], 12.5))
        == "20 clips, 20.0 minutes, speakers 0, 1, 2, 3, 4, 5, 6, 7 ... (20 in all); 0 skipped"
    )


class TestFingerprint:
    def turns(self) -> list[list[CodedTurn]]:
        made = [CodedTurn(row(Path(f"{i}.wav"), f"Words {i}.", i), np.arange(8).reshape(4, 2) + i) for i in range(3)]
        return [made[:2], made[2:]]

    def test_it_changes_with_all_that_is_learnt_and_nothing_else(self) -> None:
        base = self.turns()
        (a, b), (c,) = base
        swapped = replace(a, codes=a.codes[:, ::-1])
        others = {
            "text": [[replace(a, row=replace(a.row, text="Other.")), b], [c]],
            "speaker": [[replace(a, row=replace(a.row, speaker=9)), b], [c]],
            "name": [[replace(a, row=replace(a.row, name="other")), b], [c]],
            "codes": [[replace(a, codes=a.codes + 1), b], [c]],
            "frames": [[swapped, b], [c]],
            "shape": [[replace(a, codes=a.codes.reshape(2, 4)), b], [c]],
            "turns": [[b, a], [c]],
            "conversations": [[c], [a, b]],
            "grouping": [[a], [b, c]],
            "one less": [[a, b]],
            "one more": [[a, b], [c], [c]],
        }
        found = {name: data_fingerprint(data) for name, data in others.items()} | {"base": data_fingerprint(base)}
        assert len(set(found.values())) == len(found)
        moved = replace(a.row, audio=Path("/elsewhere/0.wav"), source=Path("/elsewhere/0.txt"), line=4)
        assert data_fingerprint([[replace(a, row=moved, codes=a.codes.astype(np.int16)), b], [c]]) == found["base"]

    def test_it_follows_the_files(self, tmp_path: Path, cache: CodeCache) -> None:
        def of(place: Path) -> str:
            return data_fingerprint(tokenise(read_data([place], speaker=0)[0], cache).conversations)

        first = of(voice_folder(tmp_path / "voice"))
        assert of(voice_folder(tmp_path / "moved")) == first
        sound(tmp_path / "moved/audio/clip2.wav", 1.5, 333)
        assert of(tmp_path / "moved") != first
        voice_folder(tmp_path / "moved")
        (tmp_path / "moved/transcripts/clip2.txt").write_text("These are the words of two.")
        assert of(tmp_path / "moved") != first


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert default_cache_folder() == tmp_path / "csm" / "codes"
    assert default_cache_folder().name == "codes"


def test_reading_data_imports_no_model_library() -> None:
    script = (
        "import sys, csm.data.codes, csm.data.manifest; "
        "print(sorted({'torch', 'transformers', 'scipy', 'soundfile', 'click', 'tinydb'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
