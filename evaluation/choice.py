"""Which checkpoint is best: the most similar one among those that did not lose words, naturalness or the end on the way.

A checkpoint is out where its word error rate, its share of samples that stopped by themselves or its predicted opinion is
worse than the base's beyond chance by more than a margin (`GUARDS`): the 95 % interval of the paired difference lies
wholly beyond it. Where all are out, the most similar one is taken and the sentence says so. Limits: no correction for
looking at many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.compare import has_pairs, paired_bootstrap
from evaluation.directions import DIRECTIONS

if TYPE_CHECKING:
    from evaluation.score import SystemScores

GUARDS = {  # metric: its name, the loss that is put up with
    "word_error_rate": ("word errors", 0.05),
    "stopped": ("endings", 0.05),
    "predicted_mos": ("predicted naturalness", 0.1),
}


def choose_best(systems: Sequence[SystemScores]) -> tuple[str | None, str]:
    """The best checkpoint, the earlier of equals, and sentences that say why.

    A sample without a similarity counts 0 here: what is empty or silent resembles nobody, and a checkpoint that
    mostly fails must not win by its one good sample.
    """
    checkpoints = [system for system in systems if system.kind == "checkpoint"]
    ranked = [(mean_with_failures(system.samples), system) for system in checkpoints if system.summary["scored"]]
    if not ranked:
        what = "has a sample that could be scored" if checkpoints else "was scored"
        return None, f"There is no best: no checkpoint {what}."
    base = next((system for system in systems if system.kind == "base" and system.summary["scored"]), None)
    losses = {system.name: lost(base, system) if base else [] for _, system in ranked}
    sound = [pair for pair in ranked if not losses[pair[1].name]]
    value, best = max(sound or ranked, key=lambda pair: pair[0])
    reason = _reason(value, best, len(checkpoints), base)
    passed_over = {name: guards for name, guards in losses.items() if guards and name != best.name}
    if passed_over and sound:
        which = "; ".join(f"{name}: {', '.join(guards)}" for name, guards in passed_over.items())
        reason += f" Out are those significantly worse than {_called(base)} ({which})."
    if not sound:
        floor = _called(base)
        reason += (
            f" Every checkpoint is significantly worse than {floor} in something; it in {', '.join(losses[best.name])}."
        )
    return best.name, reason


def mean_with_failures(rows: Sequence[dict[str, Any]]) -> float:
    """The mean similarity, 0 for a sample without one."""
    return float(np.mean([row["speaker_similarity"] for row in with_failures(rows)]))


def with_failures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with a similarity of 0 where there is none."""
    return [{**row, "speaker_similarity": row["speaker_similarity"] or 0.0} for row in rows]


def lost(base: SystemScores, system: SystemScores) -> list[str]:
    """What a system does significantly worse than the base, beyond the margins of `GUARDS`."""
    found = []
    for metric, (name, margin) in GUARDS.items():
        if not has_pairs(base.samples, system.samples, metric):
            continue
        interval = paired_bootstrap(base.samples, system.samples, metric).interval_95
        if interval and all(DIRECTIONS[metric] * end < -margin for end in interval):
            found.append(name)
    return found


def _called(base: SystemScores | None) -> str:
    """The base, or what `--against` put in its place."""
    return "the base" if base is None or base.name == "base" else base.name


def _reason(value: float, best: SystemScores, count: int, base: SystemScores | None) -> str:
    how = f"the highest of {count} checkpoints" if count > 1 else "the only checkpoint"
    reason = f"{best.name} has a mean speaker similarity of {value:.3f} ({how}"
    if failed := best.summary["samples"] - best.summary["scored"]:
        reason += f", {failed} of {best.summary['samples']} samples without one counted as 0"
    if base is None:
        return reason + ")."
    theirs = mean_with_failures(base.samples)
    reason += f"), {'above' if value > theirs else 'not above'} {_called(base)}'s {theirs:.3f}"
    ours, others = (with_failures(system.samples) for system in (best, base))
    if not has_pairs(others, ours, "speaker_similarity"):
        return reason + "."
    interval = paired_bootstrap(others, ours, "speaker_similarity").interval_95
    if interval is None:
        return reason + "; there are too few texts to say whether that is chance."
    if interval[0] <= 0 <= interval[1]:
        return reason + "; no significant difference."
    return reason + "."
