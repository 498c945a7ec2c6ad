"""aac, m4a, wma and webm, encoded by PyAV here: read like wav, cut where asked, and told where they are truncated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csm.audio import read_audio, resample
from csm.containers import is_container
from csm.data.clips import load_sound
from csm.data.faults import Fault
from csm.errors import CsmError

av = pytest.importorskip("av")
KINDS = {"aac": ("adts", "aac"), "m4a": ("mp4", "aac"), "wma": ("asf", "wmav2"), "webm": ("webm", "libopus")}


def tones(seconds: float = 2.0, rate: int = 24_000) -> np.ndarray:
    """220 Hz, and from the middle on 440 Hz."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.2 * np.sin(2 * np.pi * np.where(time < seconds / 2, 220, 440) * time)).astype(np.float32)


def encode(path: Path, wave: np.ndarray, rate: int = 24_000, channels: int = 1) -> Path:
    kind, codec = KINDS[path.suffix[1:]]
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(str(path), "w", format=kind) as file:
        stream = file.add_stream(codec, rate=48_000 if codec == "libopus" else rate, layout=layout)
        stream.bit_rate = 96_000
        fifo = av.AudioResampler(format=stream.format, layout=layout, rate=stream.rate)
        for at in range(0, len(wave), 1024):
            piece = np.repeat(wave[None, at : at + 1024], channels, axis=0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=layout)
            frame.rate, frame.pts = rate, at
            for plain in fifo.resample(frame):
                file.mux(stream.encode(plain))
        for plain in fifo.resample(None):
            file.mux(stream.encode(plain))
        file.mux(stream.encode(None))
    return path


def hertz(wave: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sound_is_the_one_encoded(tmp_path: Path, kind: str, channels: int) -> None:
    path = encode(tmp_path / f"x.{kind}", tones(), channels=channels)
    assert is_container(path)
    wave, rate = read_audio(path)
    assert len(wave) / rate == pytest.approx(2.0, abs=0.06)
    plain = resample(wave, rate, 24_000)
    assert hertz(plain[4_000:20_000], 24_000) == pytest.approx(220, abs=2)
    assert hertz(plain[28_000:44_000], 24_000) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.2 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_the_whole_cut(tmp_path: Path, kind: str) -> None:
    path = encode(tmp_path / f"x.{kind}", tones())
    whole, rate = read_audio(path)
    part, _ = read_audio(path, 0.5, 1.25)
    np.testing.assert_array_equal(part, whole[round(0.5 * rate) : round(1.25 * rate)])
    tail, _ = read_audio(path, 1.5)
    np.testing.assert_array_equal(tail, whole[round(1.5 * rate) :])
    with pytest.raises(CsmError, match="has no part from 5 to 6 s"):
        read_audio(path, 5, 6)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    data = encode(tmp_path / f"x.{kind}", tones()).read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CsmError, match=r"is truncated|cannot be read as sound") as caught:
        read_audio(path)
    assert str(path) in caught.value.message


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.m4a", tones()).rename(tmp_path / "x.wav")
    assert len(read_audio(path)[0]) / 24_000 == pytest.approx(2.0, abs=0.06)


@pytest.mark.parametrize("kind", ["m4a", "webm"])
def test_a_film_without_sound(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    codec = {"m4a": "mpeg4", "webm": "libvpx"}[kind]
    with av.open(str(path), "w", format=KINDS[kind][0]) as file:
        stream = file.add_stream(codec, rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(CsmError, match="holds no sound"):
        read_audio(path)


def test_without_pyav_a_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "x.m4a", tones())
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(CsmError) as caught:
        read_audio(path)
    assert "PyAV" in caught.value.message
    assert "csm-finetune[formats]" in (caught.value.hint or "")


@pytest.mark.slow
def test_ten_minutes_are_no_clip(tmp_path: Path) -> None:
    path = encode(tmp_path / "x.m4a", tones(601.0, 8_000), 8_000)
    fault = load_sound(path)
    assert isinstance(fault, Fault)
    assert "lasts 601 s" in fault.message
