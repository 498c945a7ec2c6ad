"""--batch-size auto: the largest micro-batch that fits, the same run as one that names it, and exact on resume."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from test_examples import example_set
from test_run import STEPS, assert_same_run, metrics, tuner

from csm.backend import Backend
from csm.data.batches import Batch
from csm.data.codes import Tokenised
from csm.data.manifest import read_data
from csm.errors import CsmError
from csm.recipe import Recipe
from csm.training.batch_fit import find_batch, longest_batch
from csm.training.interrupt import Interrupted
from csm.training.watchers import Watchers

MEGABYTE = 10**6


class Machine:
    """A trainer whose memory is `base` and so much a row of its batch; it ends, as a process would, when that is too much."""

    def __init__(self, base: int, a_row: int, memory: int, raises: bool = False):
        self.base, self.a_row, self.memory, self.raises, self.peak = base, a_row, memory, raises, base
        self.sizes: list[int] = []

    def step(self, batches: list[Batch], learning_rate: float) -> dict[str, float]:
        assert learning_rate == 0
        (batch,) = batches
        needs = self.base + self.a_row * batch.shape[0] * batch.shape[1]
        self.sizes.append(batch.shape[0])
        if needs > self.memory:
            assert self.raises, "the system ends a process that takes more than there is"
            raise RuntimeError("CUDA out of memory")
        self.peak = max(self.peak, needs)
        return {}

    def peak_memory(self) -> int:
        return self.peak


@pytest.mark.parametrize("memory", [60, 100, 200, 400, 4000])
def test_the_largest_that_fits_is_found_without_passing_the_memory(memory: int) -> None:
    examples = example_set(12, context=2)
    longest = int(examples.most_rows.max())
    machine = Machine(20 * MEGABYTE, MEGABYTE // 5, memory * MEGABYTE)
    fitting = [n for n in (1, 2, 4, 8, 16, 32) if 20 + n * longest / 5 <= 0.8 * memory]
    fit = find_batch(machine, examples, Recipe(context_turns=2), 32, memory * MEGABYTE)  # type: ignore[arg-type]
    assert fit.batch_size == fitting[-1]
    assert fit.batch_size * fit.accumulate == 32
    assert "auto" in fit.reason


def test_a_device_that_says_when_memory_is_out_is_believed() -> None:
    examples = example_set(12)
    longest = int(examples.most_rows.max())
    machine = Machine(0, MEGABYTE, longest * MEGABYTE, raises=True)
    assert find_batch(machine, examples, Recipe(), 32, 10**12).batch_size == 1  # type: ignore[arg-type]
    machine = Machine(2 * longest * MEGABYTE, MEGABYTE, longest * MEGABYTE, raises=True)
    with pytest.raises(CsmError, match="not even one example"):
        find_batch(machine, examples, Recipe(), 32, 10**12)  # type: ignore[arg-type]


def test_a_budget_of_frames_bounds_what_is_tried() -> None:
    examples = example_set(12)
    machine = Machine(0, 1, 10**12)
    budget = 5 * int(examples.most_rows.max())
    assert find_batch(machine, examples, Recipe(max_batch_frames=budget), 32, 10**12).batch_size == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("context", [0, 3])
def test_the_probe_is_as_long_as_any_batch_can_be(context: int) -> None:
    examples = example_set(12, context)
    batch = longest_batch(examples, Recipe(), 5)
    assert batch.shape == (5, int(examples.most_rows.max()))
    assert max(len(examples.example(i, e)) for i in range(12) for e in range(4)) <= batch.shape[1]
    assert len(np.unique(batch.example_of)) == 5


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codes")


@pytest.fixture(scope="module")
def data(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenised:
    rows, faults = read_data((clip_folder,), speaker=5)
    return tuner(toy_folder, tmp_path_factory.mktemp("unused") / "run", cache).tokenise(rows, faults)


def test_the_run_is_the_one_that_names_what_was_found_and_resumes_exactly(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dict(max_steps=STEPS, save_every=2, val_split=0.2)
    named = tuner(toy_folder, tmp_path / "named", cache, batch_size=4, accumulate=1, **settings)
    named.train(data)
    said: list[str] = []

    def stop(step: int, *_: object) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    found = tuner(toy_folder, tmp_path / "found", cache, **settings)
    found.layers.append(("flag", {"batch_size": "auto"}))
    with pytest.raises(Interrupted):
        found.train(data, watch=Watchers(stop, said.append))
    assert any(line.startswith("batch size: 4") for line in said)
    recipe = json.loads((tmp_path / "found" / "recipe.json").read_text())["recipe"]
    assert (recipe["batch_size"], recipe["accumulate"]) == (4, 1)
    again = tuner(toy_folder, tmp_path / "found", cache, **settings)
    again.layers.append(("flag", {"batch_size": "auto"}))
    monkeypatch.setattr(Backend, "available_memory", lambda _: pytest.fail("it was sought again"))
    again.train(data, resume=True)
    assert_same_run(tmp_path / "named", tmp_path / "found")
    assert len(metrics(tmp_path / "found")) == STEPS + 1
