"""The order of an epoch: against its plain statement, and under a budget of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_examples import clip, example_set

from csm.data.batches import EpochBatches, validation_batches
from csm.data.draws import rng_for
from csm.data.examples import ExampleSet
from csm.data.order import budget_order, cut_by_budget, epoch_order
from csm.errors import CsmError


def plainly(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """What `epoch_order` is, without arrays."""
    draw = rng_for(seed, epoch, "", "order")
    shuffled, batches = draw.permutation(len(lengths)), []
    for start in range(0, len(shuffled), 16 * batch_size):
        part = sorted(shuffled[start : start + 16 * batch_size].tolist(), key=lambda i: lengths[i])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in draw.permutation(len(batches))]


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_an_epochs_order_is_its_plain_statement(lengths: list[int], batch_size: int, seed: int) -> None:
    assert epoch_order(lengths, batch_size, seed, 3).tolist() == plainly(lengths, batch_size, seed, 3)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=200),
    st.integers(1, 9),
    st.integers(40, 200),
    st.data(),
)
@settings(deadline=None, max_examples=60)
def test_a_budget_is_kept_and_every_epoch_has_equally_many_batches(
    lengths: list[int], batch_size: int, budget: int, data: st.DataObject
) -> None:
    rows = np.array(lengths)
    extra = data.draw(st.integers(0, len(lengths)))
    counts = set()
    for epoch in range(3):
        drawn = np.random.default_rng(epoch).permutation(len(rows))[:extra]
        shown = np.concatenate([np.arange(len(rows)), drawn])
        order = budget_order(rows, shown, len(rows), batch_size, budget, 7, epoch)
        assert sorted(i for batch in order for i in batch.tolist()) == sorted(shown.tolist())
        assert all(len(batch) <= batch_size and len(batch) * rows[batch].max() <= budget for batch in order)
        counts.add(len(order))
    assert len(counts) == 1


@given(st.lists(st.integers(1, 40), max_size=99), st.integers(1, 9), st.integers(40, 200))
@settings(deadline=None, max_examples=60)
def test_batches_in_order_are_as_full_as_the_budget_lets_them(lengths: list[int], batch_size: int, budget: int) -> None:
    ends = cut_by_budget(np.array(lengths, int), batch_size, budget).tolist()
    assert ends == sorted(set(ends))
    assert (ends or [0])[-1] == len(lengths)
    for first, end in zip([0, *ends], ends, strict=False):
        assert end - first <= batch_size
        assert (end - first) * max(lengths[first:end]) <= budget
        if end < len(lengths):
            more = lengths[first : end + 1]
            assert len(more) > batch_size or len(more) * max(more) > budget


def test_batches_differ_from_epoch_to_epoch_and_hold_like_lengths() -> None:
    rows = np.random.default_rng(0).integers(20, 400, 2000)
    one, two = (budget_order(rows, np.arange(2000), 2000, 16, 2000, 0, epoch) for epoch in (0, 1))
    assert one.tolist() == budget_order(rows, np.arange(2000), 2000, 16, 2000, 0, 0).tolist()
    assert {frozenset(batch) for batch in one.tolist()} != {frozenset(batch) for batch in two.tolist()}
    padding = 1 - rows.sum() / sum(len(batch) * rows[batch].max() for batch in one)
    assert padding < 0.1
    assert len(one) < 2000 * rows.mean() / 2000 * 1.35, "the budget is used"


@pytest.mark.parametrize("context", [0, 2])
def test_micro_batches_keep_to_the_budget_with_their_context(context: int) -> None:
    examples = example_set(40, context)
    for epoch in range(2):
        assert all(len(examples.example(i, epoch)) <= examples.most_rows[i] for i in range(40))
    budget = int(examples.most_rows.max()) * 2
    batches = EpochBatches(examples, 8, 2, 1.0, 0, max_frames=budget)
    for epoch in range(2):
        made = [b for number in range(batches.updates) for b in batches.update(epoch, number)]
        assert sum(b.shape[0] for b in made) == 40
        assert max(b.shape[0] * b.shape[1] for b in made) <= budget
    held = validation_batches(examples, 8, budget)
    assert sum(b.shape[0] for b in held) == 40
    assert max(b.shape[0] * b.shape[1] for b in held) <= budget
    with pytest.raises(CsmError, match="longest example has"):
        EpochBatches(examples, 8, 2, 1.0, 0, max_frames=int(examples.most_rows.max()) - 1)


def test_terms_under_a_budget_come_as_often_as_without() -> None:
    examples = ExampleSet([clip(i) for i in range(12)], 0, 256, seed=0)
    often = [2.5 if i % 3 == 0 else 1.0 for i in range(12)]
    batches = EpochBatches(examples, 3, 1, 1.0, 0, often, max_frames=60)
    for epoch in range(3):
        seen = [key for number in range(batches.updates) for b in batches.update(epoch, number) for key in b.keys]
        assert len(seen) == 8 + 2 * 4 + 2
