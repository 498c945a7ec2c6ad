"""`csm evaluate`: let models speak fixed texts, or take a folder of samples, and score them against recordings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from csm.cli.console import Group, answer, say, warn
from csm.cli.gate import calibrate, gate
from csm.cli.listen import collect, listen
from csm.cli.lists import NUMBERS, listed
from csm.cli.options import PATH, SEED, runs_model
from csm.cli.recordings import audio
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.training.run_folder import RunFolder
    from evaluation.judges import Judges
    from evaluation.reference import Reference
    from evaluation.score import Scores


TABLES = ("simple", "plain", "github", "grid", "rounded_grid", "pipe", "html", "latex", "tsv")
KINDS = {"json": "scores.json", "markdown": "report.md", "html": "report.html"}
_SPEAKING = ("texts", "samples_per_text", "seed", "speaker", "forgetting", "set_best", "device", "dtype", "threads")


class _DefaultRun(Group):
    """A group whose first word may be what is evaluated: `csm evaluate X` is `csm evaluate run X`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultRun)
def evaluate() -> None:
    """Score a run's checkpoints, a kept voice, or a folder of samples, against recordings of the target.

    `run` is the default command; a path that looks like a command is written ./NAME.
    """


for _command in (gate, calibrate, audio, listen, collect):
    evaluate.add_command(_command)


@evaluate.command()
@click.argument("target")
@click.option("--reference", required=True, type=PATH, help="recordings of the target, transcripts beside them")
@click.option("--against", metavar="RUN|FOLDER|base", help="compare with this run's best, or this folder of samples")
@click.option("--texts", type=PATH, help="one text a line to be spoken; default: what the reference says")
@click.option("--samples-per-text", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True, help="the first of the seeds")
@click.option("--speaker", type=click.IntRange(0), help="default: the speaker that the run was trained on")
@listed(
    "--forgetting", metavar=NUMBERS, help="speaker ids: do models still speak as these, and other texts, as the base"
)
@click.option("--set-best", is_flag=True, help="let the run's `best` name the checkpoint that scored best")
@click.option("--asr-model", metavar="NAME", help="recogniser: a folder or a name; none for no words; default: tiny.en")
@click.option("--language", default="en", show_default=True, help="of the texts")
@click.option("--mos/--no-mos", default=True, help="predict opinions where distillmos is installed  [default: mos]")
@click.option("--other", "others", multiple=True, type=PATH, help="recordings of another voice; may be repeated")
@click.option("--style", type=PATH, help="recordings of the style to be reached; default: the reference")
@click.option("--terms", type=PATH, help="terms, one a line: how often each is heard, and what instead")
@click.option(
    "--db",
    type=PATH,
    help="the registry of voices, the others of which are compared with; default: in your data folder",
)
@click.option("--json", "json_path", metavar="FILE", help="write scores.json; - is stdout")
@click.option("--markdown", "markdown_path", metavar="FILE", help="write a report; - is stdout")
@click.option("--html", "html_path", metavar="FILE", help="write one page to hear and see; - is stdout")
@click.option(
    "--junit", "junit_path", metavar="FILE", help="write each checkpoint's comparisons as test cases; - is stdout"
)
@click.option("--format", "table", type=click.Choice(TABLES), default="simple", show_default=True, help="of the tables")
@runs_model
def run(target: str, reference: Path, table: str, **flags: Any) -> None:
    """Score TARGET: a run (base and every checkpoint speak), a voice of the registry, or a folder of sound files.

    A run keeps its scores in report/ as well. Samples that are there already are not made again.
    """
    from csm.cli.contest import contest
    from csm.cli.neighbours import with_neighbours
    from csm.cli.reports import Reports
    from csm.cli.scoring import make_judges
    from evaluation.memory import Memory
    from evaluation.score import Scores

    field = contest(target, flags["against"], flags["speaker"], flags["db"])
    if not field.speakers:
        _refuse_idle(target)
    if flags["set_best"] and field.run is None:
        raise CsmError("--set-best is for a run: nothing else has a `best`.")
    asked = Reports.planned(field, reference, **{kind: flags[f"{kind}_path"] for kind in (*KINDS, "junit")})
    folder = field.run
    kept = {kind: str(folder.path / "report" / name) for kind, name in KINDS.items()} if folder else {}
    own = Reports.planned(field, reference, **kept)
    memory = Memory(field.speakers[0].root / "judged.json") if field.speakers else None
    judges = make_judges(flags["asr_model"], flags["language"], flags["mos"], flags["others"], memory)
    judges = with_neighbours(judges, flags["db"], folder.path if folder else target)
    terms = _terms(flags["terms"], judges)
    judges = replace(judges, terms=terms)
    recordings = _recordings(reference, flags["style"], judges)
    systems, forgetting = field.score(recordings, reference, judges, flags)
    scores = Scores.of(recordings, systems, terms, flags["language"], forgetting)
    if flags["set_best"] and folder:
        _set_best(folder, scores)
    own.write(scores)
    if folder:
        from csm.training.card import refresh_cards

        found = {system.name: system.summary["speaker_similarity"] for system in scores.systems}
        refresh_cards(folder, {name: value for name, value in found.items() if value is not None})
    asked.write(scores)
    if not asked.answers:
        answer(_told(scores, table, bool(field.speakers)))


def _recordings(folder: Path, style: Path | None, judges: Judges) -> Reference:
    """The reference, with what is wrong with it told, and the target of style."""
    from evaluation.reference import Reference

    found = Reference.from_folder(folder, judges)
    for name, reason in found.skipped.items():
        warn(f"the reference's {name} was skipped: {reason}")
    for note in found.notes:
        warn(note)
    if style is None:
        return found
    from evaluation.judges import Judges

    return found.with_style(Reference.from_folder(style, Judges(language=judges.language)))


def _told(scores: Scores, table: str, spoken: bool) -> str:
    """The tables and what they mean."""
    from evaluation.forgetting import forgetting_lines
    from evaluation.remarks import remarks
    from evaluation.report import forgetting_table, term_table, terminal_table

    parts = [terminal_table(scores, table)]
    if table != "tsv":
        parts += remarks(scores)
    if scores.terms:
        parts += ["", term_table(scores, table)]
    if scores.forgetting:
        parts += ["", forgetting_table(scores, table), *(forgetting_lines(scores.forgetting) if table != "tsv" else ())]
    if spoken and any(system.kind == "checkpoint" for system in scores.systems):
        parts += ([""] if len(parts) > 1 else []) + [scores.best_reason]
    return "\n".join(parts)


def _set_best(run: RunFolder, scores: Scores) -> None:
    if scores.best is None:
        say("`best` stays what it was: no checkpoint could be scored.")
        return
    run.point("best", int(scores.best.removeprefix("step-")))


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


def _refuse_idle(target: str) -> None:
    """A folder of sounds has no `best`, and nothing is spoken."""
    context = click.get_current_context()
    given = [name for name in _SPEAKING if context.get_parameter_source(name) != ParameterSource.DEFAULT]
    if given:
        idle = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CsmError(f"{target} is no run, so nothing is spoken and {idle} would do nothing.")
