"""Human recordings in four languages: Debian's telephone prompts as LJSpeech has them, and as conversation folders.

Packages: asterisk-core-sounds-{es,fr,it,ru} and their -g722 (16 kHz, CC-BY-SA-3.0), ffmpeg.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import load_clip

from csm.cli.finetune import main
from csm.data.faults import Fault
from csm.data.manifest import read_data
from csm.data.row import Row, clean_text

pytestmark = [pytest.mark.slow, pytest.mark.debian]

SOUNDS, DOCUMENTS = Path("/usr/share/asterisk/sounds"), Path("/usr/share/doc")
VOICES = {"es": "es_MX_f_Allison", "fr": "fr_CA_f_June", "it": "it_IT_m_Carlo", "ru": "ru_RU_f_IvrvoiceRU"}
PROMPTS = 10
BYTES_A_SECOND = 8_000  # G.722 at 64 kbit/s


def missing() -> list[str]:
    found = {f"asterisk-core-sounds-{language}-g722": (SOUNDS / voice).is_dir() for language, voice in VOICES.items()}
    found |= {f"asterisk-core-sounds-{language}": transcript(language).is_file() for language in VOICES}
    return [name for name, there in {**found, "ffmpeg": shutil.which("ffmpeg")}.items() if not there]


def transcript(language: str) -> Path:
    return DOCUMENTS / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"


def prompts(language: str) -> dict[Path, str]:
    """The first ten prompts by name of 2 to 8 s that are words alone, and what they say."""
    lines = gzip.decompress(transcript(language).read_bytes()).decode().splitlines()
    texts = dict(re.split(r":\s*", line, maxsplit=1) for line in lines if ":" in line and not line.startswith(";"))
    paths = sorted((SOUNDS / VOICES[language]).glob("*.g722"))
    words = {path: texts.get(path.stem, "") for path in paths if 2 <= path.stat().st_size / BYTES_A_SECOND <= 8}
    usable = {path: text for path, text in words.items() if re.fullmatch(r"[^\W\d_][^\d\[\]|<>]{9,}", text)}
    assert len(usable) >= PROMPTS
    return dict(list(usable.items())[:PROMPTS])


def decode(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    convert = ["ffmpeg", "-nostdin", "-loglevel", "error", "-f", "g722", "-i", source, "-ar", "16000", target]
    subprocess.run(convert, check=True)
    return target


@pytest.fixture(scope="module", params=VOICES)
def language(request: pytest.FixtureRequest) -> str:
    if absent := missing():
        reason = f"not installed: {', '.join(absent)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return request.param


def clips_of(conversations: list[list[Row]]) -> list[tuple[Row, np.ndarray]]:
    clips = [(row, load_clip(row)) for conversation in conversations for row in conversation]
    assert [wave.text for _, wave in clips if isinstance(wave, Fault)] == []
    return [(row, wave) for row, wave in clips if isinstance(wave, np.ndarray)]


def test_ljspeech_form(language: str, tmp_path: Path) -> None:
    """The metadata in NFD with Windows' line ends and a mark: the texts are the prompts', and every clip is usable."""
    said = prompts(language)
    for path in said:
        decode(path, tmp_path / "wavs" / f"{path.stem}.wav")
    lines = [f"{path.stem}|{text}|" for path, text in said.items()]
    metadata = unicodedata.normalize("NFD", "\ufeff" + "\r\n".join(lines) + "\r\n")
    (tmp_path / "metadata.csv").write_bytes(metadata.encode())
    conversations, faults = read_data([tmp_path], speaker=3, language=language)
    assert faults == []
    clips = clips_of(conversations)
    assert [row.text for row, _ in clips] == [clean_text(text) for text in said.values()]
    assert {(row.speaker, row.language) for row, _ in clips} == {(3, language)}


def test_conversation_folders_in_every_format(language: str, tmp_path: Path) -> None:
    """Two voices in turn, each clip in another format; what is converted holds the same sounds as the prompts."""
    pytest.importorskip("av")
    suffixes = ("wav", "mp3", "flac", "ogg", "m4a", "aac")
    said = list(prompts(language).items())
    for number, (path, text) in enumerate(said):
        stem = tmp_path / "raw" / f"talk_{number // 5 + 9}" / f"{number % 5 + 8}_speaker{number % 2}_{path.stem}"
        decode(path, stem.with_suffix(f".{suffixes[number % len(suffixes)]}"))
        stem.with_suffix(".txt").write_text(text, encoding="utf-8-sig")
    out = tmp_path / "talks.json"
    done = CliRunner().invoke(main, ["convert", str(tmp_path / "raw"), str(out), "--language", language])
    assert done.exit_code == 0, done.stderr
    written = json.loads(out.read_text())
    assert [turn["text"] for turns in written for turn in turns] == [clean_text(text) for _, text in said]
    assert [turn["speaker"] for turns in written for turn in turns] == [number % 2 for number in range(PROMPTS)]
    conversations, faults = read_data([out])
    assert faults == []
    for (row, wave), (path, _) in zip(clips_of(conversations), said, strict=True):
        plain = load_clip(Row("x", decode(path, tmp_path / "plain" / f"{path.stem}.wav"), row.text, 0, path))
        assert isinstance(plain, np.ndarray)
        assert len(wave) == pytest.approx(len(plain), abs=0.1 * 24_000)
        assert row.language == language
        assert envelope(wave, plain) > 0.95


def envelope(a: np.ndarray, b: np.ndarray) -> float:
    """How far the loudness of two waves goes up and down together, at the best of shifts within 100 ms."""
    size = min(len(a), len(b)) // 240
    one, two = (np.sqrt(np.mean(wave[: size * 240].reshape(size, 240) ** 2, axis=1)) for wave in (a, b))
    shifts = range(-10, 11)
    return max(float(np.corrcoef(one[10:-10], np.roll(two, shift)[10:-10])[0, 1]) for shift in shifts)
