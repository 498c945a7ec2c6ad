"""Progress on a terminal and off it: what is said while a bar is live stands on lines of its own; what training tells, when."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from csm.cli.finetune import _Talk, main
from csm.cli.live import TrainingView
from csm.cli.progress import Progress

ROOT = Path(__file__).parents[1]
PROGRAM = """
from csm.cli.progress import Progress
with Progress("training") as bar:
    for step in range(1, 9):
        bar.update(step, 8, "loss [1]")
        if step % 2 == 0:
            bar.say(f"step {step}: loss [bold]1 of a long line that is wider than the window is, saved")
"""


VIEW = """
from csm.cli.live import TrainingView
base = {"validation_loss": 9.5, "validation_semantic_loss": 4.5, "validation_acoustic_loss": 5.0}
with TrainingView() as view:
    view.take(0, base)
    for step in range(1, 5):
        loss = {"loss": 9.0 - step, "semantic_loss": 1.0, "acoustic_loss": 8.0 - step, "grad_norm": 2.5}
        more = {"frames_per_second": 123.4, "peak_memory_mb": 1500.0, "rate_decoder": 1e-5, "rate_embeddings": 5e-6}
        held = {"validation_loss": 7.25 + step} if step % 2 == 0 else {}
        view.take(step, loss | more | held)
        view.update(step, 4, f"loss {9 - step}")
    view.say("saved")
"""


def on_a_terminal(program: str) -> str:
    """What a terminal of 60 columns gets."""
    reader, writer = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "60", "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([sys.executable, "-c", program], stderr=writer, stdout=writer, env=environment)
    os.close(writer)
    received = b""
    while True:
        try:
            received += (part := os.read(reader, 4096))
        except OSError:  # the other end is closed
            break
        if not part:
            break
    os.close(reader)
    assert process.wait() == 0, received
    return received.decode()


def test_lines_beside_a_bar_stand_by_themselves() -> None:
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", on_a_terminal(PROGRAM))
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    said = [line for line in lines if "saved" in line]
    wanted = [f"step {n}: loss [bold]1 of a long line that is wider than the window is, saved" for n in (2, 4, 6, 8)]
    assert said == wanted
    assert any(line.startswith("training") and "8/8" in line for line in lines), "the bar was live"


def test_a_terminal_sees_the_figures_of_a_training() -> None:
    """The last frame: losses of the last update, of the last validation, and of the lowest, with their steps."""
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", on_a_terminal(VIEW))
    lines = [" ".join(line.split()) for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert "saved" in lines
    last = lines[len(lines) - lines[::-1].index("training validation lowest") :]
    assert last[:4] == ["loss 5 11.25 9.25", "semantic 1", "acoustic 4", "at step 4 4 2"]
    assert last[4:8] == [
        "gradient norm 2.5", "rates decoder 1e-05 embeddings 5e-06", "speed 123.4 frames/s", "peak memory 1,500 MB",
    ]  # fmt: skip
    assert last[8].startswith("training")
    assert "4/4" in last[8]


def test_elsewhere_a_training_tells_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-c", VIEW], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr.splitlines()) == ("", ["training: 4/4  loss 5", "saved"])


def test_off_a_terminal_lines_go_to_stderr() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.stdout == ""
    assert [line[:6] for line in done.stderr.splitlines() if "saved" in line] == [f"step {n}" for n in (2, 4, 6, 8)]
    assert "training: 8/8  loss [1]" in done.stderr.splitlines()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(clips: Path, cache: Path, out: Path, *words: object, code: int = 0) -> list[str]:
    data = ["--audio-dir", clips / "audio", "--transcript-dir", clips / "transcripts", "--speaker-id", 5]
    words = (*data, "--output-dir", out, "--cache-dir", cache, "--threads", 1, "--save-every", 1, *words)
    done: Result = CliRunner().invoke(main, ["voice-adapt", *map(str, words)])
    assert done.exit_code == code, done.stderr
    return done.stderr.splitlines()


def at(lines: list[str], start: str) -> int:
    (found,) = [number for number, line in enumerate(lines) if line.startswith(start)]
    return found


def test_training_tells_where_it_begins_before_it_does(clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    """The base's loss is metrics' step 0; an old run's new place and the step it goes on from stand before any step."""
    run = tmp_path / "run"
    first = train(clip_folder, cache, run, "--max-steps", 2)
    base = float((run / "metrics.jsonl").read_text().split('"validation_loss": ')[1].split(",")[0])
    assert first[at(first, "the base: ")] == f"the base: validation {base:.4g}"
    assert at(first, "the base: ") < at(first, "step 1: ") < at(first, "step 2: ")
    assert not [line for line in first if line.startswith(("the run stands", "the old run"))]

    fresh = train(clip_folder, cache, run, "--max-steps", 2, "--fresh")
    assert fresh[at(fresh, "the old run")] == f"the old run was moved to {run}.old-1"
    assert at(fresh, "the old run") < at(fresh, "the base: ")

    done = train(clip_folder, cache, run, "--max-steps", 2)
    assert at(done, "this run is done already: 2 steps") < at(done, "best checkpoint:")


def test_going_on_is_told_before_the_first_step(
    clip_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Progress.update

    def interrupt(bar: Progress, done: int, total: int, note: str = "") -> None:
        update(bar, done, total, note)
        if bar.title == "training":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "update", interrupt)
    train(clip_folder, cache, tmp_path / "run", "--max-steps", 2, code=130)
    monkeypatch.undo()
    lines = train(clip_folder, cache, tmp_path / "run", "--max-steps", 2)
    assert at(lines, "the run stands at step 1") < at(lines, "the base: ") < at(lines, "step 2: ")


def test_a_run_without_validation_tells_no_base(clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    lines = train(clip_folder, cache, tmp_path / "run", "--max-steps", 1, "--val-split", 0)
    assert not [line for line in lines if line.startswith("the base")]


def test_a_run_that_goes_on_knows_its_lowest_validation(tmp_path: Path) -> None:
    record = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 0, "validation_loss": 9.0},
        {"step": 1, "loss": 5.0, "validation_loss": 3.0},
        {"step": 2, "loss": 4.0},
    ]
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with TrainingView() as view:
        _Talk(view, record, None).updated(3, 4, {"loss": 4.0, "validation_loss": 6.0})
    assert view.figures.best == {"step": 1, "loss": 3.0}
    assert view.figures.validation == {"step": 3, "loss": 6.0}
