"""`csm evaluate`: speak fixed texts with the base and every checkpoint of a run, or take a folder of samples, and score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from csm.cli.console import Group, answer, warn
from csm.cli.gate import calibrate, gate
from csm.cli.listen import collect, listen
from csm.cli.options import PATH, SEED, runs_model
from csm.cli.recordings import audio
from csm.errors import CsmError

if TYPE_CHECKING:
    from evaluation.judges import Judges


TABLES = ("simple", "plain", "github", "grid", "rounded_grid", "pipe", "html", "latex", "tsv")
_SPEAKING = ("texts", "samples_per_text", "seed", "speaker", "set_best", "device", "dtype", "threads")


class _DefaultRun(Group):
    """A group whose first word may be what is evaluated: `csm evaluate X` is `csm evaluate run X`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultRun)
def evaluate() -> None:
    """Score a run's checkpoints, or a folder of samples, against recordings of the target.

    `run` is the default command; a path that looks like a command is written ./NAME.
    """


for _command in (gate, calibrate, audio, listen, collect):
    evaluate.add_command(_command)


@evaluate.command()
@click.argument("target", type=PATH)
@click.option("--reference", required=True, type=PATH, help="recordings of the target, transcripts beside them")
@click.option("--texts", type=PATH, help="one text a line to be spoken; default: what the reference says")
@click.option("--samples-per-text", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True, help="the first of the seeds")
@click.option("--speaker", type=click.IntRange(0), help="default: the speaker that the run was trained on")
@click.option("--set-best", is_flag=True, help="let the run's `best` name the checkpoint that scored best")
@click.option("--asr-model", metavar="NAME", help="recogniser: a folder or a name; none for no words; default: tiny.en")
@click.option("--language", default="en", show_default=True, help="of the texts")
@click.option("--mos/--no-mos", default=True, help="predict opinions where distillmos is installed  [default: mos]")
@click.option("--other", "others", multiple=True, type=PATH, help="recordings of another voice; may be repeated")
@click.option(
    "--db", type=PATH, help="registry whose other voices are compared with; default: the one in your data folder"
)
@click.option("--terms", type=PATH, help="terms, one a line: how often each is heard, and what instead")
@click.option("--json", "json_path", metavar="FILE", help="write scores.json; - is stdout")
@click.option("--markdown", "markdown_path", metavar="FILE", help="write a report; - is stdout")
@click.option("--html", "html_path", metavar="FILE", help="write one page to hear and see; - is stdout")
@click.option("--format", "table", type=click.Choice(TABLES), default="simple", show_default=True, help="of the table")
@runs_model
def run(target: Path, reference: Path, table: str, **flags: Any) -> None:
    """Score TARGET: a run (base and every checkpoint speak) or a folder of sound files.

    A run keeps its scores in report/ as well. Samples that are there already are not made again.
    """
    from csm.cli.neighbours import with_neighbours
    from csm.cli.reports import Reports
    from csm.cli.scoring import make_judges, score_folder, score_run
    from csm.training.card import refresh_cards
    from csm.training.run_folder import RunFolder
    from evaluation.report import terminal_table
    from evaluation.score import Reference, Scores

    if not target.is_dir():
        raise CsmError(f"{target} is neither a run nor a folder of sound files.")
    folder = RunFolder(target)
    if not folder.exists:
        _refuse_idle(target)
    asked = Reports.planned(target, reference, **{kind: flags[f"{kind}_path"] for kind in ("json", "markdown", "html")})
    kept = {"json": "scores.json", "markdown": "report.md", "html": "report.html"} if folder.exists else {}
    own = Reports.planned(target, reference, **{kind: str(target / "report" / name) for kind, name in kept.items()})
    judges = make_judges(flags["asr_model"], flags["language"], flags["mos"], flags["others"])
    judges = with_neighbours(judges, flags["db"], target)
    terms = _terms(flags["terms"], judges)
    recordings = Reference.from_folder(reference, judges)
    for name, reason in recordings.skipped.items():
        warn(f"the reference's {name} was skipped: {reason}")
    if folder.exists:
        systems = score_run(folder, recordings, reference, judges, flags)
    else:
        systems = [score_folder(target, recordings, judges)]
    scores = Scores.of(recordings, systems, terms, flags["language"])
    if flags["set_best"] and scores.best:
        folder.point("best", int(scores.best.removeprefix("step-")))
    own.write(scores)
    if folder.exists:
        found = {system.name: system.summary["speaker_similarity"] for system in scores.systems}
        refresh_cards(folder, {name: value for name, value in found.items() if value is not None})
    asked.write(scores)
    if not asked.answers:
        answer(terminal_table(scores, table) + (f"\n{scores.best_reason}" if folder.exists else ""))


def _terms(path: Path | None, judges: Judges) -> tuple[str, ...]:
    """The terms to look for.

    Raises:
        CsmError: the file cannot be used, or nobody hears what is said.
    """
    if path is None:
        return ()
    if judges.recogniser is None:
        raise CsmError("--terms needs a recogniser.", "pip install 'csm-finetune[asr]', or name one: --asr-model PATH.")
    from csm.data.terms import read_terms

    return read_terms(path)


def _refuse_idle(target: Path) -> None:
    """A folder of sounds has no `best`, and nothing is spoken."""
    context = click.get_current_context()
    given = [name for name in _SPEAKING if context.get_parameter_source(name) != ParameterSource.DEFAULT]
    if given:
        idle = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CsmError(f"{target} is no run, so nothing is spoken and {idle} would do nothing.")
