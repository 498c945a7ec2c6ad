"""Sound that libsndfile does not read, through FFmpeg's libraries (PyAV): aac, m4a, mp4, wma, webm.

Truncation is judged by the length that the container declares; bare aac declares none, and is followed frame by frame.
A webm that was streamed, and never told its length, passes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from csm.errors import CsmError

SUFFIXES = (".aac", ".m4a", ".mp4", ".wma", ".webm")
SLACK_SECONDS = 0.15  # encoders round lengths to their blocks
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
    try:
        import av
    except ImportError as error:
        raise CsmError(f"{path} needs PyAV to be read.", "pip install 'csm-finetune[formats]'") from error
    av.logging.set_level(av.logging.PANIC)
    bare = _is_bare(path)
    if bare and _adts_is_cut(path):
        raise _truncated(path)
    try:
        with av.open(str(path)) as file:
            if not file.streams.audio:
                raise CsmError(f"{path} holds no sound.")
            stream = file.streams.audio[0]
            declared = None if bare else _declared(stream, file.duration)
            if longest is not None and start is None and end is None and (declared or 0) > longest:
                raise CsmError(f"{path} lasts {declared:.0f} s, and a clip has {longest:.0f} s at most.", "Cut it.")
            wave, rate, seconds = _decode(file, stream, start, end)
    except av.error.FFmpegError as error:
        raise CsmError(f"{path} cannot be read as sound ({error.strerror}).", "Encode it again.") from error
    whole = end is None or seconds < end
    if whole and declared is not None and seconds < declared - SLACK_SECONDS:
        raise _truncated(path)
    return wave, rate, seconds


def _truncated(path: Path) -> CsmError:
    return CsmError(f"{path} is truncated: it ends before the sound does.", "Copy or encode it again.")


def _is_bare(path: Path) -> bool:
    """Whether it is aac without a container, whose length FFmpeg guesses from its rate."""
    with open(path, "rb") as file:
        head = file.read(12)
    return _is_adts(head) or _tagged_aac(path, head)


def _declared(stream: object, duration: int | None) -> float | None:
    """The seconds that the container declares; None where it says none."""
    own, base = getattr(stream, "duration", None), getattr(stream, "time_base", None)
    if own is not None and base is not None:
        return float(own * base)
    return None if duration is None else duration / 1e6


def _decode(file: object, stream: object, start: float | None, end: float | None) -> tuple[np.ndarray, int, float]:
    """The samples between two times, and the seconds decoded to find them."""
    import av

    resampler = av.AudioResampler(format="fltp")
    pieces, at, rate = [], 0, int(stream.rate or 0)  # type: ignore[attr-defined]
    first, last = round((start or 0.0) * rate), None if end is None else round(end * rate)
    for frame in file.decode(stream):  # type: ignore[attr-defined]
        frame.pts = None
        for plain in resampler.resample(frame):
            samples = plain.to_ndarray()
            pieces.append(samples[:, max(0, first - at) : None if last is None else max(0, last - at)].copy())
            at += samples.shape[1]
        if last is not None and at >= last:
            break
    wave = np.concatenate(pieces, axis=1).T if pieces else np.zeros((0, 1), np.float32)
    return wave, rate, at / rate if rate else 0.0


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
