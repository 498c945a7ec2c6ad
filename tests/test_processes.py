"""Several processes under torchrun learn what one learns; whatever ends one of them ends the run with a sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_trainer import batch

from csm.data.batches import some_examples
from csm.data.shares import shared_out
from csm.processes import Place, own_place

ROOT = Path(__file__).parents[1]
WORDS = ("--max-steps", 4, "--accumulate", 3, "--batch-size", 2, "--save-every", 2, "--learning-rate", 1e-3)
MEASURED = ("frames_per_second", "peak_memory_mb")


def started(count: int, model: Path, clips: Path, out: Path, *words: object) -> subprocess.Popen[str]:
    """A run of `count` processes, one thread each; without torchrun where it is 0."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={count}"] if count else []
    data = ["--audio-dir", clips / "audio", "--transcript-dir", clips / "transcripts", "--speaker-id", 5]
    rest = [
        "--model-path",
        model,
        "--output-dir",
        out,
        "--cache-dir",
        clips / "cache",
        "--threads",
        1,
        "--device",
        "cpu",
    ]
    command = [sys.executable, *torchrun, "-m", "csm.cli.finetune", *words, *data, *rest, "--log-to", "none"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ran(*arguments: Any, code: int = 0) -> tuple[str, str]:
    """What a run that ended said on stdout and stderr."""
    process = started(*arguments)
    out, talk = process.communicate(timeout=120)
    assert process.returncode == code, talk
    return out, talk


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    """Losses, norms, weights and momenta of two runs, to 1e-6 of what they are, give or take an ulp of a weight."""
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - set(MEASURED):
            assert a[key] == pytest.approx(b[key], rel=2e-6), key
    newest = [sorted((run / "checkpoints").iterdir())[-1] for run in (one, two)]
    assert newest[0].name == newest[1].name
    files = [p.relative_to(newest[0]) for p in newest[0].rglob("*.safetensors")]
    assert len(files) >= 2
    for file in files:
        first, second = load_file(newest[0] / file), load_file(newest[1] / file)
        assert first.keys() == second.keys()
        for name, value in first.items():
            if name != "random_state":
                np.testing.assert_allclose(value, second[name], rtol=1e-5, atol=1e-6, err_msg=name)


def process_of(rank: int, out: Path) -> int:
    """The process that torchrun started as `rank` for the run `out`."""
    for entry in Path("/proc").iterdir():
        try:
            line, setting = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(out).encode() in line and f"\0RANK={rank}\0".encode() in setting:
            return int(entry.name)
    raise AssertionError(f"no process {rank}")


def wait_for(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_places_are_read_from_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_place() == Place()
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert own_place() == Place(), "another program's variables, without torchrun"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert own_place() == Place(5, 8, 1, 4)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_shares_hold_every_example_once(micro_batches: int, count: int, whole: bool) -> None:
    batches = [(n, batch(5 * n + 1, 5 * n + 2, 5 * n + 3, 5 * n + 4)) for n in range(micro_batches)]
    shares = shared_out(batches, count, whole)
    assert len(shares) == count
    keys = sorted(key for share in shares for _, part in share for key in part.keys)
    assert keys == sorted(key for _, each in batches for key in each.keys)
    if whole or micro_batches % count == 0:
        assert sorted(number for share in shares for number, _ in share) == list(range(micro_batches))
    if not whole:
        loads = [sum(part.shape[0] for _, part in share) for share in shares]
        assert min(loads) > 0
        assert max(loads) - min(loads) <= 4


def test_some_examples_in_any_order_are_those_examples() -> None:
    whole = batch(1, 2, 3, keep=2)
    again = some_examples(some_examples(whole, [2, 0, 1]), [1, 2, 0])
    for name in ("text_at", "text_ids", "audio_at", "codes", "targets", "depth", "example_of"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name), err_msg=name)
    assert (again.shape, again.keys) == (whole.shape, whole.keys)


STYLE = ("style-tune", "--style-name", "x", "--decoder-fraction", 0.5)
LORA = (*STYLE, "--method", "lora", "--lora-dropout", 0.3, "--max-grad-norm", 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [STYLE, LORA, ("voice-adapt", "--batch-size", 3)], ids=["full", "lora", "voice"])
def test_two_processes_learn_what_one_learns(
    toy_folder: Path, clip_folder: Path, tmp_path: Path, preset: tuple[Any, ...]
) -> None:
    """Three micro-batches an update, clipped: full, adapters with dropout, and kept states of the backbone."""
    one, two = tmp_path / "one", tmp_path / "two"
    words = (*WORDS, *preset[1:])
    ran(0, toy_folder, clip_folder, one, preset[0], *words)
    answer, talk = ran(2, toy_folder, clip_folder, two, preset[0], *words)
    assert_same_run(one, two)
    assert answer == f"{two}/checkpoints/{(two / 'best').read_text()}", "the first process alone prints"
    assert len(re.findall("best checkpoint:", talk)) == 1
    assert "2 processes" in talk


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(toy_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    """torchrun is told to stop: saved once; then one process goes on, and it is as if it had been one all along."""
    straight, run = tmp_path / "straight", tmp_path / "run"
    words = (*LORA, *WORDS, "--max-steps", 12, "--save-every", 6)
    ran(0, toy_folder, clip_folder, straight, *words)
    process = started(2, toy_folder, clip_folder, run, *words)
    wait_for(lambda: (run / "metrics.jsonl").is_file() and len(metrics(run)) > 2)
    process.send_signal(signal.SIGTERM)
    talk = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert talk.count("stopped by signal after step") == 1
    assert len(list((run / "checkpoints").iterdir())) == 1
    ran(0, toy_folder, clip_folder, run, *words, "--resume")
    assert_same_run(straight, run)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_process_ends_the_run_with_a_sentence(
    toy_folder: Path, clip_folder: Path, tmp_path: Path, rank: int
) -> None:
    run, words = tmp_path / "run", (*STYLE, *WORDS, "--max-steps", 4000, "--save-every", 5)
    process = started(2, toy_folder, clip_folder, run, *words)
    wait_for(lambda: (run / "last").is_file())
    os.kill(process_of(rank, run), signal.SIGKILL)
    began = time.monotonic()
    talk = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 40
    assert process.returncode == 1
    ended = "the first of the 2 processes has ended" if rank == 0 else "one of the 2 processes has ended"
    assert talk.count(ended) == 1
    assert "/csm/cli/" not in talk, "no traceback of ours"
    steps = sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*"))
    assert steps
    if rank == 1:
        assert steps[-1] >= len(metrics(run)) - 2, "saved after the last update"
    (path,) = [p for p in (run / "checkpoints").glob("step-*") if (p / "trainer" / "position.json").is_file()]
    assert path.name == f"step-{steps[-1]:06d}"
    load_file(path / "trainer" / "optimizer.safetensors")


@pytest.mark.slow
def test_users_mistakes_are_told_once_and_end_all(toy_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    _, talk = ran(2, toy_folder, clip_folder, tmp_path / "run", "voice-adapt", "--mask-speaker-ids", 5, code=1)
    assert talk.count("every speaker of the data (5) is masked") == 1
    assert "/csm/cli/" not in talk, "no traceback of ours"
    ran(2, toy_folder, clip_folder, tmp_path / "run", "voice-adapt", "--dry-run")
