"""What a fine-tune forgot: the other speakers that its base could be, and texts that the data never were like.

As another speaker a checkpoint is held against the base's own samples of that speaker: is it still that voice, are the words
still said, does it still end. As the target it speaks built-in texts of another domain. Differences are paired with the
base's (same text, same seed) as everywhere; what was lost is what is significantly worse. A voice that the base never had
cannot be forgotten: the base's samples then resemble each other little, which the yardstick shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from csm.errors import CsmError
from evaluation.columns import ABSENT
from evaluation.compare import has_pairs, paired_bootstrap
from evaluation.directions import DIRECTIONS
from evaluation.judges import Judges
from evaluation.reference import Reference
from evaluation.sample import Sample
from evaluation.score import SystemScores, score_system
from evaluation.speaker import embed, mean_embedding, similarity, unusable

TEXTS = (
    "please close the window before you leave.",
    "what time does the last train go on sunday?",
    "twenty seven people came, and nobody knew why.",
    "no, i have never been there, have you?",
    "the weather will be cold and wet in the north.",
    "press one to hear the message again.",
)
"""Of everyday life: outside the domain of most data."""

FIGURES = {
    "speaker_similarity": "voice",
    "word_error_rate": "words",
    "stopped": "endings",
    "predicted_mos": "naturalness",
}
HEADS = ("spoken as", "system", "similarity", "words WER", "opinion", "ended", "worse than before in")
_DECIMALS = {"speaker_similarity": 3, "word_error_rate": 3, "predicted_mos": 2, "stopped": 2}


def measure_forgetting(
    speaker: int, systems: Mapping[str, Sequence[Sample]], base: str, judges: Judges, target: Reference | None = None
) -> list[dict[str, Any]]:
    """A row a system for one speaker.

    Args:
        speaker: the number that was spoken as.
        systems: samples of the same texts and seeds by name.
        base: the name of the one that the others began from.
        judges: who is asked.
        target: the recordings, where the speaker is the one that was trained on; else the base's samples stand for them.

    Returns:
        `system`, `speaker`, `is_target`, `samples`, the figures of `FIGURES` (None with a sentence under `reasons`),
        `against_base` (paired differences with their intervals) and `lost`, the figures that are significantly worse.
    """
    try:
        voice = target or Reference.from_recordings(f"{base}, speaker {speaker}", systems[base])
    except CsmError as error:
        return [_absent(name, speaker, len(samples), error.message) for name, samples in systems.items()]
    scored = {name: score_system(name, samples, voice, judges=judges) for name, samples in systems.items()}
    if target is None:
        scored = {name: against_others(one, systems[name], systems[base]) for name, one in scored.items()}
    return [
        _row(one, speaker, scored[base] if one.name != base else None, target is not None) for one in scored.values()
    ]


def against_others(system: SystemScores, samples: Sequence[Sample], base: Sequence[Sample]) -> SystemScores:
    """The scores with each sample's similarity to the base's samples of other texts and seeds.

    With the one of its own text and seed among them, the base would resemble itself by its own sample.
    """
    voices = {(one.text, one.seed): embed(one.wave, one.rate) for one in base if not unusable(one.wave, one.rate)}
    rows, known = [], []
    for sample, row in zip(samples, system.samples, strict=True):
        others = [voice for key, voice in voices.items() if key != (sample.text, sample.seed)]
        value = None
        if others and row["speaker_similarity"] is not None:
            value = similarity(embed(sample.wave, sample.rate), mean_embedding(others))
            known.append(value)
        rows.append({**row, "speaker_similarity": value})
    reasons = system.reasons if known else {**system.reasons, "speaker_similarity": "Too few samples are spoken."}
    mean = sum(known) / len(known) if known else None
    return replace(system, samples=rows, summary={**system.summary, "speaker_similarity": mean}, reasons=reasons)


def _row(system: SystemScores, speaker: int, base: SystemScores | None, is_target: bool) -> dict[str, Any]:
    against: dict[str, Any] = {}
    for metric in FIGURES if base else ():
        assert base is not None
        if has_pairs(base.samples, system.samples, metric):
            difference = paired_bootstrap(base.samples, system.samples, metric)
            interval = list(difference.interval_95) if difference.interval_95 else None
            against[metric] = {"mean_difference": difference.mean_difference, "interval_95": interval}
    return {
        "system": system.name,
        "speaker": speaker,
        "is_target": is_target,
        "samples": len(system.samples),
        **{key: system.summary.get(key) for key in FIGURES},
        "against_base": against,
        "lost": [metric for metric, one in against.items() if _is_worse(metric, one["interval_95"])],
        "reasons": {key: system.reasons[key] for key in FIGURES if key in system.reasons},
    }


def _is_worse(metric: str, interval: Sequence[float] | None) -> bool:
    return interval is not None and all(DIRECTIONS[metric] * end < 0 for end in interval)


def _absent(system: str, speaker: int, samples: int, reason: str) -> dict[str, Any]:
    return {
        "system": system, "speaker": speaker, "is_target": False, "samples": samples, **dict.fromkeys(FIGURES),
        "against_base": {}, "lost": [], "reasons": dict.fromkeys(FIGURES, reason),
    }  # fmt: skip


def forgetting_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The rows as `HEADS` has them."""
    return [
        [
            f"{row['speaker']}{' (target, other texts)' if row['is_target'] else ''}",
            row["system"],
            *(_cell(row, key) for key in ("speaker_similarity", "word_error_rate", "predicted_mos", "stopped")),
            ", ".join(FIGURES[metric] for metric in row["lost"]) or ABSENT,
        ]
        for row in rows
    ]


def forgetting_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the table means, and what could not be had."""
    yield (
        "Similarity of another speaker is to the base's own samples as that speaker (the base's row: of each to the others), "
        "of the target to the recordings; worse is what lies beyond chance."
    )
    told = dict.fromkeys(
        f"Speaker {row['speaker']}: {reason}"
        for row in rows
        for key, reason in row["reasons"].items()
        if key == "speaker_similarity"
    )
    yield from told


def _cell(row: Mapping[str, Any], key: str) -> str:
    return ABSENT if row[key] is None else f"{row[key]:.{_DECIMALS[key]}f}"
