"""--denoise against noise that the test added itself: what it takes, what it leaves, what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import spoken, write_clips

from csm.audio import read_audio
from csm.cli.finetune import main
from csm.data import denoise as module
from csm.data.denoise import denoise, reduce_noise
from csm.data.row import Row
from csm.errors import CsmError

RATES = [16_000, 24_000, 44_100, 48_000]


def clean(rate: int) -> np.ndarray:
    """Speech-like sounds with pauses."""
    pause = np.zeros(round(0.6 * rate), np.float32)
    return np.concatenate([part for n in range(3) for part in (pause, spoken(1.2, n, rate))] + [pause])


def noise(length: int, dbfs: float) -> np.ndarray:
    return (10 ** (dbfs / 20) * np.random.default_rng(0).standard_normal(length)).astype(np.float32)


def distance(wave: np.ndarray, other: np.ndarray) -> float:
    """How far `other` lies below `wave`'s error, in dB."""
    return float(10 * np.log10(np.sum(wave**2) / np.sum((wave - other) ** 2)))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("dbfs", [-50.0, -35.0])
def test_noise_goes_and_speech_stays(rate: int, dbfs: float) -> None:
    wave = clean(rate)
    noisy = wave + noise(len(wave), dbfs)
    after = reduce_noise(noisy, rate)
    assert after.shape == wave.shape
    assert after.dtype == np.float32
    assert distance(wave, after) > distance(wave, noisy) + 1
    pause = slice(round(0.1 * rate), round(0.5 * rate))
    assert np.std(after[pause]) < 0.4 * np.std(noisy[pause])


def test_a_recording_without_noise_stays_as_it_is() -> None:
    wave = np.concatenate([np.zeros(16_000, np.float32), spoken(1.5, 0, 16_000), np.zeros(16_000, np.float32)])
    assert np.array_equal(reduce_noise(wave, 16_000), wave)


def test_parts_of_a_file_share_its_denoised_file_and_keep_their_places(tmp_path: Path) -> None:
    wave = clean(16_000)
    soundfile.write(tmp_path / "a.wav", wave + noise(len(wave), -40), 16_000)
    (tmp_path / "b.wav").write_text("no sound")
    rows = [Row("a", tmp_path / "a.wav", "hello", 2, tmp_path / "t.csv", n, n - 1.0, float(n)) for n in (1, 2)]
    broken = Row("b", tmp_path / "b.wav", "hello", 2, tmp_path / "t.csv", 3)
    done = denoise([rows, [broken]], tmp_path / "cache")
    assert [(row.start, row.end, row.line) for row in done.conversations[0]] == [(0.0, 1.0, 1), (1.0, 2.0, 2)]
    assert len({row.audio for row in done.conversations[0]}) == 1
    assert [fault.file for fault in done.faults] == [tmp_path / "b.wav"]
    before, after = read_audio(tmp_path / "a.wav")[0], read_audio(done.conversations[0][0].audio)[0]
    assert len(before) == len(after)
    change = done.changes[tmp_path / "a.wav"]
    assert change.floor_before == pytest.approx(-40, abs=2)
    assert change.floor_after < change.floor_before - 8
    assert change.loud_after == pytest.approx(change.loud_before, abs=0.5)
    assert re.match(r"1 recordings; noise floor -4\d dBFS, now -\d\d; loud parts", done.describe())


def test_a_recording_is_denoised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", clean(16_000) + 0.001, 16_000)
    row = Row("a", tmp_path / "a.wav", "hello", 0, tmp_path / "a.txt")
    first = denoise([[row]], tmp_path / "cache")
    monkeypatch.setattr(module, "reduce_noise", lambda *_: pytest.fail("again"))
    assert denoise([[row]], tmp_path / "cache") == first
    first.conversations[0][0].audio.unlink()
    monkeypatch.setattr(module, "reduce_noise", reduce_noise)
    assert denoise([[row]], tmp_path / "cache") == first, "a lost file is made again"


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CsmError, match="needs noisereduce, which is not installed") as error:
        denoise([], tmp_path)
    assert "csm-finetune[denoise]" in str(error.value)


def test_the_command_says_what_changed_and_learns_from_other_codes(tmp_path: Path, toy_folder: Path) -> None:
    write_clips(tmp_path / "data", 3)
    for path in (tmp_path / "data" / "audio").iterdir():
        wave, rate = soundfile.read(path, dtype="float32")
        soundfile.write(path, wave + noise(len(wave), -35), rate)
    prints = []
    for name, flags in (("plain", []), ("quiet", ["--denoise"])):
        words = [
            "voice-adapt", "--model-path", toy_folder, "--data-path", tmp_path / "data", "--speaker-id", 0, "--output-dir",
            tmp_path / name, "--max-steps", 1, "--threads", 1, "--val-split", 0, "--cache-dir", tmp_path / "cache", *flags,
        ]  # fmt: skip
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.stderr
        assert ("denoise: 3 recordings; noise floor" in done.stderr) == bool(flags)
        prints.append(re.search(r'"fingerprint": "(\w+)"', (tmp_path / name / "lineage.json").read_text())[1])  # type: ignore[index]
    assert prints[0] != prints[1]
