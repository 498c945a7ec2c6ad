"""A run as a whole: resume equals straight through, other runs are refused, whatever ends it leaves a good checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from csm.backend import Backend
from csm.data.codes import Tokenised
from csm.data.manifest import read_data
from csm.errors import CsmError
from csm.segment import Segment
from csm.torch.checkpoint import TRAINED
from csm.training.finetuner import CSMFineTuner, Outcome
from csm.training.interrupt import Interrupted

CPU = Backend("cpu", "float32", "test")
STEPS = 8
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "batch_size": 2, "accumulate": 2, "val_split": 0.2, "save_every": 3, "learning_rate": 1e-3,
    "decoder_fraction": 0.5, "context_turns": 1,
}  # fmt: skip


def tuner(model: Path, out: Path, cache: Path, preset: str = "style-tune", **settings: Any) -> CSMFineTuner:
    made = CSMFineTuner(model, out, preset=preset, backend=CPU, cache=cache)
    made.layers.append(("test", {**SETTINGS, **settings}))
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenised:
    rows, faults = read_data((), clip_folder / "audio", clip_folder / "transcripts", 5)
    return tuner(toy_folder, tmp_path_factory.mktemp("unused") / "run", cache).tokenise(rows, faults)


def train(made: CSMFineTuner, data: Tokenised, stop_at: int | None = None, **flags: Any) -> Outcome:
    """Train; at step `stop_at` the process sends itself a SIGINT."""

    def report(step: int, steps: int, values: dict[str, float]) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    return made.train(data, report=report, **flags)


def final_state(run: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    momenta = load_file(folder / "trainer" / "optimizer.safetensors")
    return {**load_file(folder / TRAINED), **{f"trainer/{k}": v for k, v in momenta.items()}}


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = ("frames_per_second", "peak_memory_mb")
    return [{k: v for k, v in line.items() if k not in measured} for line in lines]


def assert_same_run(one: Path, two: Path, but: tuple[str, ...] = ()) -> None:
    """Weights, momenta, random state and the whole record, bit for bit; keys of the record in `but` may differ."""
    first, second = final_state(one), final_state(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    for a, b in zip(metrics(one), metrics(two), strict=True):
        differing = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
        assert differing <= set(but), {key: (a.get(key), b.get(key)) for key in differing}


@pytest.fixture(scope="module")
def straight(toy_folder: Path, data: Tokenised, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    train(tuner(toy_folder, run, cache), data)
    return run


@pytest.mark.parametrize("stop_at", range(1, STEPS))
def test_resume_from_any_step_equals_straight_through(
    toy_folder: Path, data: Tokenised, cache: Path, straight: Path, tmp_path: Path, stop_at: int
) -> None:
    """Two updates an epoch, two micro-batches an update: stops lie inside epochs and at their ends."""
    with pytest.raises(Interrupted) as caught:
        train(tuner(toy_folder, tmp_path / "run", cache), data, stop_at)
    assert caught.value.exit_code == 130
    outcome = train(tuner(toy_folder, tmp_path / "run", cache), data)
    assert (outcome.from_step, outcome.step) == (stop_at, STEPS)
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.parametrize("stop_at", [1, 5])
def test_resume_is_exact_with_kept_states(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path, stop_at: int
) -> None:
    """voice-adapt computes the backbone's states once; which batch asked first must not matter."""
    plain = {"preset": "voice-adapt", "context_turns": 0}
    train(tuner(toy_folder, tmp_path / "one", cache, **plain), data)
    with pytest.raises(Interrupted):
        train(tuner(toy_folder, tmp_path / "two", cache, **plain), data, stop_at)
    train(tuner(toy_folder, tmp_path / "two", cache, **plain), data)
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_finished_run_is_left_as_it_is(toy_folder: Path, data: Tokenised, cache: Path, straight: Path) -> None:
    def files() -> dict[Path, int]:
        kept = [p for p in straight.rglob("*") if p.is_file() and p.name not in ("metrics.jsonl", ".lock")]
        return {p: p.stat().st_mtime_ns for p in kept}

    before = files()
    outcome = train(tuner(toy_folder, straight, cache), data)
    assert outcome.from_step == outcome.step == STEPS
    assert before == files()


def test_another_recipe_or_other_data_is_refused_with_the_difference(
    toy_folder: Path, data: Tokenised, cache: Path, straight: Path
) -> None:
    with pytest.raises(CsmError, match=r"learning_rate was 0.001, now 0.002"):
        train(tuner(toy_folder, straight, cache, learning_rate=2e-3), data)
    fewer = Tokenised(data.conversations[1:], [], data.frame_rate)
    with pytest.raises(CsmError, match="the data differ"):
        train(tuner(toy_folder, straight, cache), fewer)
    with pytest.raises(CsmError, match="its preset is style-tune, now conversation"):
        train(tuner(toy_folder, straight, cache, preset="conversation"), data)


def test_fresh_moves_the_old_run_aside_and_resume_insists(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(CsmError, match="no run to resume"):
        train(tuner(toy_folder, tmp_path / "run", cache), data, resume=True)
    train(tuner(toy_folder, tmp_path / "run", cache, max_steps=1), data)
    outcome = train(tuner(toy_folder, tmp_path / "run", cache, max_steps=2), data, fresh=True)
    assert outcome.moved_aside == tmp_path / "run.old-1"
    assert (tmp_path / "run.old-1" / "checkpoints" / "step-000001").is_dir()
    assert outcome.step == 2


def test_a_folder_that_is_no_run_is_left_alone(toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CsmError, match="is no run"):
        train(tuner(toy_folder, tmp_path, cache), data)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csm.torch.trainer import TorchTrainer

    real, calls = TorchTrainer.step, iter(range(100))

    def step(self: Any, batches: Any, rate: float) -> dict[str, float]:
        if next(calls) == 4:
            raise FloatingPointError
        return real(self, batches, rate)

    monkeypatch.setattr(TorchTrainer, "step", step)
    with pytest.raises(CsmError, match="not finite at step 5") as caught:
        train(tuner(toy_folder, tmp_path / "run", cache), data)
    assert "step-000003" in str(caught.value.hint)
    assert (tmp_path / "run" / "checkpoints" / "step-000003" / "trainer").is_dir()


@pytest.mark.parametrize("val_split", [0.2, 0.0])
def test_weights_that_are_not_numbers_are_never_saved(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_split: float
) -> None:
    """An update that ends in infinity stops the run before the checkpoint, with and without a validation set."""
    from csm.torch.trainer import TorchTrainer

    real, calls = TorchTrainer.step, iter(range(100))

    def step(self: Any, batches: Any, rate: float) -> dict[str, float]:
        values = real(self, batches, rate)
        if next(calls) == 5:
            with torch.no_grad():
                self.model.lm_head.weight[0, 0] = float("inf")
        return values

    monkeypatch.setattr(TorchTrainer, "step", step)
    with pytest.raises(CsmError, match="not finite at step 6") as caught:
        train(tuner(toy_folder, tmp_path / "run", cache, val_split=val_split), data)
    assert "step-000003" in str(caught.value.hint)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]


def test_pointers_that_a_kill_left_behind_are_set_right(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path
) -> None:
    train(tuner(toy_folder, tmp_path / "run", cache), data)
    best = (tmp_path / "run" / "best").read_text()
    for name in ("best", "last"):
        (tmp_path / "run" / name).unlink()
    train(tuner(toy_folder, tmp_path / "run", cache), data)
    assert (tmp_path / "run" / "best").read_text() == best
    assert (tmp_path / "run" / "last").read_text() == f"step-{STEPS:06d}\n"


def test_two_processes_do_not_share_a_run(toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path) -> None:
    def meddle(step: int, steps: int, values: dict[str, float]) -> None:
        with pytest.raises(CsmError, match="in use by another process"):
            train(tuner(toy_folder, tmp_path / "run", cache), data)

    tuner(toy_folder, tmp_path / "run", cache).train(data, report=meddle)


def test_fresh_moves_runs_alone_and_never_its_own_inputs(
    toy_folder: Path, data: Tokenised, cache: Path, clip_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("precious")
    with pytest.raises(CsmError, match="is no run"):
        train(tuner(toy_folder, tmp_path / "notes", cache), data, fresh=True)
    with pytest.raises(CsmError, match="holds what it is made from"):
        train(tuner(toy_folder, clip_folder, cache), data, fresh=True)
    train(tuner(toy_folder, tmp_path / "run", cache, max_steps=1), data)
    with pytest.raises(CsmError, match="holds what it is made from"):
        train(tuner(tmp_path / "run", tmp_path / "run", cache, max_steps=2), data, fresh=True)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "precious"


def test_a_full_disk_leaves_the_last_checkpoint(
    toy_folder: Path, data: Tokenised, cache: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint cannot be written: nothing half-written is seen, and later the run ends as a straight one."""
    import csm.training.run_folder as run_folder

    real, calls = run_folder._flush, iter(range(100))

    def flush(folder: Path) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device", str(folder))
        real(folder)

    monkeypatch.setattr(run_folder, "_flush", flush)
    with pytest.raises(OSError, match="No space"):
        train(tuner(toy_folder, tmp_path / "run", cache), data)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]
    monkeypatch.undo()
    assert train(tuner(toy_folder, tmp_path / "run", cache), data).from_step == 3
    assert_same_run(straight, tmp_path / "run")


def test_validation_is_whole_deterministic_and_leaves_no_trace(
    toy_folder: Path, data: Tokenised, cache: Path, straight: Path
) -> None:
    """The recorded figure is the mean over every held-out clip; computing it again gives the same bits."""
    from csm.training.loop import validate

    made = tuner(toy_folder, straight, cache)
    training, validation = made._split(data)
    parts = made._parts(training, validation, straight / "checkpoints" / f"step-{STEPS:06d}")
    model, state = parts.trainer.model, torch.get_rng_state()  # type: ignore[attr-defined]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for mode in (True, False):
        model.train(mode)
        one, two = validate(parts), validate(parts)
        assert one == two
        assert model.training == mode
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(b.shape[0] for b in parts.validation) == len(validation) == 2
    assert metrics(straight)[-1]["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-6)


def test_the_record_of_a_run(straight: Path, data: Tokenised) -> None:
    lineage = json.loads((straight / "lineage.json").read_text())
    assert lineage["data"]["clips"] == 10
    assert len(lineage["data"]["validation"]) == 2
    assert set(lineage["data"]["validation"]).isdisjoint(lineage["data"]["training"])
    steps = [line["step"] for line in metrics(straight)]
    assert steps == list(range(STEPS + 1))
    assert "validation_loss" in metrics(straight)[0], "the base is measured before the first update"
    assert (straight / "last").read_text() == f"step-{STEPS:06d}\n"
    saved = sorted(p.name for p in (straight / "checkpoints").iterdir())
    assert saved == ["step-000003", "step-000006", "step-000008"]
    assert [(straight / "checkpoints" / s / "trainer").is_dir() for s in saved] == [False, False, True]
    shards = [straight / "checkpoints" / s / "model-00002-of-00002.safetensors" for s in saved]
    assert len({p.stat().st_ino for p in shards}) == 1, "the unchanged shard is linked, not copied"


def test_the_documented_python_api(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    from csm.generator import load_csm_1b

    segments = [
        Segment((clip_folder / "transcripts" / f"{p.stem}.txt").read_text(), 5, str(p))
        for p in sorted((clip_folder / "audio").glob("*.wav"))
    ]
    fine_tuner = CSMFineTuner(model_path=toy_folder, output_dir=tmp_path / "voice", learning_rate=2e-5, cache=cache)
    fine_tuner.prepare_optimizer(freeze_backbone=True)
    fine_tuner.train(train_dataset=segments, batch_size=1, epochs=1)
    assert fine_tuner.resolved.recipe.learning_rate == 2e-5
    generator = load_csm_1b(tmp_path / "voice", device="cpu")
    audio = generator.generate(text="hello.", speaker=5, context=[], max_audio_length_ms=400, temperature=0.9)
    assert len(audio) <= 0.4 * generator.sample_rate


def test_what_the_python_api_skips_is_told(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    good = [Segment("hello there.", 5, p) for p in sorted((clip_folder / "audio").glob("*.wav"))[:3]]
    bad = {
        "is not there": Segment("hello.", 5, tmp_path / "lost.wav"),
        "is silent": Segment("hello.", 5, np.zeros(24_000, np.float32)),
        "codes of shape": Segment("hello.", 5, np.ones((3, 20), np.int64)),
        "codes from": Segment("hello.", 5, np.full((6, 20), 64)),
        "needs": Segment("hello there you.", 5, np.ones((6, 400), np.int64)),
    }
    made = tuner(toy_folder, tmp_path / "run", cache, max_steps=1)
    with pytest.warns(UserWarning, match="skipped") as caught:
        made.train([*good, *bad.values()])
    skipped = json.loads((tmp_path / "run" / "lineage.json").read_text())["data"]["skipped"]
    assert len(skipped) == len(bad)
    for words in bad:
        assert words in str(caught[0].message)
        assert any(words in sentence for sentence in skipped)


def test_waves_and_codes_train_as_files_do(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    from csm.audio import load_wave
    from csm.data.codes import CodeCache
    from csm.training.dataset import tokenise_segments

    base = tuner(toy_folder, tmp_path / "r", cache).base
    codec, config = CPU.codec(base), base.config
    files = [Segment("hello there.", 5, p) for p in sorted((clip_folder / "audio").glob("*.wav"))[:3]]
    waves = [Segment("hello there.", 5, load_wave(Path(str(s.audio)))) for s in files]
    one, two = (tokenise_segments(s, codec, CodeCache(tmp_path / "c", codec), config) for s in (files, waves))
    for a, b in zip(one.conversations, two.conversations, strict=True):
        np.testing.assert_array_equal(a[0].codes, b[0].codes)
    with pytest.raises(CsmError, match="no audio"):
        tokenise_segments([Segment("hello.", 0)], codec, CodeCache(tmp_path / "c", codec), config)


COMMAND = [sys.executable, "-m", "csm.cli.finetune", "style-tune", "--style-name", "s", "--speaker-id", "5"]


def command(model: Path, clips: Path, out: Path, cache: Path) -> list[str]:
    return [
        *COMMAND, "--model-path", str(model), "--data-path", str(clips), "--output-dir", str(out),
        "--cache-dir", str(cache), "--max-steps", "400", "--save-every", "5", "--threads", "1", "--batch-size", "2",
    ]  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_exit(
    toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path, number: int, code: int
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(toy_folder, clip_folder, run, cache), stderr=subprocess.PIPE)
    wait_for(run / "last", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert b"stopped by signal after step" in errors
    assert any((p / "trainer" / "position.json").is_file() for p in (run / "checkpoints").iterdir())


@pytest.mark.slow
def test_kill_9_loses_at_most_the_steps_since_the_last_save(
    toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path
) -> None:
    """Killed again and again at random moments, the run ends as one that was never touched."""
    rng, run, kills = np.random.default_rng(0), tmp_path / "run", 0
    arguments = [*command(toy_folder, clip_folder, run, cache), "--max-steps", "120"]
    while True:
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=3.5 + 2.5 * rng.random() if kills < 6 else 300)
            assert process.returncode == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    untouched = tmp_path / "untouched"
    arguments[arguments.index(str(run))] = str(untouched)
    subprocess.run(arguments, check=True, capture_output=True)
    assert kills >= 1
    one, two = final_state(run, 120), final_state(untouched, 120)
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
