"""JUnit XML, the form in which most pipelines show what passed and what did not."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from evaluation.gate import Result


def rules_document(results: Sequence[Result]) -> str:
    """A test case a rule: failed rules are failures, undecided ones are skipped with their reason."""
    suite = ElementTree.Element(
        "testsuite",
        name="csm evaluate gate",
        tests=str(len(results)),
        failures=str(sum(result.verdict == "failed" for result in results)),
        skipped=str(sum(result.verdict == "undecided" for result in results)),
        errors="0",
    )
    for result in results:
        case = ElementTree.SubElement(suite, "testcase", classname="gate", name=result.rule.title)
        if result.verdict != "passed":
            kind = "failure" if result.verdict == "failed" else "skipped"
            ElementTree.SubElement(case, kind, message=result.line)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
