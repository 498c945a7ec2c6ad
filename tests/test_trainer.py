"""The trainer: what learns, what stays, and that an update is an update however it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOY_CODEBOOKS
from safetensors.torch import load_file, save_file
from test_examples import clip

from csm.backend import Sampling
from csm.config import ModelConfig
from csm.data.batches import Batch, collate
from csm.data.examples import Example, ExampleSet
from csm.frames import text_rows, turn
from csm.model_folder import open_folder
from csm.recipe import Recipe
from csm.torch.checkpoint import load_model
from csm.torch.generate import TorchFrameGenerator
from csm.torch.trainer import TorchTrainer, group_of

UNCLIPPED = {"max_grad_norm": 0.0, "weight_decay": 0.01}


def trainer(folder: Path, **recipe: Any) -> TorchTrainer:
    return TorchTrainer(load_model(open_folder(folder)), Recipe(**{**UNCLIPPED, **recipe}))


def batch(*numbers: int, keep: int = 1) -> Batch:
    examples = [Example(f"e{n}", clip(n).own, 0) for n in numbers]
    return collate(examples, [np.arange(len(e.targets)) % keep == 0 for e in examples])


def weights(of: TorchTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.model.state_dict().items()}


def assert_equal_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], **tolerance: float) -> None:
    for name in one:
        torch.testing.assert_close(one[name], two[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("cut", [[[1], [2], [3], [4], [15]], [[1, 2], [3, 4], [15]], [[15, 4, 3], [2, 1]]])
def test_accumulation_equals_one_big_batch(toy_folder: Path, cut: list[list[int]]) -> None:
    """Uneven lengths, a short tail: the same loss, the same gradient, the same weights after an update."""
    whole, parts = trainer(toy_folder), trainer(toy_folder)
    one = whole.step([batch(1, 2, 3, 4, 15, keep=3)], 1e-3)
    many = parts.step([batch(*numbers, keep=3) for numbers in cut], 1e-3)
    for key in one:
        assert one[key] == pytest.approx(many[key], rel=1e-5)
    for (name, p), (_, q) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        state, other = whole.optimizer.state[p], parts.optimizer.state[q]
        torch.testing.assert_close(state["exp_avg"], other["exp_avg"], atol=1e-6, rtol=1e-4, msg=name)


def test_the_loss_is_as_documented(toy_folder: Path) -> None:
    """semantic_weight x mean CE(codebook 0) + acoustic_weight x mean CE(the others)."""
    plain = trainer(toy_folder).step([batch(1, 2)], 0.0)
    heavy = trainer(toy_folder, semantic_weight=20.0, acoustic_weight=3.0).step([batch(1, 2)], 0.0)
    assert heavy["loss"] == pytest.approx(20 * plain["semantic_loss"] + 3 * plain["acoustic_loss"], rel=1e-6)
    assert heavy["semantic_loss"] == pytest.approx(plain["semantic_loss"], rel=1e-6)


def test_the_end_frame_is_learned(toy_folder: Path) -> None:
    """The loss changes when only the end frame's codes change."""
    rows = clip(5).own
    changed = turn(rows.frames[~rows.audio_rows, -1], rows.frames[rows.audio_rows, :-1].T, TOY_CODEBOOKS)
    np.testing.assert_array_equal(changed.frames[:-1], rows.frames)
    other = rows.frames.copy()
    other[-1, :-1] = 7
    example, moved = Example("a", rows, 0), Example("b", type(rows)(other, rows.mask), 0)
    assert (rows.frames[-1, :-1] == 0).all()
    chosen = [np.ones(len(example.targets), bool)]
    model = trainer(toy_folder)
    one, two = model.score(collate([example], chosen)), model.score(collate([moved], chosen))
    assert abs(one["semantic"][0] - two["semantic"][0]) > 1e-3
    assert abs(one["acoustic"][0] - two["acoustic"][0]) > 1e-3


def test_the_gradient_reaches_everything(toy_folder: Path) -> None:
    """Every parameter moves, every slice of the heads, and every codebook's used rows of the audio table."""
    one = trainer(toy_folder, weight_decay=0.0)
    before = weights(one)
    one.step([batch(1, 2, 3)], 1e-3)
    for name, value in one.model.state_dict().items():
        assert (value != before[name]).any(), name
    heads = "depth_decoder.codebooks_head.weight"
    assert (one.model.state_dict()[heads] != before[heads]).flatten(1).any(1).all()
    moved = (one.model.audio_table != before["depth_decoder.model.embed_tokens.weight"]).any(1)
    assert moved.view(TOY_CODEBOOKS, -1).any(1).all()


@pytest.mark.parametrize("frozen", ["backbone", "decoder", "embeddings"])
def test_freezing_freezes_that_group_and_nothing_else(toy_folder: Path, frozen: str) -> None:
    one = trainer(toy_folder, **{f"freeze_{frozen}": True})
    before = weights(one)
    one.step([batch(1, 2, 3)], 1e-3)
    for name, value in one.model.state_dict().items():
        changed = bool((value != before[name]).any())
        assert changed == (group_of(name) != frozen), name


def test_groups_are_the_documented_ones(toy_folder: Path) -> None:
    names = load_model(open_folder(toy_folder)).state_dict()
    groups = {name: group_of(name) for name in names}
    assert groups["lm_head.weight"] == groups["depth_decoder.codebooks_head.weight"] == "decoder"
    assert groups["depth_decoder.model.inputs_embeds_projector.weight"] == "decoder"
    assert groups["depth_decoder.model.norm.weight"] == "decoder"
    assert groups["backbone_model.norm.weight"] == "backbone"
    assert {n for n, g in groups.items() if g == "embeddings"} == {
        "embed_text_tokens.weight",
        "depth_decoder.model.embed_tokens.weight",
    }


def test_rates_and_decay_of_the_groups(toy_folder: Path) -> None:
    one = trainer(toy_folder, backbone_rate=0.1, embeddings_rate=0.5, weight_decay=0.25)
    one.step([batch(1)], 1e-3)
    for group in one.optimizer.param_groups:
        rate = {"backbone": 0.1, "decoder": 1.0, "embeddings": 0.5}[group["group"]]
        assert group["lr"] == pytest.approx(1e-3 * rate)
        decays = group["group"] != "embeddings" and all(p.ndim > 1 for p in group["params"])
        assert group["weight_decay"] == (0.25 if decays else 0.0)


def test_kept_states_equal_computed_ones(toy_folder: Path) -> None:
    """With backbone and embeddings frozen the states are kept; updates equal those of a trainer that keeps nothing."""
    frozen = {"freeze_backbone": True, "freeze_embeddings": True}
    keeps, computes = trainer(toy_folder, **frozen), trainer(toy_folder, **frozen)
    computes.keeps_states = False
    for numbers in ([1, 2], [2, 15], [1, 2]):
        one, two = (t.step([batch(*numbers)], 1e-3) for t in (keeps, computes))
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert len(keeps._states) == 3
    assert_equal_weights(weights(keeps), weights(computes), atol=1e-5, rtol=1e-4)


def test_clipping_is_once_an_update(toy_folder: Path) -> None:
    """Clipped at half the norm, the momenta of a first update are half as large."""
    free = trainer(toy_folder)
    norm = free.step([batch(1), batch(2)], 1e-3)["grad_norm"]
    clipped = trainer(toy_folder, max_grad_norm=norm / 2)
    assert clipped.step([batch(1), batch(2)], 1e-3)["grad_norm"] == pytest.approx(norm)
    for p, q in zip(free.model.parameters(), clipped.model.parameters(), strict=True):
        torch.testing.assert_close(
            clipped.optimizer.state[q]["exp_avg"], free.optimizer.state[p]["exp_avg"] / 2, atol=1e-7, rtol=1e-3
        )


def test_a_loss_that_is_not_finite_changes_nothing(toy_folder: Path) -> None:
    one = trainer(toy_folder)
    with torch.no_grad():
        one.model.lm_head.weight[0, 0] = float("nan")
    before = weights(one)
    with pytest.raises(FloatingPointError):
        one.step([batch(1)], 1e-3)
    assert_equal_weights(before, weights(one), rtol=0, atol=0, equal_nan=True)


def test_state_comes_back_bit_for_bit(toy_folder: Path, tmp_path: Path) -> None:
    one, two = trainer(toy_folder), trainer(toy_folder)
    one.step([batch(1, 2)], 1e-3)
    one.save(tmp_path)
    two.model.load_state_dict(one.model.state_dict())
    two.load(tmp_path)
    for each in (one, two):
        each.step([batch(3, 4)], 1e-3)
    assert_equal_weights(weights(one), weights(two), rtol=0, atol=0)


def test_momenta_of_whole_tables_are_taken_up_too(toy_folder: Path, tmp_path: Path) -> None:
    """A state written before AdamW went by rows, or by many processes, goes on to the same weights."""
    one, two = trainer(toy_folder), trainer(toy_folder)
    one.step([batch(1, 2)], 1e-3)
    one.save(tmp_path)
    state = load_file(tmp_path / "optimizer.safetensors")
    for name in ("embed_text_tokens.weight", "depth_decoder.model.embed_tokens.weight"):
        rows, table = state.pop(f"rows/{name}"), two.model.get_parameter(name)
        assert 0 < len(rows) < len(table)
        for key in ("exp_avg", "exp_avg_sq"):
            state[f"{key}/{name}"] = torch.zeros_like(table).index_copy_(0, rows, state[f"{key}/{name}"]).detach()
    save_file(state, tmp_path / "optimizer.safetensors")
    two.model.load_state_dict(one.model.state_dict())
    two.load(tmp_path)
    for each in (one, two):
        each.step([batch(3, 4)], 1e-3)
    assert_equal_weights(weights(one), weights(two), rtol=0, atol=0)


def test_a_tiny_model_learns_to_copy_and_to_stop() -> None:
    """Row alignment: trained on three clips until the loss is near zero, greedy generation gives them back, stop included."""
    from conftest import toy_config

    config = ModelConfig.from_dict(toy_config().to_dict(), "toy")  # type: ignore[attr-defined]
    from csm.torch.model import Csm

    torch.manual_seed(0)
    model = Csm(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    one = TorchTrainer(model, Recipe(learning_rate=3e-3, max_grad_norm=1.0, weight_decay=0.0, embeddings_rate=1.0))
    data = batch(1, 2, 3)
    for _ in range(250):
        values = one.step([data], 4e-3)
    assert values["loss"] < 0.05
    speaker = TorchFrameGenerator(model)
    for number in (1, 2, 3):
        rows = clip(number).own
        prompt = text_rows(rows.frames[~rows.audio_rows, -1], TOY_CODEBOOKS)
        codes = np.stack(list(speaker.frames(prompt, Sampling(0.0), 40)))
        np.testing.assert_array_equal(codes, rows.frames[rows.audio_rows, :-1][:-1])


@pytest.mark.parametrize("frames", [1, 2, 15])
@pytest.mark.parametrize("fraction", [1.0, 1 / 16])
def test_short_clips_have_a_finite_loss(toy_folder: Path, frames: int, fraction: float) -> None:
    """One frame and its end are two targets; the smallest share of frames still holds the end."""
    examples = ExampleSet([clip(1, frames=frames)], 0, 256, 0)
    example = examples.example(0, 0)
    chosen = examples.depth_frames(example, 0, fraction)
    assert len(example.targets) == frames + 1
    assert chosen.sum() >= 1
    one = trainer(toy_folder)
    values = one.step([collate([example], [chosen])], 1e-3)
    assert all(np.isfinite(value) for value in values.values())
    assert one.is_finite()


def test_a_part_without_weight_is_reported_all_the_same(toy_folder: Path) -> None:
    plain = trainer(toy_folder).step([batch(1, 2)], 0.0)
    alone = trainer(toy_folder, semantic_weight=0.0).step([batch(1, 2)], 0.0)
    assert alone["semantic_loss"] == pytest.approx(plain["semantic_loss"], rel=1e-6)
    assert alone["loss"] == pytest.approx(plain["acoustic_loss"], rel=1e-6)
