"""Sound that libsndfile does not read, through FFmpeg's libraries (PyAV): aac, m4a, mp4, wma, webm.

Truncation is judged by the length that the container declares; bare aac declares none, and is followed frame by frame.
A webm that was streamed, and never told its length, passes. A part of a long file is sought, not decoded from the beginning:
its samples are those of the whole, but for what a decoder makes up as noise, and for 3 ms in webm and wma, whose times are
in milliseconds. Of bare aac, which has no times, all before the part is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from csm.errors import CsmError

SUFFIXES = (".aac", ".m4a", ".mp4", ".wma", ".webm")
SLACK_SECONDS = 0.15  # encoders round lengths to their blocks
SEEK_SECONDS, LEAD_SECONDS = 5.0, 1.0  # parts from there on are sought; decoders begin so much earlier
ASF, EBML = bytes.fromhex("3026b2758e66cf11"), bytes.fromhex("1a45dfa3")


def is_container(path: Path) -> bool:
    """Whether a file begins as one of these."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" or head.startswith((ASF, EBML)) or _is_adts(head) or _tagged_aac(path, head)


def _is_adts(head: bytes) -> bool:
    return len(head) >= 7 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _tagged_aac(path: Path, head: bytes) -> bool:
    return head[:3] == b"ID3" and path.suffix.lower() == ".aac"


def read_container(
    path: Path, start: float | None = None, end: float | None = None, longest: float | None = None
) -> tuple[np.ndarray, int, float]:
    """The sound of a file, or its part from `start` to `end` seconds.

    Returns:
        the wave `(samples, channels)` float32, its rate in Hz, and the seconds of the file as far as it was decoded.

    Raises:
        CsmError: PyAV is not installed; the file cannot be decoded, is truncated, or lasts more than `longest` seconds.
    """
    av = _library(path)
    bare = _is_bare(path)
    if bare and end is None and _adts_is_cut(path):
        raise _truncated(path)
    try:
        with av.open(str(path)) as file:
            if not file.streams.audio:
                raise CsmError(f"{path} holds no sound.")
            stream = file.streams.audio[0]
            declared = None if bare else _declared(stream, file.duration)
            if longest is not None and start is None and end is None and (declared or 0) > longest:
                raise CsmError(f"{path} lasts {declared:.0f} s, and a clip has {longest:.0f} s at most.", "Cut it.")
            far = start if start and start >= SEEK_SECONDS and not bare else None
            frames, at = _sought(file, stream, far) if far else (file.decode(stream), 0)
            wave, rate, seconds = _decode(frames, at, int(stream.rate or 0), start, end)
    except av.error.FFmpegError as error:
        raise _unreadable(path, error) from error
    whole = end is None or seconds < end
    if whole and declared is not None and seconds < declared - SLACK_SECONDS:
        raise _truncated(path)
    return wave, rate, seconds


def _library(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise CsmError(f"{path} needs PyAV to be read.", "pip install 'csm-finetune[formats]'") from error
    av.logging.set_level(av.logging.PANIC)
    return av


def _unreadable(path: Path, error: Any) -> CsmError:
    return CsmError(f"{path} cannot be read as sound ({error.strerror}).", "Encode it again.")


def _truncated(path: Path) -> CsmError:
    return CsmError(f"{path} is truncated: it ends before the sound does.", "Copy or encode it again.")


def _is_bare(path: Path) -> bool:
    """Whether it is aac without a container, whose length FFmpeg guesses from its rate."""
    with open(path, "rb") as file:
        head = file.read(12)
    return _is_adts(head) or _tagged_aac(path, head)


def _declared(stream: Any, duration: int | None) -> float | None:
    """The seconds that the container declares; None where it says none."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if duration is None else duration / 1e6


def _sought(file: Any, stream: Any, start: float) -> tuple[Iterator[Any], int]:
    """The frames from shortly before `start` seconds on, and the number of the first one's first sample.

    All frames where the file does not say when its frames are, or cannot be entered there.
    """
    import av

    first = next(file.decode(stream), None)
    if first is not None and first.pts is not None:
        try:
            file.seek(first.pts + round((start - LEAD_SECONDS) / stream.time_base), stream=stream)
            frames = file.decode(stream)
            frame = next(frames, None)
        except av.error.FFmpegError:
            frame = None
        if frame is not None and frame.pts is not None:
            at = round((frame.pts - first.pts) * stream.time_base * stream.rate)
            if at <= start * stream.rate:
                return chain([frame], frames), at
    file.seek(0)
    return file.decode(stream), 0


def _decode(
    frames: Iterator[Any], at: int, rate: int, start: float | None, end: float | None
) -> tuple[np.ndarray, int, float]:
    """The samples between two times, and the seconds up to where frames were decoded; `at` is the first one's sample."""
    import av

    resampler, pieces = av.AudioResampler(format="fltp"), []
    first, last = round((start or 0.0) * rate), None if end is None else round(end * rate)
    for frame in frames:
        frame.pts = None
        for plain in resampler.resample(frame):
            samples = plain.to_ndarray()
            pieces.append(samples[:, max(0, first - at) : None if last is None else max(0, last - at)].copy())
            at += samples.shape[1]
        if last is not None and at >= last:
            break
    wave = np.concatenate(pieces, axis=1).T if pieces else np.zeros((0, 1), np.float32)
    return wave, rate, at / rate if rate else 0.0


def container_seconds(path: Path) -> float | None:
    """How long a file says that it lasts, None where it says nothing. Raises as `read_container`."""
    av = _library(path)
    try:
        with av.open(str(path)) as file:
            if _is_bare(path) or not file.streams.audio:
                return None
            return _declared(file.streams.audio[0], file.duration)
    except av.error.FFmpegError as error:
        raise _unreadable(path, error) from error


def _adts_is_cut(path: Path) -> bool:
    """Whether the last frame is longer than what is left of the file (ISO 14496-3, 1.A.3)."""
    data = path.read_bytes()
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        a, b, c, d = data[6:10]
        at = 10 + (a << 21 | b << 14 | c << 7 | d)
    while at < len(data):
        if data[at : at + 3] == b"TAG":
            return False
        if len(data) - at < 7:
            return True
        if not _is_adts(data[at : at + 7]):
            return False
        at += (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    return at > len(data)
