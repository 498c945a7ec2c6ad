"""Several processes under torchrun learn what one learns; whatever ends one of them ends the run with a sentence."""

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
from test_trainer import batch

from csm.backend import Backend
from csm.data.batches import some_examples
from csm.data.codes import data_fingerprint
from csm.data.codes_folder import read_turns
from csm.data.shares import shared_out
from csm.errors import CsmError, is_out_of_memory
from csm.model_folder import open_folder
from csm.processes import Place, own_place
from csm.recipe import Recipe
from csm.torch.device import choose
from csm.torch.gradients import extents, joined, sum_gradients
from csm.torch.processes import Trouble

ROOT = Path(__file__).parents[1]
WORDS = ("--max-steps", 4, "--accumulate", 3, "--batch-size", 2, "--save-every", 2, "--learning-rate", 2e-5)
MEASURED = ("frames_per_second", "peak_memory_mb")


def started(count: int, *words: object, module: str = "csm.cli.finetune") -> subprocess.Popen[str]:
    """A command in `count` processes, one thread each; without torchrun where it is 0."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={count}"] if count else []
    command = [sys.executable, *torchrun, "-m", module, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def training(model: Path, clips: Path, out: Path, *words: object) -> tuple[object, ...]:
    """The words of a command that trains; the first of `words` is its name."""
    data = ("--audio-dir", clips / "audio", "--transcript-dir", clips / "transcripts", "--speaker-id", 5)
    place = ("--cache-dir", clips / "cache", "--threads", 1, "--device", "cpu", "--log-to", "none")
    return (*words, "--model-path", model, "--output-dir", out, *data, *place)


def ran(count: int, *words: object, code: int = 0, module: str = "csm.cli.finetune") -> tuple[str, str]:
    """What a command that ended said on stdout and stderr."""
    process = started(count, *words, module=module)
    out, talk = process.communicate(timeout=120)
    assert process.returncode == code, talk
    return out, talk


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    """Losses, norms, weights and momenta of two runs, to 1e-6 (Adam's division shows the noise of tiny gradients)."""
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
                np.testing.assert_allclose(value, second[name], rtol=1e-6, atol=1e-6, err_msg=name)


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


def test_processes_that_nobody_brought_together_do_not_train(toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csm.backend.own_place", lambda: Place(1, 2, 1, 2))
    with pytest.raises(CsmError, match="torchrun started 2 processes, and this script does not bring them together"):
        Backend("cpu", "float32", "").trainer(open_folder(toy_folder), Recipe())


@pytest.mark.parametrize(
    ("device", "cards", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 4, "cuda:1"),
        ("cuda", 4, "cuda:1"),
        ("cpu", 4, "cpu"),
        ("auto", 3, "torchrun started 4 processes, and this machine has 3 GPUs"),
        ("cuda", 0, "torchrun started 4 processes, and this machine has 0 GPUs"),
        ("cuda:1", 4, "--device cuda:1 does not go with 8 processes"),
        ("mps", 0, "--device mps does not go with 8 processes"),
    ],
)
def test_each_process_has_the_gpu_of_its_number(
    monkeypatch: pytest.MonkeyPatch, device: str, cards: int, found: str
) -> None:
    monkeypatch.setattr("csm.torch.device.own_place", lambda: Place(5, 8, 1, 4))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    if " " in found:
        with pytest.raises(CsmError, match=f"^{found}"):
            choose(device, "auto", 1, True, 10**9)
        return
    answer = choose(device, "auto", 1, True, 10**9)
    assert str(answer.device) == found
    assert answer.reason.endswith("8 processes")


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


def test_gradients_are_summed_whole_by_row_and_where_one_has_none() -> None:
    """A dense gradient, a table's rows, one that others alone have, and one that nobody has."""
    dense, table, others, nobody = parameters = [torch.nn.Parameter(torch.ones(6, 2)) for _ in range(4)]
    dense.grad = torch.full((6, 2), 3.0)
    table.grad = torch.sparse_coo_tensor(
        [[4, 1, 4]], torch.tensor([[1.0, 2], [3, 4], [5, 6]]), (6, 2), check_invariants=True
    )
    mine = extents(parameters)
    assert (mine[0], mine[1].tolist(), mine[2], mine[3]) == (True, [1, 4], False, False)  # type: ignore[union-attr]
    theirs = [True, np.array([0, 4]), True, False]
    covered = [joined(each) for each in zip(mine, theirs, strict=True)]
    sum_gradients(parameters, covered, lambda flat: flat.mul_(2))  # as if the other process had the same
    assert dense.grad.tolist() == [[6.0, 6.0]] * 6
    assert table.grad.is_coalesced()
    assert table.grad.indices().tolist() == [[0, 1, 4]]
    assert table.grad.values().tolist() == [[0.0, 0.0], [6.0, 8.0], [12.0, 16.0]]
    assert others.grad is not None
    assert others.grad.tolist() == [[0.0, 0.0]] * 6
    assert nobody.grad is None


STYLE = ("style-tune", "--style-name", "x", "--decoder-fraction", 0.5)
LORA = (*STYLE, "--method", "lora", "--lora-dropout", 0.3, "--max-grad-norm", 0.1)


STAGES = [
    {"preset": "style-tune", "recipe": {"style_name": "x", "decoder_fraction": 0.5}},
    {"preset": "voice-adapt", "recipe": {"batch_size": 3, "semantic_weight": 1}},
    {"preset": "conversation", "recipe": {"method": "lora", "lora_dropout": 0.3, "max_grad_norm": 0.1, "context_turns": 1}},
]  # fmt: skip
"""Everything learns; kept states of the backbone; adapters with dropout, much clipped."""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(toy_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    """Three stages, three micro-batches an update: losses, norms, weights and momenta."""
    shared = {"max_steps": 4, "accumulate": 3, "batch_size": 2, "save_every": 2, "learning_rate": 2e-5, "log_to": []}
    talks = {}
    for count in (0, 2):
        (root := tmp_path / str(count)).mkdir()
        data = {"data_path": str(clip_folder), "speaker_id": 5}
        stages = [{**stage, **data, "recipe": {**shared, **stage["recipe"]}} for stage in STAGES]  # type: ignore[dict-item]
        (root / "stages.yaml").write_text(json.dumps({"base": str(toy_folder), "output_dir": "out", "stages": stages}))
        words = ("run", root / "stages.yaml", "--cache-dir", clip_folder / "cache", "--threads", 1, "--device", "cpu")
        talks[count] = ran(count, *words)
    for stage in STAGES:
        assert_same_run(*(tmp_path / count / "out" / str(stage["preset"]) for count in ("0", "2")))
    answer, talk = talks[2]
    assert answer == f"{tmp_path}/2/out/conversation/checkpoints/{(tmp_path / '2/out/conversation/best').read_text()}"
    assert talk.count("best checkpoint of the last stage:") == 1, "the first process alone prints"
    assert talk.count("1 thread (asked for), 2 processes") == 3


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(toy_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    """torchrun is told to stop: saved once; then one process goes on, and it is as if it had been one all along."""
    straight, run = tmp_path / "straight", tmp_path / "run"
    words = (*LORA, *WORDS, "--max-steps", 30, "--save-every", 15)
    ran(0, *training(toy_folder, clip_folder, straight, *words))
    process = started(2, *training(toy_folder, clip_folder, run, *words))
    wait_for(lambda: (run / "metrics.jsonl").is_file() and len(metrics(run)) > 2)
    process.send_signal(signal.SIGTERM)
    talk = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert talk.count("stopped by signal after step") == 1
    assert len(list((run / "checkpoints").iterdir())) == 1
    ran(0, *training(toy_folder, clip_folder, run, *words, "--resume"))
    assert_same_run(straight, run)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_process_ends_the_run_with_a_sentence(
    toy_folder: Path, clip_folder: Path, tmp_path: Path, rank: int
) -> None:
    run, words = tmp_path / "run", (*STYLE, *WORDS, "--max-steps", 4000, "--save-every", 5)
    process = started(2, *training(toy_folder, clip_folder, run, *words))
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
    words = training(toy_folder, clip_folder, tmp_path / "run", "voice-adapt", "--mask-speaker-ids", 5)
    _, talk = ran(2, *words, code=1)
    assert talk.count("every speaker of the data (5) is masked") == 1
    assert "/csm/cli/" not in talk, "no traceback of ours"
    _, talk = ran(2, *words, "--dry-run")


def test_troubles_of_other_processes_are_told_apart() -> None:
    """A CUDA error that speaks of memory is not a lack of it."""
    short = Trouble.of(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    broken = Trouble.of(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert is_out_of_memory(short.error(1))
    assert not is_out_of_memory(broken.error(1))
    assert "illegal memory access" in str(broken.error(1))
    told = Trouble.of(CsmError("a clip is missing.", "Look.")).error(1)
    assert (str(told), type(told)) == ("a clip is missing. Look.", CsmError)


@pytest.mark.slow
def test_each_process_tokenizes_its_part(clip_folder: Path, tmp_path: Path) -> None:
    """`tokenize` alone shares its work by itself, where every other command is run by the first process."""
    data = ("tokenize", clip_folder, "--speaker-id", 5, "--threads", 1, "--device", "cpu")
    out, talk = ran(2, *data, "--output", tmp_path / "two")
    assert out.strip() == str(tmp_path / "two"), talk
    ran(0, *data, "--output", tmp_path / "one")
    codec = Backend("cpu", "float32", "").codec(open_folder("csm-tiny")).fingerprint
    two, one = (data_fingerprint(read_turns(tmp_path / name, codec)[0]) for name in ("two", "one"))
    assert two == one


@pytest.mark.slow
def test_the_lora_guides_command_is_one_of_them(toy_folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    words = training(toy_folder, clip_folder, tmp_path / "run", "--max-steps", 1, "--val-split", 0)
    out, talk = ran(2, *words, module="csm.cli.finetune_lora")
    assert out == f"{tmp_path}/run/checkpoints/step-000001\n"
    assert talk.count("fine_tuned_model.safetensors") == 1


FAILING = """
import sys
from csm.errors import CsmError
from csm.processes import own_place
from csm.segment import Segment
from csm.torch.processes import together
from csm.torch.trainer import TorchTrainer
from csm.training.finetuner import CSMFineTuner

rank, real = own_place().rank, TorchTrainer.{method}
def {method}(self, *arguments):
    if rank == 1:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    return real(self, *arguments)
TorchTrainer.{method} = {method}
with together() as first:
    if first:
        tuner = CSMFineTuner(sys.argv[1], sys.argv[3], device="cpu", threads=1)
        clips = [Segment("the quick brown fox.", 5, f"{{sys.argv[2]}}/audio/00{{i}}.wav") for i in range(4)]
        try:
            tuner.train(clips, batch_size=2, epochs=3)
        except CsmError as error:
            print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["accumulate", pytest.param("apply", marks=pytest.mark.long)])
def test_memory_that_is_short_in_another_process_is_one_sentence(
    toy_folder: Path, clip_folder: Path, tmp_path: Path, method: str
) -> None:
    """From Python, the way the documents give; whether memory ends in the gradients or in the update itself."""
    (tmp_path / "script.py").write_text(FAILING.format(method=method))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", tmp_path / "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*map(str, command), str(toy_folder), str(clip_folder), str(tmp_path / "run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("memory ran out at step ")
    assert len(done.stdout.splitlines()) == 1
