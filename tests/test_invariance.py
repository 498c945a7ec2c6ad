"""Padding, batching and reading ahead change nothing: a clip alone against the same clip in any company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ASSETS, write_clips
from hypothesis import given, settings
from hypothesis import strategies as st
from test_examples import clip

from csm.backend import Backend
from csm.data.batches import collate
from csm.data.codes import CodeCache, tokenise
from csm.data.examples import Example, ExampleSet
from csm.data.manifest import read_data
from csm.model_folder import open_folder
from csm.recipe import Recipe
from csm.torch.checkpoint import load_model
from csm.torch.trainer import TorchTrainer


@pytest.fixture(scope="module")
def trainer(toy_folder: Path) -> TorchTrainer:
    return TorchTrainer(load_model(open_folder(toy_folder)), Recipe())


def scores(trainer: TorchTrainer, examples: list[Example], chosen: list[np.ndarray]) -> np.ndarray:
    """Mean losses of each example, (B, 2)."""
    found = trainer.score(collate(examples, chosen))
    return np.stack([found[key] / found[f"{key}_tokens"] for key in ("semantic", "acoustic")], 1)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 2), st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=25)
def test_a_clips_loss_is_the_same_alone_and_in_any_batch(
    trainer: TorchTrainer, frames: list[int], context: int, seed: int, sparse: bool
) -> None:
    examples = ExampleSet([clip(seed + i, 0, n) for i, n in enumerate(frames)], context, 256, seed)
    made = [examples.example(i, 0) for i in range(len(frames))]
    chosen = [examples.depth_frames(example, 0, 0.3 if sparse else 1.0) for example in made]
    together = scores(trainer, made, chosen)
    for i, example in enumerate(made):
        alone = scores(trainer, [example], [chosen[i]])[0]
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-6)


def test_a_clips_codes_are_the_same_in_any_company(tmp_path: Path) -> None:
    """Order, neighbours, threads that read ahead, and how the conversations are cut: the codes are the clip's own."""
    write_clips(tmp_path, 10)
    codec = Backend("cpu", "float32", "").codec(open_folder(ASSETS))
    rows = [row for conversation in read_data([tmp_path], speaker=1)[0] for row in conversation]
    alone = {row.name: CodeCache(tmp_path / "alone" / row.name, codec).codes_of(row) for row in rows}
    for number, threads in enumerate((0, 1, 4)):
        order = np.random.default_rng(number).permutation(len(rows))
        conversations = [[rows[i] for i in part] for part in np.array_split(order, 3)]
        found = tokenise(conversations, CodeCache(tmp_path / str(number), codec), threads=threads)
        turns = [turn for conversation in found.conversations for turn in conversation]
        assert [turn.row.name for turn in turns] == [rows[i].name for i in order if not _is_fault(alone, rows[i].name)]
        for turn in turns:
            np.testing.assert_array_equal(turn.codes, alone[turn.row.name])


def _is_fault(alone: dict[str, object], name: str) -> bool:
    return not isinstance(alone[name], np.ndarray)
