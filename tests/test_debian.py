"""Human recordings: sixty of Debian's telephone prompts through data, training, interruption, evaluation and registry.

csm-tiny's codec was not made for this voice, so nothing is asked of the similarity; the losses on prompts held out fall.
Packages: asterisk-core-sounds-en, asterisk-core-sounds-en-g722 (one speaker, 16 kHz, CC-BY-SA-3.0), ffmpeg.
"""

from __future__ import annotations

import gzip
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
from typing import Any

import pytest
import soundfile

pytestmark = [pytest.mark.slow, pytest.mark.debian]

ROOT = Path(__file__).parents[1]
SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
BYTES_A_SECOND = 8_000  # G.722 at 64 kbit/s
PROMPTS, REFERENCE, SPEAKER = 60, 6, 5
STEPS = {"voice-adapt": 36, "style-tune": 24}
MODULES = {"csm": "csm.cli.main", "csm-finetune": "csm.cli.finetune"}


def missing() -> list[str]:
    found = {"asterisk-core-sounds-en-g722": SOUNDS.is_dir(), "asterisk-core-sounds-en": TEXTS.is_file()}
    return [name for name, there in {**found, "ffmpeg": shutil.which("ffmpeg")}.items() if not there]


def texts_of_prompts(path: Path) -> dict[str, str]:
    """What each prompt says, by its name."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return dict(re.split(r":\s*", line, maxsplit=1) for line in lines if ":" in line and not line.startswith(";"))


def prompts() -> dict[Path, str]:
    """Sixty prompts of 2 to 8 s whose text is words alone, drawn from the sorted names, and what they say."""
    texts = texts_of_prompts(TEXTS)
    usable = []
    for path in sorted(SOUNDS.glob("*.g722")):
        seconds, text = path.stat().st_size / BYTES_A_SECOND, texts.get(path.stem, "")
        if 2 <= seconds <= 8 and re.fullmatch(r"[A-Za-z' .,?!-]+", text):
            usable.append((path, text))
    assert len(usable) >= PROMPTS
    return dict(random.Random(0).sample(usable, PROMPTS))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts as wav with transcripts: all but six in `training`, the last six by name in `reference`."""
    if absent := missing():
        reason = f"not installed: {', '.join(absent)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("debian")
    for number, (path, text) in enumerate(sorted(prompts().items())):
        part = folder / ("training" if number < PROMPTS - REFERENCE else "reference")
        for kind in ("audio", "transcripts"):
            (part / kind).mkdir(parents=True, exist_ok=True)
        wave = part / "audio" / f"{path.stem}.wav"
        convert = ["ffmpeg", "-nostdin", "-loglevel", "error", "-f", "g722", "-i", path, "-ar", "16000", wave]
        subprocess.run(convert, check=True)
        (part / "transcripts" / f"{path.stem}.txt").write_text(text)
    return folder


def line(program: str, *words: object) -> list[str]:
    return [sys.executable, "-m", MODULES[program], *map(str, words)]


def command(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line(program, *words), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def records(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []


def interrupt(words: list[object], run: Path, after: int) -> None:
    """Start the run and send it SIGINT once it has done `after` steps."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line("csm-finetune", *words), env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(records(run)) <= after:
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    talk = process.communicate(timeout=60)[1]
    assert process.returncode == 130, talk[-2000:]
    assert "saved" in talk


@pytest.fixture(scope="module", params=STEPS)
def run(request: pytest.FixtureRequest, work: Path) -> Path:
    """A run that was interrupted after five steps and gone on with."""
    preset, out = request.param, work / request.param
    words: list[object] = [
        preset, "--data-path", work / "training", "--speaker-id", SPEAKER, "--output-dir", out, "--val-split", 0.2,
        "--max-steps", STEPS[preset], "--save-every", 12, "--cache-dir", work / "cache", "--threads", 1,
    ]  # fmt: skip
    if preset == "style-tune":
        words += ["--style-name", "prompts", "--learning-rate", 2e-4]
    interrupt(words, out, after=5)
    done = command("csm-finetune", *words, "--resume")
    assert re.search(r"stands at step \d+", done.stderr)
    return out


def test_the_prompts_are_used_whole(run: Path) -> None:
    data = json.loads((run / "lineage.json").read_text())["data"]
    assert data["clips"] == PROMPTS - REFERENCE
    assert 2 < data["minutes"] < 7
    assert len(data["validation"]) == round(0.2 * data["clips"])
    assert set(data["validation"]).isdisjoint(data["training"])


def test_an_interruption_leaves_no_gap(run: Path) -> None:
    steps = STEPS[run.name]
    assert [record["step"] for record in records(run)] == list(range(steps + 1))
    assert (run / "last").read_text() == f"step-{steps:06d}\n"


def test_losses_on_held_out_prompts_fall(run: Path) -> None:
    """Semantic and acoustic, both, from the base to the checkpoint that the run calls best."""
    validated = {record["step"]: record for record in records(run) if "validation_loss" in record}
    best = validated[int((run / "best").read_text().strip().removeprefix("step-"))]
    for part in ("validation_loss", "validation_semantic_loss", "validation_acoustic_loss"):
        assert best[part] < validated[0][part]


@pytest.mark.parametrize("run", ["voice-adapt"], indirect=True)
def test_evaluation_and_registry(run: Path, work: Path) -> None:
    json_file, sound = work / "scores.json", work / "voice.wav"
    words = ["--reference", work / "reference", "--samples-per-text", 1, "--threads", 1, "--json", json_file]
    command("csm", "evaluate", run, *words)
    scores = json.loads(json_file.read_text())
    base, *checkpoints = [system for system in scores["systems"] if system["kind"] != "codec"]
    assert (base["name"], base["kind"]) == ("base", "base")
    assert len(checkpoints) >= STEPS["voice-adapt"] // 12
    assert scores["reference"]["recordings"] == REFERENCE
    assert scores["reference"]["summary"]["self_similarity"] > 0.8, "one speaker"
    assert all(system["summary"]["scored"] for system in scores["systems"])
    assert 120 < scores["reference"]["summary"]["pitch_median_hz"] < 260, "a woman's voice"
    voice = ("voice", "--db", work / "voices.json")
    command("csm", *voice, "create", "Allison", SPEAKER, "Debian's prompts", "--model-path", run)
    assert json.loads(command("csm", *voice, "show", "Allison", "--json").stdout)["lineage"]["data"]["clips"] == 54
    command("csm", *voice, "sample", "Allison", "--text", "please hold.", "--output", sound, "--threads", 1)
    assert soundfile.info(sound).duration > 0.2
