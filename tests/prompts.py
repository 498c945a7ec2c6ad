"""Debian's telephone prompts, for tests: four professional speakers, of whom one speaks English and Spanish."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

SOUNDS, DOCUMENTS = Path("/usr/share/asterisk/sounds"), Path("/usr/share/doc")
VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
RATE = 16_000
BYTES_A_SECOND = 8_000  # G.722 at 64 kbit/s


def require_prompts() -> None:
    """Skip the test where they are absent, with the reason; fail it in CI."""
    wanted = {f"asterisk-core-sounds-{language}-g722": (SOUNDS / voice).is_dir() for language, voice in VOICES.items()}
    wanted |= {f"asterisk-core-sounds-{language}": _list(language).is_file() for language in VOICES}
    absent = [name for name, there in {**wanted, "ffmpeg": shutil.which("ffmpeg")}.items() if not there]
    if absent and os.environ.get("CI") == "true":
        pytest.fail(f"not installed: {', '.join(absent)}")
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")


def read_prompts(
    language: str, every: int, first: int = 0, seconds: tuple[float, float] = (2, 8)
) -> dict[str, np.ndarray]:
    """Prompts that are words alone: text -> wave `(samples,)` at 16 kHz, every so many-th by name."""
    lines = gzip.decompress(_list(language).read_bytes()).decode().splitlines()
    texts = dict(re.split(r":\s*", line, maxsplit=1) for line in lines if ":" in line and not line.startswith(";"))
    low, high = seconds
    paths = sorted((SOUNDS / VOICES[language]).glob("*.g722"))
    lasting = [path for path in paths if low <= path.stat().st_size / BYTES_A_SECOND <= high]
    usable = [path for path in lasting if re.fullmatch(r"[^\W\d_][^\d\[\]|<>]{9,}", texts.get(path.stem, ""))]
    chosen = usable[first::every]
    return dict(zip([texts[path.stem] for path in chosen], _decode(chosen), strict=True))


def _list(language: str) -> Path:
    return DOCUMENTS / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"


def _decode(paths: list[Path]) -> list[np.ndarray]:
    """All of them through one ffmpeg: two samples a byte."""
    command = ["ffmpeg", "-loglevel", "error", "-f", "g722", "-i", "-", "-f", "f32le", "-"]
    data = b"".join(path.read_bytes() for path in paths)
    sound = subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout
    ends = np.cumsum([2 * path.stat().st_size for path in paths])[:-1]
    return np.split(np.frombuffer(sound, np.float32), ends)
