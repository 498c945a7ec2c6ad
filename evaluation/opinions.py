"""A listening test in one page: people rate samples from 1 to 5 and choose between pairs, without knowing whose they are.

The page holds sounds under random names; which system each is stands in a key beside it, that `collect` needs. Ratings are
absolute categories (ITU-T P.800), pairs are the same text by two systems in random order. Everything is shuffled for each
listener.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from csm.errors import CsmError
from evaluation.page import page, player

KEY_SCHEMA, ANSWERS_SCHEMA = "listening-key-1", "listening-answers-1"


@dataclass(frozen=True)
class Stimulus:
    """One sound to be judged.

    Args:
        system: whose it is; never shown.
        text: what is said.
        seed: the seed it was drawn with.
        wave: `(samples,)` mono.
        rate: samples per second.
    """

    system: str
    text: str
    seed: int
    wave: np.ndarray
    rate: int


def make_test(stimuli: Sequence[Stimulus], seed: int = 0) -> tuple[str, dict[str, Any]]:
    """The page, and the key to its answers.

    Args:
        stimuli: all sounds; those of one text and seed by different systems become pairs.
        seed: of the names and of which of a pair comes first.

    Raises:
        CsmError: there are none.
    """
    if not stimuli:
        raise CsmError("There is no sample to listen to.", "Run csm evaluate RUN first: it speaks the samples.")
    draw = np.random.default_rng(seed)
    names = [draw.bytes(5).hex() for _ in stimuli]
    pairs = _pairs(stimuli, draw)
    test = draw.bytes(6).hex()
    key: dict[str, Any] = {
        "schema_version": KEY_SCHEMA,
        "test": test,
        "items": {
            name: {"system": one.system, "text": one.text, "seed": one.seed}
            for name, one in zip(names, stimuli, strict=True)
        },
        "pairs": {f"{names[a]}-{names[b]}": [names[a], names[b]] for a, b in pairs},
    }
    return _page(test, stimuli, names, list(key["pairs"].values())), key


def _pairs(stimuli: Sequence[Stimulus], draw: np.random.Generator) -> list[tuple[int, int]]:
    by_text: dict[tuple[str, int], list[int]] = {}
    for number, one in enumerate(stimuli):
        by_text.setdefault((one.text, one.seed), []).append(number)
    found = []
    for group in by_text.values():
        for i, a in enumerate(group):
            for b in group[i + 1 :]:
                if stimuli[a].system != stimuli[b].system:
                    found.append((a, b) if draw.random() < 0.5 else (b, a))
    return found


def _page(test: str, stimuli: Sequence[Stimulus], names: Sequence[str], pairs: Sequence[Sequence[str]]) -> str:
    sounds = "".join(
        f'<div id="s{name}" data-text="{html.escape(one.text)}">{player(one.wave, one.rate)}</div>'
        for name, one in zip(names, stimuli, strict=True)
    )
    plan = json.dumps({"test": test, "schema": ANSWERS_SCHEMA, "items": list(names), "pairs": list(pairs)})
    assets = files("evaluation") / "assets"
    body = (assets / "listening.html").read_text(encoding="utf-8").replace("<!-- sounds -->", sounds)
    script = f"const PLAN = {plan};\n" + (assets / "listening.js").read_text(encoding="utf-8")
    return page("Listening test", body, script)


def collect(documents: Mapping[str, Any]) -> dict[str, Any]:
    """What listeners said.

    Args:
        documents: parsed JSON by file name: one key, and answers to its test.

    Returns:
        `systems` (mean opinion, its 95 % interval over listeners' ratings, number), `pairs` (how often each system was
        preferred to the other, ties apart), `listeners`, and `agreement`, Krippendorff's alpha of the ratings (1 is
        perfect, 0 chance; None with one listener).

    Raises:
        CsmError: no key, several, no answers, or answers to another test or out of range; the file is named.
    """
    keys = {name: one for name, one in documents.items() if _schema(one) == KEY_SCHEMA}
    answers = {name: one for name, one in documents.items() if _schema(one) == ANSWERS_SCHEMA}
    if strange := sorted(set(documents) - set(keys) - set(answers)):
        raise CsmError(f"{strange[0]} holds neither answers to a listening test nor its key.")
    if len(keys) != 1 or not answers:
        raise CsmError(
            f"There are {len(keys)} keys and {len(answers)} files of answers.",
            "Give the test's one key (NAME.key.json) and the listeners' answers.",
        )
    (spoken, key), *_ = keys.items()
    if not isinstance(key.get("test"), str) or any(not isinstance(key.get(part), dict) for part in ("items", "pairs")):
        raise CsmError(f"{spoken} is not the whole key.", "csm evaluate listen wrote it beside its page.")
    ratings = {name: _ratings(name, one, key) for name, one in answers.items()}
    return {
        "schema_version": 1,
        "test": key["test"],
        "listeners": len(answers),
        "systems": _opinions(ratings, key),
        "pairs": _preferences(answers, key),
        "agreement": agreement(list(ratings.values())),
    }


def _schema(document: Any) -> str | None:
    return document.get("schema_version") if isinstance(document, dict) else None


def _ratings(name: str, answers: Mapping[str, Any], key: Mapping[str, Any]) -> dict[str, int]:
    if answers.get("test") != key["test"]:
        raise CsmError(f"{name} answers another test than the key's.")
    for kind, known, allowed in (("ratings", key["items"], (1, 2, 3, 4, 5)), ("pairs", key["pairs"], ("a", "b", "="))):
        given = answers.get(kind)
        if not isinstance(given, dict) or not set(given) <= set(known) or any(v not in allowed for v in given.values()):
            raise CsmError(f"{name} holds an answer that the test does not know.", "Save it again from the page.")
    return dict(answers["ratings"])


def _opinions(ratings: Mapping[str, Mapping[str, int]], key: Mapping[str, Any]) -> dict[str, Any]:
    by_system: dict[str, list[list[int]]] = {}
    for given in ratings.values():
        for system in sorted({item["system"] for item in key["items"].values()}):
            values = [score for name, score in given.items() if key["items"][name]["system"] == system]
            by_system.setdefault(system, []).append(values)
    found = {}
    for system, listeners in by_system.items():
        every = [value for values in listeners for value in values]
        if every:
            found[system] = {
                "mean_opinion": float(np.mean(every)),
                "interval_95": _interval(np.array(every, dtype=float)),
                "ratings": len(every),
            }
    return found


def _interval(values: np.ndarray) -> list[float] | None:
    """Student's 95 % interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / np.sqrt(len(values)))
    return [float(values.mean()) - half, float(values.mean()) + half]


def _preferences(answers: Mapping[str, Mapping[str, Any]], key: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts: dict[tuple[str, str], list[int]] = {}
    for given in answers.values():
        for pair, choice in given["pairs"].items():
            systems = [key["items"][item]["system"] for item in key["pairs"][pair]]
            first, second = sorted(systems)
            chosen = 2 if choice == "=" else int(systems["ab".index(choice)] == second)
            counts.setdefault((first, second), [0, 0, 0])[chosen] += 1
    return [
        {"systems": list(systems), "preferred": count[:2], "no_preference": count[2]}
        for systems, count in sorted(counts.items())
    ]


def agreement(ratings: Sequence[Mapping[str, int]]) -> float | None:
    """Krippendorff's alpha for interval data (Content Analysis, chapter 11): 1 minus observed over expected disagreement.

    Args:
        ratings: of each listener, score by item; items that one listener alone rated do not count.

    Returns:
        alpha; None where no item has two ratings or all ratings are equal.
    """
    by_item: dict[str, list[int]] = {}
    for given in ratings:
        for item, score in given.items():
            by_item.setdefault(item, []).append(score)
    units = [np.array(scores, dtype=float) for scores in by_item.values() if len(scores) > 1]
    if not units:
        return None
    every = np.concatenate(units)
    expected = float(np.sum((every[:, None] - every[None, :]) ** 2)) / (len(every) * (len(every) - 1))
    if expected == 0:
        return None
    observed = sum(float(np.sum((u[:, None] - u[None, :]) ** 2)) / (len(u) - 1) for u in units) / len(every)
    return 1 - observed / expected
