"""Weights of turns: weighted means over the whole update, 0 for context only, and runs without them as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_examples import clip
from test_run import CPU
from test_trainer import assert_equal_weights, batch, trainer, weights

from csm.data.batches import Batch, collate
from csm.data.codes import CodedTurn, Tokenised, data_fingerprint, summary
from csm.data.conversations import read_conversations
from csm.data.examples import Example
from csm.data.row import Row
from csm.errors import CsmError
from csm.segment import Segment
from csm.training.finetuner import CSMFineTuner

LORA = {"method": "lora", "lora_targets": ("attn", "acoustic_heads")}


def weighted(*pairs: tuple[int, float]) -> Batch:
    """A batch of clips by number, each with its weight; a third of their frames train the depth decoder."""
    examples = [Example(f"e{n}", clip(n).own, 0, weight) for n, weight in pairs]
    return collate(examples, [np.arange(len(e.targets)) % 3 == 0 for e in examples])


@pytest.mark.parametrize("method", [{}, LORA, {"freeze_backbone": True, "freeze_embeddings": True}])
def test_a_clip_of_weight_two_counts_as_two_clips(toy_folder: Path, method: dict[str, Any]) -> None:
    """Losses, norm and momenta are those of a batch that has the clip twice; for full, adapters and kept states."""
    one, two = trainer(toy_folder, **method), trainer(toy_folder, **method)
    first = one.step([weighted((1, 2.0), (2, 1.0)), weighted((15, 1.0))], 1e-3)
    second = two.step([batch(1, 1, 2, keep=3), batch(15, keep=3)], 1e-3)
    assert first == pytest.approx(second, rel=1e-5)
    for group, other in zip(one.optimizer.param_groups, two.optimizer.param_groups, strict=True):
        for p, q in zip(group["params"], other["params"], strict=True):
            state, wanted = one.optimizer.state[p], two.optimizer.state[q]
            torch.testing.assert_close(state["exp_avg"], wanted["exp_avg"], atol=1e-6, rtol=1e-4)


def test_only_the_proportions_of_weights_count(toy_folder: Path) -> None:
    """Weights of 3 all through are weights of 1."""
    one = trainer(toy_folder).step([weighted((1, 3.0), (2, 3.0)), weighted((4, 3.0))], 1e-3)
    assert one == pytest.approx(trainer(toy_folder).step([batch(1, 2, keep=3), batch(4, keep=3)], 1e-3), rel=1e-5)


def test_weights_of_one_change_no_bit(toy_folder: Path) -> None:
    plain, ones = trainer(toy_folder), trainer(toy_folder)
    assert weighted((1, 1.0), (2, 1.0)).weights is None
    assert plain.step([batch(1, 2, keep=3)], 1e-3) == ones.step([weighted((1, 1.0), (2, 1.0))], 1e-3)
    assert_equal_weights(weights(plain), weights(ones), rtol=0, atol=0)


def test_scores_are_weighted(toy_folder: Path) -> None:
    model = trainer(toy_folder)
    plain, heavy = model.score(batch(1, 2, keep=3)), model.score(weighted((1, 0.5), (2, 4.0)))
    for key, values in plain.items():
        factor = np.array([0.5, 4.0])
        np.testing.assert_allclose(heavy[key], values * (factor[:, None] if values.ndim > 1 else factor), rtol=1e-6)


def conversation(folder: Path, *turns: dict[str, Any]) -> Path:
    filled = [{"text": "hello there.", "audio_path": "a.wav", "speaker": 0, **turn} for turn in turns]
    (folder / "a.wav").touch()
    (folder / "turns.json").write_text("[[\n" + ",\n".join(json.dumps(turn) for turn in filled) + "\n]]")
    return folder / "turns.json"


def test_weights_are_read_from_turns(tmp_path: Path) -> None:
    path = conversation(tmp_path, {"weight": 0}, {"weight": 2.5}, {}, {"weight": None})
    assert [row.weight for row in read_conversations(path)[0][0]] == [0.0, 2.5, 1.0, 1.0]


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "heavy", True, [1]])
def test_a_weight_that_is_none_is_told_with_its_line(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(CsmError, match=r"turns\.json, line 3, conversation 1, turn 2, has the weight .*not a number"):
        read_conversations(conversation(tmp_path, {"weight": 1}, {"weight": bad}))
    made = CSMFineTuner("csm-tiny", tmp_path / "run", backend=CPU, cache=tmp_path)
    with pytest.raises(CsmError, match="segment 00000-000 has the weight"):
        made.train([Segment("hello there.", 0, np.zeros(24_000, np.float32), bad)])


def turns_of(*weights: float) -> list[list[CodedTurn]]:
    codes = np.arange(6).reshape(2, 3)
    return [
        [CodedTurn(Row(f"{i}", Path("x.wav"), "hello", 0, Path("x"), weight=w), codes)] for i, w in enumerate(weights)
    ]


def test_the_fingerprint_holds_the_weights() -> None:
    assert "weights" not in summary(Tokenised(turns_of(1.0, 1.0), [], 12.5))
    assert "weights 0 to 2.5;" in summary(Tokenised(turns_of(0.0, 2.5), [], 12.5))
    assert len({data_fingerprint(turns_of(*each)) for each in ((1, 1), (1, 2), (2, 1), (0, 1))}) == 4


def test_weight_nought_is_context_only(toy_folder: Path, make_clips: Callable[[int], Path], tmp_path: Path) -> None:
    """Such turns are no targets, in training or validation; as context they stay; where all are, nothing is left."""
    from csm.data.manifest import read_data

    clips = make_clips(8)
    rows, _ = read_data((), clips / "audio", clips / "transcripts", 5)
    made = CSMFineTuner(toy_folder, tmp_path / "run", preset="conversation", backend=CPU, cache=tmp_path / "cache")
    made.layers.append(("test", {"max_steps": 1, "context_turns": 2, "val_split": 0.25, "log_to": ()}))
    flat = [replace(row[0], weight=float(i % 2)) for i, row in enumerate(rows)]
    data = made.tokenise([flat[i : i + 2] for i in range(0, 8, 2)])
    made.train(data)
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())["data"]
    assert sorted(lineage["training"] + lineage["validation"]) == ["001", "003", "005", "007"]
    training, _ = made._split(data)
    assert all(training.example(i, 0).target_start > 0 for i in range(len(training))), "the turn before is context"

    alone = made.tokenise([[row] for row in flat])
    training, validation = made._split(alone)
    assert {s.id for s in (*training.sources, *validation.sources)} == {"001", "003", "005", "007"}
    pool = {training.heard[int(place)].id for place in training._pools[5]}
    assert {"000", "002", "004", "006"} <= pool
    nothing = Tokenised([[replace(t, row=replace(t.row, weight=0.0)) for t in c] for c in data.conversations], [], 12.5)
    with pytest.raises(CsmError, match="every turn to learn has the weight 0"):
        made._split(nothing)
