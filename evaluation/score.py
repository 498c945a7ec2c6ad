"""Scores: samples against a reference, systems against the base, the best checkpoint; and their JSON.

`scores.json` (schema version 1) holds `reference`, `systems` (each with its samples' rows and their means),
`comparisons` (every other system minus the base, paired) and `best` with the reason. Every number that could not be
had is null with a sentence under `reasons`; NaN is never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from csm.errors import CsmError
from evaluation import judges as asked
from evaluation import likeness
from evaluation.choice import choose_best
from evaluation.compare import METRICS, has_pairs, paired_bootstrap
from evaluation.directions import DIRECTIONS
from evaluation.judges import Judges
from evaluation.likeness import contour, measure_likeness
from evaluation.reference import Reference
from evaluation.sample import POOLED_SECONDS, Sample, measure, pooled_voices, row, summarise
from evaluation.speaker import similarity
from evaluation.style import measure_style
from evaluation.terms import score_terms

__all__ = ["Kind", "Reference", "Sample", "Scores", "SystemScores", "score_sample", "score_system"]

SCHEMA_VERSION = 1
Kind = Literal["base", "checkpoint", "folder", "codec"]
KEYS = (*likeness.KEYS, *asked.KEYS)
ALONE = Judges()


def score_sample(sample: Sample, reference: Reference, judges: Judges = ALONE) -> dict[str, Any]:
    """One sample's row: similarity, words, opinion, likeness to a recording of its text, and all of `evaluation.sample`.

    Returns:
        a flat JSON object; a value that cannot be had is None, with a sentence in `reasons` under the same key.

    Raises:
        CsmError: the speaker embedding's weights are not installed.
    """
    measures, voice = measure(sample)
    if voice is not None:
        measures.put("speaker_similarity", similarity(voice, reference.embedding))
    recording = reference.contours.get((sample.text or "").strip())
    measures.update(measure_likeness(contour(sample.wave, sample.rate) if recording else None, recording))
    told, heard = judges.ask(sample)
    measures.update(told)
    return row(sample, measures, heard)


@dataclass(frozen=True)
class SystemScores:
    """What one model, or one folder of samples, scored.

    Args:
        name: unique among the systems of one document.
        kind: base, checkpoint, folder, or codec: the recordings through the codec and back.
        samples: the rows.
        summary: number of samples, how many have a similarity, the means over the samples that have a value, and
            `speaker_similarity_pooled` over pieces of 3 s and more.
        reasons: a sentence for every None in the summary.
    """

    name: str
    kind: Kind
    samples: list[dict[str, Any]]
    summary: dict[str, Any]
    reasons: dict[str, str]


def score_system(
    name: str, samples: Iterable[Sample], reference: Reference, kind: Kind = "folder", judges: Judges = ALONE
) -> SystemScores:
    """Score every sample of a system, and the system.

    Raises:
        CsmError: there are no samples, or the speaker embedding's weights are not installed.
    """
    samples = list(samples)
    if not samples:
        raise CsmError(f"{name} has no samples to score.")
    rows = [score_sample(sample, reference, judges) for sample in samples]
    means, pieces = summarise(rows, KEYS), pooled_voices(samples)
    pooled = [similarity(voice, reference.embedding) for voice in pieces]
    means.put(
        "speaker_similarity_pooled",
        float(np.mean(pooled)) if pooled else None,
        f"The samples of no seed add up to {POOLED_SECONDS:.0f} s of sound.",
    )
    means.update(judges.compare(pieces, reference.embedding))
    means.update(measure_style(rows, reference.style.rows))
    scored = sum(found["speaker_similarity"] is not None for found in rows)
    return SystemScores(name, kind, rows, {"samples": len(rows), "scored": scored, **means.values}, means.reasons)


@dataclass(frozen=True)
class Scores:
    """All that one evaluation found out; `Scores.of` makes it from its parts."""

    reference: dict[str, Any]
    systems: list[SystemScores]
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    best: str | None = None
    best_reason: str = ""
    terms: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    forgetting: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        reference: Reference,
        systems: Sequence[SystemScores],
        terms: Sequence[str] = (),
        language: str = "en",
        forgetting: Sequence[dict[str, Any]] = (),
    ) -> Scores:
        """Compare every system with the base, where there is one, choose the best checkpoint, and look for terms.

        Args:
            reference: the recordings.
            systems: what was scored.
            terms: what to look for in what was heard.
            language: of the texts.
            forgetting: rows of `evaluation.forgetting.measure_forgetting`.

        Raises:
            CsmError: two systems have the same name.
        """
        names = [system.name for system in systems]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CsmError(f"Two systems are called {twice[0]}.", "Give each a name of its own.")
        best, reason = choose_best(systems)
        found = {system.name: _term_rows(system, terms, language) for system in systems} if terms else {}
        ordered = sorted(systems, key=lambda system: system.kind == "codec")  # what nobody spoke comes last
        compared = compare_with_base(systems)
        return cls(reference.to_json(), ordered, compared, best, reason, found, list(forgetting))

    def to_json(self) -> dict[str, Any]:
        """The document as plain JSON values, `schema_version` first."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Scores:
        """The document that `to_json` gave.

        Raises:
            CsmError: it is none, or of another schema version.
        """
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise CsmError(
                f"The scores have schema version {version}; this program reads version {SCHEMA_VERSION}.",
                "Run csm evaluate again.",
            )
        try:
            parts = {name: document[name] for name in ("reference", "comparisons", "best", "best_reason")}
            parts |= {
                "terms": document.get("terms", {}),
                "forgetting": document.get("forgetting", []),
            }  # may be missing
            systems = [SystemScores(**system) for system in document["systems"]]
        except (KeyError, TypeError) as error:
            raise CsmError(f"The scores are incomplete ({error}).", "Run csm evaluate again.") from error
        if unknown := [system.kind for system in systems if system.kind not in get_args(Kind)]:
            raise CsmError(f"The scores hold a system of the unknown kind {unknown[0]}.", "Run csm evaluate again.")
        if any(not _is_row(row) for system in systems for row in system.samples):
            raise CsmError("The scores hold a sample that is none.", "Run csm evaluate again.")
        return cls(systems=systems, **parts)


def _is_row(row: Any) -> bool:
    """Whether a sample of a document has what every sample has, and no word or NaN for a number."""
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not {"text", "seed", "reasons"} <= set(row):
        return False
    return isinstance(row["text"], str | None) and all(
        row.get(key) is None or (isinstance(row[key], int | float) and np.isfinite(row[key])) for key in DIRECTIONS
    )


def _term_rows(system: SystemScores, terms: Sequence[str], language: str) -> list[dict[str, Any]]:
    """Each term's count, hits, hit rate and mishearings in what was heard of a system."""
    pairs = [(row["text"], row["heard"]) for row in system.samples if row["text"] and row.get("heard") is not None]
    return [
        {
            "term": s.term,
            "said": s.said,
            "heard": s.heard,
            "hit_rate": s.hit_rate,
            "instead": dict(s.instead.most_common()),
        }
        for s in score_terms(terms, pairs, language)
    ]


def compare_with_base(systems: Sequence[SystemScores]) -> list[dict[str, Any]]:
    """Every other system minus the first base, for each metric that pairs; nothing where there is no base."""
    base = next((system for system in systems if system.kind == "base"), None)
    if base is None:
        return []
    found = []
    for system in (system for system in systems if system.kind not in ("base", "codec")):
        for metric in METRICS:
            if has_pairs(base.samples, system.samples, metric):
                difference = paired_bootstrap(base.samples, system.samples, metric)
                interval = list(difference.interval_95) if difference.interval_95 else None
                found.append(
                    {"system": system.name, "against": base.name, **asdict(difference), "interval_95": interval}
                )
    return found
