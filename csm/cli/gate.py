"""`csm evaluate gate` and `calibrate`: let a pipeline say no, and know beforehand what is only noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csm.cli.console import answer, answer_json, say
from csm.cli.options import PATH
from csm.cli.target import writable
from csm.errors import CsmError

if TYPE_CHECKING:
    from evaluation.score import Scores


@click.command()
@click.argument("scores", type=PATH)
@click.option("--rules", required=True, type=PATH, help="a TOML file of [[rule]] tables")
@click.option("--baseline", type=PATH, help="earlier scores.json, for rules that catch a fall")
@click.option("--noise", type=PATH, help="what `csm evaluate calibrate` wrote")
@click.option("--junit", metavar="FILE", help="write the rules as JUnit test cases; - is stdout")
@click.pass_context
def gate(
    context: click.Context, scores: Path, rules: Path, baseline: Path | None, noise: Path | None, junit: str | None
) -> None:
    """Hold SCORES, a scores.json, against rules: one line a rule; exit 0 passed, 3 failed, 4 could not decide."""
    from evaluation.gate import exit_code, judge, read_rules
    from evaluation.junit import rules_document
    from evaluation.noise import from_json

    place = junit if junit in (None, "-") else str(writable(Path(junit)))
    earlier = read_scores(baseline) if baseline else None
    known = from_json(read_json(noise)) if noise else None
    results = judge(read_rules(rules), read_scores(scores), earlier, known)
    if place == "-":
        answer(rules_document(results))
    else:
        answer("\n".join(result.line for result in results))
    if place not in (None, "-"):
        _write(Path(place), rules_document(results))
    context.exit(exit_code(results))


@click.command()
@click.argument("scores", type=PATH)
@click.option("--system", default="best", show_default=True, help="whose repeats are used: best, or a system's name")
@click.option("--output", metavar="FILE", default="-", show_default=True, help="where to write the noise; - is stdout")
def calibrate(scores: Path, system: str, output: str) -> None:
    """Learn from SCORES, whose texts were spoken with several seeds, how much each figure moves by chance alone.

    Five seeds a text are a good number: csm evaluate RUN --samples-per-text 5 --json FILE.
    """
    from evaluation.gate import system_of
    from evaluation.noise import calibrate as measure
    from evaluation.noise import to_json

    place = output if output == "-" else str(writable(Path(output)))
    chosen = system_of(read_scores(scores), system)
    document = to_json(measure(chosen.samples), chosen.name)
    for metric, band in document["noise"].items():
        say(f"{metric}: {band['deviation']:.3g} a sample, from {band['freedoms']} repeats")
    if place == "-":
        answer_json(document)
    else:
        _write(Path(place), json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_scores(path: Path) -> Scores:
    """The scores in a scores.json, or in a run's report folder.

    Raises:
        CsmError: there are none, or they are none that this program wrote.
    """
    from evaluation.score import Scores

    if path.is_dir():
        path = path / "report" / "scores.json"
    return Scores.from_json(read_json(path))


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        CsmError: it is missing, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CsmError(f"{path} is not there.") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise CsmError(f"{path} is not JSON ({error}).") from error


def _write(path: Path, text: str) -> None:
    from evaluation.report import write_text

    write_text(path, text)
