"""Sound files become clips or faults: real files of every kind, whole and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
from conftest import load_clip

from csm import audio
from csm.audio import read_audio, write_wave
from csm.data import clips
from csm.data.clips import clipped_share, load_sound, text_fault
from csm.data.faults import Fault
from csm.data.row import Row
from csm.errors import CsmError

TEXT = "A sentence that takes a moment to say."
SUBTYPES = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


def voice(seconds: float = 2.0, rate: int = 24_000, hertz: float = 220.0) -> np.ndarray:
    """A tone that swells four times a second, with a harmonic: loud and soft like speech, never at full scale."""
    t = np.arange(round(seconds * rate)) / rate
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * t)
    return (0.2 * swell * (np.sin(2 * np.pi * hertz * t) + 0.5 * np.sin(4 * np.pi * hertz * t))).astype(np.float32)


def store(path: Path, wave: np.ndarray, rate: int = 24_000, subtype: str | None = None) -> Path:
    kind, usual = SUBTYPES[path.suffix[1:]]
    soundfile.write(path, wave, rate, format=kind, subtype=subtype or usual)
    return path


def row_of(path: Path, text: str = TEXT) -> Row:
    return Row(path.stem, path, text, 0, path.with_suffix(".txt"))


def strongest_hertz(wave: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


@pytest.mark.parametrize("suffix", sorted(SUBTYPES))
@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_every_format_becomes_the_same_clip(tmp_path: Path, suffix: str, rate: int) -> None:
    clip = load_clip(row_of(store(tmp_path / f"x.{suffix}", voice(rate=rate), rate)))
    assert isinstance(clip, np.ndarray)
    assert clip.dtype == np.float32
    assert clip.ndim == 1
    assert len(clip) / 24_000 == pytest.approx(2.0, abs=0.1)
    assert strongest_hertz(clip, 24_000) == pytest.approx(220, abs=1)
    assert pyloudnorm.Meter(24_000).integrated_loudness(clip.astype(float)) == pytest.approx(-23, abs=0.1)


def test_8_khz_stereo_becomes_24_khz_mono(tmp_path: Path) -> None:
    stereo = np.stack([voice(rate=8000), 0.5 * voice(rate=8000)], axis=1)
    clip = load_clip(row_of(store(tmp_path / "phone.wav", stereo, 8000)))
    assert isinstance(clip, np.ndarray)
    assert clip.shape == (48_000,)
    assert strongest_hertz(clip, 24_000) == pytest.approx(220, abs=1)


def test_loudness_does_not_depend_on_the_recording(tmp_path: Path) -> None:
    waves = [
        load_sound(store(tmp_path / f"{i}.wav", gain * voice(), subtype="FLOAT")) for i, gain in enumerate((0.05, 1, 2))
    ]
    assert not any(isinstance(wave, Fault) for wave in waves)
    np.testing.assert_allclose(waves[0], waves[1], atol=1e-5)
    np.testing.assert_allclose(waves[2], waves[1], atol=1e-5)


def test_quiet_ends_are_trimmed_and_may_be_kept(tmp_path: Path) -> None:
    rest = np.zeros(24_000, np.float32)
    path = store(tmp_path / "x.wav", np.concatenate([rest, voice(1.0), rest]))
    trimmed, whole = load_clip(row_of(path)), load_clip(row_of(path), trim=False)
    assert isinstance(trimmed, np.ndarray)
    assert isinstance(whole, np.ndarray)
    assert len(trimmed) / 24_000 == pytest.approx(1.0 + 2 * clips.TRIM_KEEP_SECONDS, abs=0.03)
    assert len(whole) == 3 * 24_000


def test_the_clip_comes_at_the_rate_asked_for(tmp_path: Path) -> None:
    clip = load_clip(row_of(store(tmp_path / "x.wav", voice())), sample_rate=16_000)
    assert isinstance(clip, np.ndarray)
    assert len(clip) == 32_000


def with_nan() -> np.ndarray:
    wave = voice()
    wave[7000] = np.nan
    return wave


def sparse(seconds: float) -> np.ndarray:
    """Long and quick to level: mostly zeros, loud at both ends."""
    wave = np.zeros(round(seconds * 8000), np.float32)
    wave[:4000] = wave[-4000:] = voice(0.5, 8000)
    return wave


BROKEN_WAVES = {
    "silence": (np.zeros(48_000), 24_000, "is silent"),
    "hiss": (10 ** (-56 / 20) * np.random.default_rng(0).uniform(-1, 1, 48_000), 24_000, "is silent: its peak is -56"),
    "nan": (with_nan(), 24_000, "not numbers"),
    "infinite": (np.where(np.isnan(with_nan()), np.inf, voice()), 24_000, "not numbers"),
    "short": (voice(0.25), 24_000, "is too short: 0.25 s"),
    "click": (np.concatenate([np.zeros(24_000), voice(0.05), np.zeros(24_000)]), 24_000, "is too short"),
    "long": (sparse(91), 8000, "is too long: 91 s"),
    "clipped": (np.clip(12 * voice(), -1, 1), 24_000, "is clipped"),
    "no samples": (np.zeros(0), 24_000, "holds no samples"),
    "rate": (voice(), 100, "sample rate of 100 Hz"),
}


@pytest.mark.parametrize("name", BROKEN_WAVES)
def test_broken_waves_are_faults(tmp_path: Path, name: str) -> None:
    wave, rate, told = BROKEN_WAVES[name]
    path = store(tmp_path / f"{name}.wav", wave.astype(np.float32), rate, "FLOAT")
    fault = load_clip(row_of(path))
    assert isinstance(fault, Fault)
    assert fault.file == path
    assert fault.text.startswith(f"{path} ")
    assert told in fault.text
    assert fault.text.count(str(path)) == 1


def test_just_inside_the_limits_is_used(tmp_path: Path) -> None:
    quiet = (10 ** (-48 / 20) / np.abs(voice()).max() * voice()).astype(np.float32)
    touched = 2 * voice()
    touched[:200] = 1.0  # 0.4 % of it
    for i, (wave, rate) in enumerate([(quiet, 24_000), (touched, 24_000), (voice(0.35), 24_000), (sparse(89), 8000)]):
        path = store(tmp_path / f"{i}.wav", wave, rate, "FLOAT")
        assert not isinstance(load_sound(path), Fault), i


def test_bytes_that_are_no_sound_are_faults(tmp_path: Path) -> None:
    cases = {
        "text.wav": b"It is only text.\n" * 99,
        "empty.wav": b"",
        "empty.mp3": b"",
        "text.ogg": b"words",
        "n.flac": b"fLaC",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        fault = load_clip(row_of(tmp_path / name))
        assert isinstance(fault, Fault), name
        assert ("empty file" if not content else "cannot be read as sound") in fault.text
    for path, told in ((tmp_path / "gone.wav", "is not there"), (tmp_path, "is not a file")):
        fault = load_clip(row_of(path))
        assert isinstance(fault, Fault)
        assert fault.text == f"{path} {told}."


@pytest.mark.parametrize("suffix", sorted(SUBTYPES))
def test_half_a_file_is_a_fault(tmp_path: Path, suffix: str) -> None:
    data = store(tmp_path / f"whole.{suffix}", voice()).read_bytes()
    half = tmp_path / f"half.{suffix}"
    for share in (0.3, 0.5, 0.77, 0.95):
        half.write_bytes(data[: int(len(data) * share) | 1])
        fault = load_clip(row_of(half))
        assert isinstance(fault, Fault), share
        assert any(told in fault.text for told in ("truncated", "cannot be read", "no samples"))


@pytest.mark.parametrize("suffix", sorted(SUBTYPES))
def test_damage_anywhere_is_a_fault_or_a_wave(tmp_path: Path, suffix: str) -> None:
    data = store(tmp_path / f"whole.{suffix}", voice(0.5)).read_bytes()
    damaged, random = tmp_path / f"damaged.{suffix}", np.random.default_rng(0)
    samples = [data[:end] for end in (1, 4, 5, 12, 27, 44, 45, 100, data.rfind(b"OggS") + 5, len(data) - 1)]
    for _ in range(40):
        spoilt = bytearray(data)
        for at in random.integers(0, min(120, len(data)), 3):
            spoilt[at] = random.integers(256)
        samples.append(bytes(spoilt))
    for sample in samples:
        damaged.write_bytes(sample)
        result = load_sound(damaged)
        assert isinstance(result, Fault) or (np.isfinite(result).all() and len(result) >= 0.3 * 24_000)


class TestText:
    def fault(self, characters: int, seconds: float) -> Fault | None:
        return text_fault(Row("x", Path("x.wav"), "a" * characters, 0, Path("x.txt")), seconds)

    def test_limits(self) -> None:
        assert [self.fault(n, 1.0) is None for n in (1, 15, 40, 41, 400)] == [True, True, True, False, False]
        assert [self.fault(n, 20.0) is None for n in (1, 9, 10)] == [False, False, True]

    def test_the_fault_names_sound_and_text(self) -> None:
        fault = text_fault(Row("x", Path("x.wav"), "a" * 120, 0, Path("data.json"), 12), 1.5)
        assert fault == Fault(
            Path("x.wav"),
            "does not fit its text in data.json, line 12: 120 characters are too many for 1.5 s of speech",
        )

    def test_it_is_asked_of_the_trimmed_sound(self, tmp_path: Path) -> None:
        wave = np.concatenate([np.zeros(48_000, np.float32), voice(0.5), np.zeros(48_000, np.float32)])
        row = row_of(store(tmp_path / "x.wav", wave))
        assert isinstance(load_clip(row), Fault)
        assert isinstance(load_clip(row, trim=False), np.ndarray)


def test_clipping_counts_runs_at_full_scale_alone() -> None:
    wave = np.zeros(100, np.float32)
    wave[[5, 6, 20, 40]] = 1
    assert clipped_share(wave) == 0
    wave[50:53], wave[60:64] = 1, -1
    wave[90:93] = (1, -1, 1)
    assert clipped_share(wave) == pytest.approx(0.10)
    assert clipped_share(np.ones(2, np.float32)) == 0
    t = np.arange(24_000) / 24_000
    for hertz in (70, 110, 440):
        assert clipped_share(np.sin(2 * np.pi * hertz * t).astype(np.float32)) <= 0.01


def test_settings_tell_what_is_done() -> None:
    for value in (audio.TARGET_LUFS, clips.TRIM_BELOW_PEAK_DB, clips.TRIM_KEEP_SECONDS, clips.SHORTEST_SECONDS):
        assert str(value) in clips.SETTINGS


class TestParts:
    def test_a_part_is_the_samples_between_its_seconds(self, tmp_path: Path) -> None:
        path = tmp_path / "long.wav"
        wave, rate = np.linspace(-0.5, 0.5, 48_000, dtype=np.float32), 24_000
        write_wave(path, wave, rate)
        whole, _ = read_audio(path)
        part, _ = read_audio(path, 0.5, 1.25)
        rest, _ = read_audio(path, 1.5)
        assert np.array_equal(part, whole[12_000:30_000])
        assert np.array_equal(rest, whole[36_000:])

    @pytest.mark.parametrize(("start", "end"), [(1.0, 3.0), (2.5, None), (1.0, 0.5), (-1.0, 1.0)])
    def test_a_part_that_is_not_there_is_named(self, tmp_path: Path, start: float, end: float | None) -> None:
        write_wave(tmp_path / "x.wav", np.full(48_000, 0.1, np.float32), 24_000)
        with pytest.raises(CsmError, match=r"lasts 2\.00 s and has no part from"):
            read_audio(tmp_path / "x.wav", start, end)
