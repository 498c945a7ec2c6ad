"""Sound files and waves: read, resample, level, trim, write. A wave is float32 `(samples,)`, mono, in -1..1.

Limits: reads what libsndfile reads (wav, flac, ogg, opus, mp3), and through PyAV what `csm.containers` names. Truncation
is judged from the container's own declared length where it has one (wav, flac, ogg) and from an abrupt end in mp3,
which declares none.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from csm import containers
from csm.errors import CsmError
from csm.loudness import integrated_loudness

SAMPLE_RATE = 24_000
TARGET_LUFS = -23.0
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", *containers.SUFFIXES)


def read_audio(
    path: str | Path, start: float | None = None, end: float | None = None, longest: float | None = None
) -> tuple[np.ndarray, int]:
    """Read a sound file, or the part of it from `start` to `end` seconds, as one mono wave at its own rate.

    Returns:
        the wave `(samples,)` float32, channels averaged, and the sample rate in Hz.

    Raises:
        CsmError: the file is missing, is no sound file, is empty, is truncated, lasts more than `longest` seconds (and
            no part of it is asked for), or holds values that are no numbers; the part does not lie in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CsmError(f"{path} is not there." if not path.exists() else f"{path} is not a file.")
    if path.stat().st_size == 0:
        raise CsmError(f"{path} is an empty file.")
    if path.suffix.lower() == ".raw":
        raise CsmError(f"{path} is sound without a header.", f"Readable are {', '.join(SUFFIXES)}.")
    if containers.is_container(path):
        wave, rate, seconds = containers.read_container(path, start, end, longest)
        if start is not None or end is not None:
            _part(path, start, end, seconds, rate)
    else:
        wave, rate = _read_sound(path, start, end, longest)
    if len(wave) == 0:
        raise CsmError(f"{path} holds no samples.")
    if not np.isfinite(wave).all():
        raise CsmError(f"{path} holds samples that are not numbers (NaN or infinity).")
    return np.ascontiguousarray(wave.mean(axis=1)), rate


def _read_sound(path: Path, start: float | None, end: float | None, longest: float | None) -> tuple[np.ndarray, int]:
    """What libsndfile reads: the wave `(samples, channels)` and its rate."""
    import soundfile

    try:
        with _quiet(path), soundfile.SoundFile(path) as file:
            rate, declared = file.samplerate, file.frames
            first, count = 0, -1
            if start is not None or end is not None:
                first, count = _part(path, start, end, declared / rate, rate)
                file.seek(first)
            elif longest is not None and declared > longest * rate:
                raise CsmError(
                    f"{path} lasts {declared / rate:.0f} s, and a clip has {longest:.0f} s at most.", "Cut it."
                )
            wave = file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).removeprefix("Error : ").rstrip(".")
        if reason.startswith("File does not exist"):  # what libsndfile says of an .mp3 that holds none
            reason = "Format not recognised"
        raise CsmError(f"{path} cannot be read as sound ({reason}).", f"Readable are {', '.join(SUFFIXES)}.") from error
    except MemoryError as error:
        raise CsmError(f"{path} declares more sound than memory holds.", "Encode it again.") from error
    if len(wave) and (len(wave) < count if count >= 0 else _is_truncated(path, declared, first + len(wave))):
        raise CsmError(f"{path} is truncated: it ends before the sound does.", "Copy or encode it again.")
    return wave, rate


def _part(path: Path, start: float | None, end: float | None, seconds: float, rate: int) -> tuple[int, int]:
    """The first sample and the number of samples of a part; -1 samples reach to the end."""
    first, last = start or 0.0, seconds if end is None else end
    count = round(min(last, seconds) * rate) - round(first * rate)
    if first < 0 or count <= 0 or last > seconds + 0.05:  # ends are often rounded up
        raise CsmError(f"{path} lasts {seconds:.2f} s and has no part from {first:g} to {last:g} s.")
    return round(first * rate), -1 if end is None else count


def seconds_of(path: str | Path) -> float | None:
    """How long a sound file lasts, by its header where that says so; None for what `read_audio` refuses."""
    import soundfile

    path = Path(path)
    try:
        if path.is_file() and containers.is_container(path):
            if (seconds := containers.container_seconds(path)) is not None:
                return seconds
        else:
            with _QuietStderr():
                return float(soundfile.info(str(path)).duration)
    except (soundfile.LibsndfileError, TypeError):  # a header without samples
        pass
    except (CsmError, OSError):
        return None
    try:
        wave, rate = read_audio(path)
    except (CsmError, OSError):
        return None
    return len(wave) / rate


def load_wave(path: str | Path, rate: int = SAMPLE_RATE) -> np.ndarray:
    """The file's mono wave `(samples,)` at `rate` Hz. Raises as `read_audio`."""
    wave, own_rate = read_audio(path)
    return resample(wave, own_rate, rate)


def resample(wave: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    """The wave `(samples,)` at another rate in Hz, by soxr at its very high quality."""
    if rate == to_rate:
        return wave
    import soxr

    return soxr.resample(wave, rate, to_rate, quality="VHQ").astype(np.float32)


def normalise_loudness(wave: np.ndarray, rate: int, target_lufs: float = TARGET_LUFS) -> np.ndarray:
    """The wave at `target_lufs` (ITU-R BS.1770), turned down where its peak would pass 0.99.

    A clip below 0.4 s, shorter than the standard's block, is levelled by its RMS; silence is returned as it is.
    """
    measured = loudness(wave, rate)
    if measured is None:
        return wave
    gain = min(10 ** ((target_lufs - measured) / 20), 0.99 / float(np.abs(wave).max()))
    return (wave * np.float32(gain)).astype(np.float32)


def loudness(wave: np.ndarray, rate: int) -> float | None:
    """The loudness in LUFS (ITU-R BS.1770), by RMS below the standard's block of 0.4 s; None for silence."""
    rms = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0
    if rms < 1e-6:
        return None
    measured = integrated_loudness(wave, rate)
    return -0.691 + 20 * np.log10(rms) if measured is None else measured


def frame_levels(wave: np.ndarray, rate: int, hop_seconds: float = 0.01) -> np.ndarray:
    """RMS level in dBFS of consecutive pieces of `hop_seconds`, `(pieces,)`; silence is -120."""
    hop = max(1, round(rate * hop_seconds))
    padded = np.pad(wave, (0, -len(wave) % hop)).reshape(-1, hop)
    power = np.mean(np.square(padded, dtype=np.float64), axis=1)
    return 10 * np.log10(np.maximum(power, 1e-12))


def trim(wave: np.ndarray, rate: int, below_peak_db: float = 40.0, keep_seconds: float = 0.1) -> np.ndarray:
    """The wave without the quiet at its ends: from the first 10 ms within `below_peak_db` of the loudest to the last.

    `keep_seconds` of what lay outside stay on each side, so that soft onsets live.
    """
    first, last = sounding_span(wave, rate, below_peak_db)
    keep = round(rate * keep_seconds)
    return wave[max(0, first - keep) : last + keep] if last else wave[:0]


def sounding_span(wave: np.ndarray, rate: int, below_peak_db: float = 40.0) -> tuple[int, int]:
    """From where to where, in samples, a wave sounds: the first and last 10 ms as `trim` finds them; (0, 0) for silence."""
    levels = frame_levels(wave, rate)
    loud = np.flatnonzero(levels > max(levels.max(initial=-np.inf) - below_peak_db, -70))
    hop = round(rate * 0.01)
    return (int(loud[0]) * hop, (int(loud[-1]) + 1) * hop) if len(loud) else (0, 0)


def write_wave(path: str | Path, wave: np.ndarray, rate: int = SAMPLE_RATE) -> None:
    """Write a 16-bit wav (flac by its suffix): beside the target first, then swapped in, so no half file appears.

    Raises:
        CsmError: the wave is empty or not finite, or the folder cannot be written.
    """
    import soundfile

    path = Path(path)
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1 or len(wave) == 0 or not np.isfinite(wave).all():
        raise CsmError(f"{path} was not written: the sound is empty or not finite.")
    kind = {".wav": "WAV", ".flac": "FLAC"}.get(path.suffix.lower())
    if kind is None:
        raise CsmError(f"{path} has a suffix that cannot be written.", "Use .wav or .flac.")
    encoded = io.BytesIO()  # in memory first: libsndfile tells no reason when a disk is full
    soundfile.write(encoded, np.clip(wave, -1, 1), rate, format=kind, subtype="PCM_16")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    try:
        with open(handle, "wb") as file:
            file.write(encoded.getvalue())
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def _quiet(path: Path) -> AbstractContextManager[None]:
    """Keeps libmpg123 from printing its complaints; the other decoders print none."""
    with open(path, "rb") as file:
        return nullcontext() if file.read(4) in (b"RIFF", b"fLaC", b"OggS") else _QuietStderr()


class _QuietStderr:
    """What libraries print to file descriptor 2 is dropped; one thread at a time."""

    _lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self.saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *_: object) -> None:
        os.dup2(self.saved, 2)
        os.close(self.saved)
        self._lock.release()


def _is_truncated(path: Path, declared: int, decoded: int) -> bool:
    data = path.read_bytes()
    if data[:4] == b"RIFF":
        return _riff_is_cut(data)
    if data[:4] == b"OggS":
        return _ogg_is_cut(data)
    if path.suffix.lower() == ".mp3":
        return decoded < 0.98 * declared - 2400 or _mp3_is_cut(data)
    return decoded < declared


def _ogg_is_cut(data: bytes) -> bool:
    """Whether the last page is not flagged as the stream's end, or is longer than the file (RFC 3533, section 6)."""
    page = data[data.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:
        return True
    sizes = page[27 : 27 + page[26]]
    return len(page) < 27 + page[26] + sum(sizes)


def _riff_is_cut(data: bytes) -> bool:
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"data":
            return size < 0xFFFFFF00 and at + 8 + size > len(data)  # writers to a pipe declare the highest sizes
        at += 8 + size + size % 2
    return True


_MP3_KBPS = {  # by "is MPEG-1"
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mp3_is_cut(data: bytes) -> bool:
    """Whether the last layer-III frame is longer than what is left of the file (ISO 11172-3, section 2.4.1.3)."""
    at = data.find(b"\xff", _id3_length(data))
    while 0 <= at <= len(data) - 4:
        length = _mp3_frame_length(data[at : at + 4])
        if length is None:
            return False  # tags or padding follow the sound
        if at + length > len(data):
            return True
        at += length
    return False


def _id3_length(data: bytes) -> int:
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    a, b, c, d = data[6:10]
    return 10 + (a << 21 | b << 14 | c << 7 | d)


def _mp3_frame_length(header: bytes) -> int | None:
    version, layer, kbps, rate = header[1] >> 3 & 3, header[1] >> 1 & 3, header[2] >> 4, header[2] >> 2 & 3
    if header[0] != 0xFF or header[1] < 0xE0 or layer != 1 or version == 1 or rate == 3 or kbps in (0, 15):
        return None
    samples = 144 if version == 3 else 72
    bits = _MP3_KBPS[version == 3][kbps] * 1000
    return samples * bits // _MP3_RATES[version][rate] + (header[2] >> 1 & 1)
