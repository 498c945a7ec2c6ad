"""Learning by heart, seen in the record of a run: validation rises while training falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

RISES = 2  # one rise is chance


def learning_by_heart(records: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence where, at the last record, validation has just risen twice in a row while training fell.

    Args:
        records: lines of metrics.jsonl up to a step that was validated.

    Returns:
        None as well where it was said at the validation before, so that a run says it once a rise.
    """
    at = [i for i, record in enumerate(records) if "validation_loss" in record]
    if len(at) <= RISES or not _rises(records, at[-RISES - 1 :]):
        return None
    if len(at) > RISES + 1 and _rises(records, at[-RISES - 2 : -1]):
        return None
    losses = [records[i]["validation_loss"] for i in at[-RISES - 1 :]]
    return (
        f"validation loss has risen twice in a row ({' -> '.join(f'{loss:.4g}' for loss in losses)}) while training "
        "loss fell: the model begins to learn its data by heart; fewer epochs or early_stop would end here."
    )


def _rises(records: Sequence[Mapping[str, Any]], at: Sequence[int]) -> bool:
    validation = [records[i]["validation_loss"] for i in at]
    training = [
        fmean([record["loss"] for record in records[begin + 1 : end + 1] if "loss" in record] or [0.0])
        for begin, end in pairwise(at)
    ]
    risen = all(now > before for before, now in pairwise(validation))
    return risen and all(now < before for before, now in pairwise(training))
