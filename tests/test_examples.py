"""Examples and batches: split, context, order, decoder frames, padding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import TOY_CODEBOOKS

from csm.data.batches import EpochBatches, collate, some_examples, validation_batches
from csm.data.examples import Example, ExampleSet
from csm.data.order import epoch_order
from csm.data.sources import Source
from csm.data.split import split
from csm.errors import CsmError
from csm.frames import Frames, turn
from csm.model_folder import open_folder
from csm.recipe import Recipe
from csm.torch.checkpoint import load_model
from csm.torch.trainer import TorchTrainer

FEW, MANY = 3, 40


def clip(number: int, speaker: int = 0, frames: int | None = None) -> Source:
    rng = np.random.default_rng(number)
    codes = rng.integers(1, 64, (TOY_CODEBOOKS, frames or 4 + number % 9))
    return Source(f"clip-{number}", speaker, turn(rng.integers(5, 50, 3 + number % 5), codes, TOY_CODEBOOKS))


def example_set(count: int = 12, context: int = 0, longest: int = 256) -> ExampleSet:
    return ExampleSet([clip(i, i % 2) for i in range(count)], context, longest, seed=0)


def test_split_keeps_conversations_whole_and_is_seeded() -> None:
    conversations = [[clip(10 * i + j) for j in range(3)] for i in range(10)]
    train, held = split(conversations, 0.2, 1)
    assert len(held) == 6
    assert {s.id for s in train}.isdisjoint(s.id for s in held)
    whole = [{s.id for s in c} for c in conversations]
    assert all(c <= {s.id for s in train} or c <= {s.id for s in held} for c in whole)
    assert list(split(conversations, 0.2, 1)[1]) == list(held)
    assert [s.id for s in split(conversations, 0.2, 2)[1]] != [s.id for s in held]


def test_one_clip_cannot_be_split() -> None:
    with pytest.raises(CsmError, match="cannot be split"):
        split([[clip(0)]], 0.1, 0)
    assert len(split([[clip(0)]], 0.0, 0)[1]) == 0


def test_conversations_that_share_a_recording_stay_together() -> None:
    """Windows over one dialogue reuse its clips: none of them may be validated on while another is trained on."""
    clips = [clip(i) for i in range(40)]
    windows = [clips[i : i + 3] for i in range(0, 8)] + [[c] for c in clips[10:]]
    for seed in range(5):
        train, held = split(windows, 0.3, seed)
        assert held
        assert {s.sound for s in train}.isdisjoint(s.sound for s in held)


def test_context_is_the_same_speaker_of_the_same_split_and_never_the_target() -> None:
    examples = example_set(12, context=3)
    for epoch in range(3):
        for index, source in enumerate(examples.sources):
            found = examples.example(index, epoch)
            before = found.rows.frames[: found.target_start]
            allowed = [s.own for s in examples.sources if s.speaker == source.speaker and s.id != source.id]
            assert sum(len(a) for a in allowed if _contains(before, a.frames)) == found.target_start
    assert any(
        not np.array_equal(examples.example(i, 0).rows.frames, examples.example(i, 1).rows.frames) for i in range(12)
    )


def _contains(rows: np.ndarray, part: np.ndarray) -> bool:
    return any(np.array_equal(rows[i : i + len(part)], part) for i in range(len(rows) - len(part) + 1))


def test_a_conversation_gives_its_own_earlier_turns() -> None:
    rows = [clip(i).own for i in range(4)]
    sources = [Source(f"t{i}", 0, rows[i], tuple(rows[:i]), alone=False) for i in range(4)]
    found = ExampleSet(sources, 2, 256, 0).example(3, 0)
    np.testing.assert_array_equal(found.rows.frames, np.concatenate([r.frames for r in rows[1:]]))
    assert found.target_start == len(rows[1]) + len(rows[2])


def test_context_gives_way_before_the_target() -> None:
    rows = [clip(i, frames=10).own for i in range(3)]
    sources = [Source("t", 0, rows[2], (rows[0], rows[1]), alone=False)]
    room_for_two = len(rows[1]) + len(rows[2])
    assert ExampleSet(sources, 4, room_for_two, 0).example(0, 0).target_start == len(rows[1])
    with pytest.raises(CsmError, match="needs"):
        ExampleSet(sources, 4, len(rows[2]) - 1, 0)


@pytest.mark.parametrize("fraction", [1.0, 0.5, 1 / 16, 1e-6])
def test_decoder_frames_are_drawn_per_example_with_the_end_among_them(fraction: float) -> None:
    examples = example_set(12)
    for index in range(12):
        example = examples.example(index, 0)
        chosen = examples.depth_frames(example, 5, fraction)
        assert chosen[-1]
        assert chosen.sum() == max(2, np.ceil(fraction * len(chosen)))
        np.testing.assert_array_equal(chosen, example_set(12).depth_frames(example, 5, fraction))


@pytest.mark.parametrize(("frames", "trained"), [(1, 2), (2, 2), (16, 2), (31, 2), (32, 3)])
def test_a_short_clip_trains_the_depth_decoder_on_more_than_its_end(frames: int, trained: int) -> None:
    """`frames` and the end: at 1/16 the share of a clip of up to 15 frames would be its end alone."""
    examples = ExampleSet([clip(0, frames=frames)], 0, 256, 0)
    example = examples.example(0, 0)
    drawn = [examples.depth_frames(example, epoch, 1 / 16) for epoch in range(8)]
    assert {int(chosen.sum()) for chosen in drawn} == {trained}
    assert all(chosen[-1] for chosen in drawn)
    if frames > 2:
        assert len({tuple(chosen) for chosen in drawn}) > 1, "another frame in another epoch"
    lone = Example("cut", Frames(example.rows.frames[: example.targets[1]], example.rows.mask[: example.targets[1]]), 0)
    assert examples.depth_frames(lone, 0, 1 / 16).tolist() == [True], "a turn that was cut at its first frame"


def test_an_epoch_holds_every_example_once_in_a_seeded_order() -> None:
    lengths = list(np.random.default_rng(0).integers(5, 90, 101))
    order = epoch_order(lengths, 4, seed=3, epoch=0).tolist()
    assert sorted(i for batch in order for i in batch) == list(range(101))
    assert order == epoch_order(lengths, 4, seed=3, epoch=0).tolist()
    assert order != epoch_order(lengths, 4, seed=3, epoch=1).tolist()
    spread = np.mean([max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in order])
    assert spread < 20, "batches hold examples of like length"


def test_updates_cover_the_epoch() -> None:
    batches = EpochBatches(example_set(11), batch_size=2, accumulate=3, decoder_fraction=0.5, seed=0)
    sizes = [[b.shape[0] for b in batches.update(0, n)] for n in range(batches.updates)]
    assert [len(s) for s in sizes] == [3, 3]
    assert sum(map(sum, sizes)) == 11


def test_validation_sees_every_example_once_and_whole() -> None:
    examples = example_set(7)
    batches = validation_batches(examples, 3)
    assert [b.shape[0] for b in batches] == [3, 3, 1]
    assert sum(len(b.targets) for b in batches) == sum(len(examples.example(i, 0).targets) for i in range(7))
    assert all(len(b.depth) == len(b.targets) for b in batches)


def test_padding_never_changes_a_clips_loss(toy_folder: Path) -> None:
    """One clip alone against the same clip beside a longer one: 1e-6."""
    trainer = TorchTrainer(load_model(open_folder(toy_folder)), Recipe())
    examples = [Example(f"e{n}", clip(n, frames=n).own, 0) for n in (FEW, MANY)]
    everything = [np.ones(len(e.targets), bool) for e in examples]
    together = trainer.score(collate(examples, everything))
    for index, example in enumerate(examples):
        alone = trainer.score(collate([example], [everything[index]]))
        for key in ("semantic", "acoustic"):
            tokens = alone[f"{key}_tokens"][0]
            assert alone[key][0] / tokens == pytest.approx(together[key][index] / tokens, abs=1e-6)


def test_one_example_is_the_example_without_padding() -> None:
    examples = [Example(f"e{n}", clip(n, frames=n).own, 0) for n in (9, FEW, MANY)]
    chosen = [np.ones(len(e.targets), bool) for e in examples]
    batch = collate(examples, chosen)
    for index, example in enumerate(examples):
        wanted, found = collate([example], [chosen[index]]), some_examples(batch, [index])
        for name in ("text_at", "text_ids", "audio_at", "codes", "targets", "example_of"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
        assert (found.shape, found.keys) == (wanted.shape, wanted.keys)


def test_keys_tell_contents_apart() -> None:
    one, two = Example("a", clip(1).own, 0), Example("b", clip(2).own, 0)
    assert one.key == Example("other name", clip(1).own, 0).key
    assert len({one.key, two.key, Example("a", clip(1).own, 1).key}) == 3
    assert all(a.key != b.key for a, b in pairwise([one, two]))
