"""aac, m4a, wma and webm, encoded by PyAV here: read like wav, cut where asked, and told where they are truncated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csm import containers
from csm.audio import read_audio, resample, seconds_of
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_far_in_is_the_whole_cut_and_is_not_decoded_up_to(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate, draw = 24_000, np.random.default_rng(0)
    slow = np.interp(np.arange(60 * rate), np.arange(0, 60 * rate, 12), draw.standard_normal(5 * rate))
    path = encode(tmp_path / f"x.{kind}", (0.2 * np.tanh(slow)).astype(np.float32))
    whole, rate = read_audio(path)
    taken = []
    decode = containers._decode
    monkeypatch.setattr(containers, "_decode", lambda *given: taken.append(given[1]) or decode(*given))
    for start, end in ((50.0, 52.0), (4.0, 4.5), (58.5, None), (7.25, 60.5)):
        if end == 60.5:
            with pytest.raises(CsmError, match="has no part"):
                read_audio(path, start, end)
            continue
        part, _ = read_audio(path, start, end)
        right = whole[round(start * rate) : None if end is None else round(end * rate)]
        slack = 0 if kind in ("aac", "m4a") else round(0.003 * rate)
        assert abs(len(part) - len(right)) <= slack
        size = min(len(part), len(right)) - 2 * slack
        errors = [np.abs(part[slack + k :][:size] - right[slack:][:size]).mean() for k in range(-slack, slack + 1)]
        assert min(errors) < (1e-6 if slack == 0 else 0.1 * np.abs(right).mean())
    begun = [at / rate for at in taken]  # webm may be entered every five seconds
    assert begun == [0, 0, 0, 0] if kind == "aac" else begun[0] > 40 and begun[1] == 0 and begun[2] > 45


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_is_told_without_reading_all(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / f"x.{kind}", tones())
    wave, rate = read_audio(path)
    if kind != "aac":  # which declares none
        monkeypatch.setattr("csm.audio.read_audio", None)
    assert seconds_of(path) == pytest.approx(len(wave) / rate, abs=0.1)


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
