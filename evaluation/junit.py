"""JUnit XML, the form in which most pipelines show what passed and what did not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from evaluation.choice import GUARDS
from evaluation.compare import PHRASES, in_words
from evaluation.directions import DIRECTIONS
from evaluation.gate import Result
from evaluation.score import Scores, SystemScores

Case = tuple[str, str, str, str]
FIGURES = ("speaker_similarity", *GUARDS)


def rules_document(results: Sequence[Result]) -> str:
    """A test case a rule: failed rules are failures, undecided ones are skipped with their reason."""
    outcomes = {"failed": "failure", "undecided": "skipped"}
    cases = [("gate", one.rule.title, outcomes.get(one.verdict, ""), one.line) for one in results]
    return _document("csm evaluate gate", cases)


def comparisons_document(scores: Scores) -> str:
    """A test case for each system and each figure that the pick goes by.

    A figure that is worse than the base's beyond chance, and the margin of the pick's rule, is a failure; one without a pair
    or an interval is skipped with its reason; any other has passed. A system without a usable sample is a failure.
    """
    return _document("csm evaluate", [case for system in scores.systems for case in _cases(scores, system)])


def _cases(scores: Scores, system: SystemScores) -> Iterator[Case]:
    if system.kind in ("base", "codec"):
        return
    usable = bool(system.summary["scored"])
    count = f"{system.summary['scored']} of {system.summary['samples']} samples have a usable voice"
    yield system.name, "samples", "" if usable else "failure", count
    found = {one["metric"]: one for one in scores.comparisons if one["system"] == system.name}
    against = next((one.name for one in scores.systems if one.kind == "base"), None)
    for metric in FIGURES if against else ():
        title = f"{metric} against {against}"
        if metric not in found:
            yield system.name, title, "skipped", f"{PHRASES[metric][0]}: no text and seed has it on both sides"
            continue
        one = found[metric]
        margin = GUARDS[metric][1] if metric in GUARDS else 0.0
        worse = one["interval_95"] and all(DIRECTIONS[metric] * end < -margin for end in one["interval_95"])
        kind = "failure" if worse else "" if one["interval_95"] else "skipped"
        yield system.name, title, kind, in_words(one)


def _document(name: str, cases: Sequence[Case]) -> str:
    """Cases by class, name, outcome (failure, skipped or empty) and what is said of it."""
    kinds = [kind for _, _, kind, _ in cases]
    counts = {"tests": len(cases), "failures": kinds.count("failure"), "skipped": kinds.count("skipped"), "errors": 0}
    suite = ElementTree.Element("testsuite", {"name": name, **{key: str(value) for key, value in counts.items()}})
    for group, title, kind, told in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=group, name=title)
        if kind:
            ElementTree.SubElement(case, kind, message=told)
        else:
            ElementTree.SubElement(case, "system-out").text = told
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
