"""Sentences that explain a table of scores: what its special rows and columns mean. Only what the table has is explained."""

from __future__ import annotations

from collections.abc import Iterator

from evaluation.columns import ABSENT, shown
from evaluation.judges import SAME_VOICE
from evaluation.score import Scores


def remarks(scores: Scores) -> list[str]:
    """The sentences, in the order of the table."""
    return list(_remarks(scores))


def _remarks(scores: Scores) -> Iterator[str]:
    yield from scores.reference.get("notes", ())
    columns = shown([*(system.summary for system in scores.systems), scores.reference.get("summary", {})])
    if any(system.kind == "codec" for system in scores.systems):
        yield (
            "codec: the recordings through the model's codec and back; what speaks this codec's codes cannot be expected to "
            "come nearer."
        )
    if "same_voice_share" in columns:
        yield f"Same voice is the share of pieces of 3 s that resemble the reference by more than {SAME_VOICE}."
    if "nearest_other_similarity" in columns:
        yield "Nearest other is the similarity to the nearest of the other voices: it should stay below the pooled one."
    if "style_distance" in columns:
        yield _style(scores)


def _style(scores: Scores) -> str:
    style = scores.reference.get("style") or {"name": scores.reference["name"], "recordings": 0, "style_distance": None}
    own = style["style_distance"]
    told = (
        f"half of its recordings are {own:.2f} from the other half"
        if own is not None
        else "it has too few recordings to say how far they are from each other (that takes eight)"
    )
    return (
        f"Style distance is in standard deviations of {style['name']}, over rate, pitch, pitch spread, energy spread and "
        f"pauses; {told}."
    )


def term_rows(scores: Scores) -> list[list[str]]:
    """A row for each system and term: said, heard, hit rate, and what was heard instead, the most frequent first."""
    rows = []
    for system, terms in scores.terms.items():
        for one in terms:
            rate = ABSENT if one["hit_rate"] is None else f"{one['hit_rate']:.2f}"
            instead = ", ".join(f"{what or '(nothing)'} x{count}" for what, count in one["instead"].items())
            rows.append([one["term"], system, str(one["said"]), str(one["heard"]), rate, instead or ABSENT])
    return sorted(rows, key=lambda row: [one["term"] for one in next(iter(scores.terms.values()))].index(row[0]))


TERM_HEADS = ("term", "system", "said", "heard", "hit rate", "heard instead")
