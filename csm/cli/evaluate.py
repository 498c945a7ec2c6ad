"""`csm evaluate`: speak fixed texts with the base and every checkpoint of a run, or take a folder of samples, and score."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from csm.cli.console import Group, answer, answer_json, say, warn
from csm.cli.gate import calibrate, gate
from csm.cli.options import PATH, SEED, runs_model
from csm.cli.recordings import audio
from csm.cli.target import writable
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.model_folder import ModelFolder
    from csm.samples import SpokenSample
    from csm.training.run_folder import RunFolder
    from evaluation.score import Reference, Sample, Scores, SystemScores


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


for _command in (gate, calibrate, audio):
    evaluate.add_command(_command)


@evaluate.command()
@click.argument("target", type=PATH)
@click.option("--reference", required=True, type=PATH, help="recordings of the target, transcripts beside them")
@click.option("--texts", type=PATH, help="one text a line to be spoken; default: what the reference says")
@click.option("--samples-per-text", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True, help="the first of the seeds")
@click.option("--speaker", type=click.IntRange(0), help="default: the speaker that the run was trained on")
@click.option("--set-best", is_flag=True, help="let the run's `best` name the checkpoint that scored best")
@click.option("--json", "json_path", metavar="FILE", help="write scores.json; - is stdout")
@click.option("--markdown", "markdown_path", metavar="FILE", help="write a report; - is stdout")
@runs_model
def run(target: Path, reference: Path, json_path: str | None, markdown_path: str | None, **flags: Any) -> None:
    """Score TARGET: a run (base and every checkpoint speak) or a folder of sound files.

    A run keeps its scores in report/ as well. Samples that are there already are not made again.
    """
    from csm.training.card import refresh_cards
    from csm.training.run_folder import RunFolder
    from evaluation.report import terminal_table
    from evaluation.score import Reference, Scores

    if not target.is_dir():
        raise CsmError(f"{target} is neither a run nor a folder of sound files.")
    folder = RunFolder(target)
    if not folder.exists:
        _refuse_idle(target)
    json_path, markdown_path = _places(target, json_path, markdown_path)
    recordings = Reference.from_folder(reference)
    for name, reason in recordings.skipped.items():
        warn(f"the reference's {name} was skipped: {reason}")
    systems = _score_run(folder, recordings, flags) if folder.exists else [_score_folder(target, recordings)]
    scores = Scores.of(recordings, systems)
    if flags["set_best"] and scores.best:
        folder.point("best", int(scores.best.removeprefix("step-")))
    if folder.exists:
        _write(scores, target, str(target / "report" / "scores.json"), str(target / "report" / "report.md"))
        found = {system.name: system.summary["speaker_similarity"] for system in scores.systems}
        refresh_cards(folder, {name: value for name, value in found.items() if value is not None})
    _write(scores, target, json_path, markdown_path)
    if "-" not in (json_path, markdown_path):
        answer(terminal_table(scores) + (f"\n{scores.best_reason}" if folder.exists else ""))


def _refuse_idle(target: Path) -> None:
    """A folder of sounds has no `best`, and nothing is spoken."""
    context = click.get_current_context()
    given = [name for name in _SPEAKING if context.get_parameter_source(name) != ParameterSource.DEFAULT]
    if given:
        idle = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CsmError(f"{target} is no run, so nothing is spoken and {idle} would do nothing.")


def _places(target: Path, *paths: str | None) -> list[str | None]:
    """The files to be written, links followed; what could not be written is refused before the work."""
    found = [path if path in (None, "-") else str(writable(Path(path))) for path in paths]
    if found[0] and found[0] == found[1]:
        raise click.UsageError("--json and --markdown name the same place.")
    if (target / "recipe.json").is_file():
        writable(target / "report" / "scores.json")
    return found


def _write(scores: Scores, target: Path, json_path: str | None, markdown_path: str | None) -> None:
    from evaluation.report import markdown_report, write_json, write_markdown

    samples = target / "samples" if (target / "samples").is_dir() else target
    if json_path == "-":
        answer_json(scores.to_json())
    elif json_path:
        write_json(scores, json_path)
    if markdown_path == "-":
        answer(markdown_report(scores, samples, _curves(target)))
    elif markdown_path:
        write_markdown(scores, markdown_path, samples, _curves(target))


def _curves(target: Path) -> dict[str, list[tuple[int, float]]]:
    """Training and validation loss by step, where the target is a run."""
    from csm.training.metrics import MetricsFile

    records = MetricsFile(target / "metrics.jsonl").read()
    keys = {"training loss": "loss", "validation loss": "validation_loss"}
    curves = {name: [(r["step"], r[key]) for r in records if key in r] for name, key in keys.items()}
    return {name: points for name, points in curves.items() if points}


def _score_folder(target: Path, reference: Reference) -> SystemScores:
    from csm.audio import SUFFIXES, read_audio
    from evaluation.reference import transcript
    from evaluation.score import Sample, score_system

    samples = []
    for path in sorted(p for p in target.rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            wave, rate = read_audio(path)
        except CsmError as error:
            warn(f"skipped: {error.message}")
            continue
        samples.append(Sample(path.relative_to(target).as_posix(), transcript(path, target), 0, wave, rate))
    if not samples:
        raise CsmError(f"{target} is no run and holds no sound file that can be read.")
    return score_system(target.resolve().name, samples, reference)


def _score_run(run_folder: RunFolder, reference: Reference, flags: dict[str, Any]) -> list[SystemScores]:
    from csm.cli.progress import Progress
    from csm.generator import load_generator
    from csm.samples import speak_samples
    from evaluation.score import score_system

    lineage = run_folder.lineage()
    models, lender = {"base": _standing(lineage["parent"]["path"])}, _lender(lineage["parent"])
    models |= {path.name: path for path in map(run_folder.checkpoint, run_folder.steps())}
    if len(models) == 1:
        raise CsmError(f"{run_folder.path} has no checkpoint yet.")
    texts, speaker = _texts(flags["texts"], reference), _speaker(lineage, flags["speaker"])
    seeds = range(flags["seed"], flags["seed"] + flags["samples_per_text"])
    systems, total = [], len(models) * len(texts) * len(seeds)
    with Progress("speaking") as bar:
        for number, (name, path) in enumerate(models.items()):
            base = lender if name == "base" else None
            generator = load_generator(path, flags["device"], flags["dtype"], flags["threads"], base)
            if name == "base":
                _refuse_changed(generator.folder, lineage["parent"])
                bar.say(f"backend: {generator.backend.reason}")
            folder = run_folder.path / "samples" / name
            counter = _Counter(bar, number * len(texts) * len(seeds), total, name)
            spoken = speak_samples(generator, texts, speaker, seeds, folder, counter)
            samples = [_read(sample, run_folder.path / "samples", name) for sample in spoken]
            systems.append(score_system(name, samples, reference, "base" if name == "base" else "checkpoint"))
    return systems


def _lender(parent: dict[str, Any]) -> Path | None:
    """The folder that lent the parent's weights their config, tokenizer and codec, where it is another than theirs."""
    path, beside = _standing(parent["path"]), _standing(parent.get("beside", parent["path"]))
    return None if beside in (path, path.parent) else beside


def _standing(kept: str) -> Path:
    """Where a base stands that a lineage names: an embedded model moves with the installation."""
    from csm.model_folder import EMBEDDED

    path = Path(kept)
    if path.is_absolute() and path.exists():
        return path
    if path.name in EMBEDDED:
        return Path(str(files("csm"))) / "assets" / path.name
    raise CsmError(f"the base of this run is gone: {kept}.", "Put it back where it was: the base is scored as well.")


def _refuse_changed(folder: ModelFolder, parent: dict[str, Any]) -> None:
    if folder.hash != parent.get("hash"):
        raise CsmError(
            f"the base of this run has changed since: {folder.path} is another model now.",
            "Put back what the run was trained from, or train anew.",
        )


class _Counter:
    """Counts samples into a progress bar."""

    def __init__(self, bar: Any, start: int, total: int, note: str):
        self.bar, self.done, self.total, self.note = bar, start, total, note

    def __call__(self) -> None:
        self.done += 1
        self.bar.update(self.done, self.total, self.note)


def _read(sample: SpokenSample, root: Path, system: str) -> Sample:
    import numpy as np

    from csm.audio import read_audio
    from evaluation.score import Sample

    if sample.path is None:
        name = f"{system}/(nothing, seed {sample.seed})"
        return Sample(name, sample.text, sample.seed, np.zeros(0, np.float32), 24_000, sample.stop_reason)
    wave, rate = read_audio(sample.path)
    name = sample.path.relative_to(root).as_posix()
    return Sample(name, sample.text, sample.seed, wave, rate, sample.stop_reason)


def _texts(file: Path | None, reference: Reference) -> Sequence[str]:
    from csm.samples import DEFAULT_TEXTS

    if file is None:
        if not reference.texts:
            say("the reference has no transcripts: built-in sentences are spoken")
        return reference.texts or DEFAULT_TEXTS
    if not file.is_file():
        raise CsmError(f"{file} is not there.")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise CsmError(f"{file} is not UTF-8 text.", "Save it as UTF-8.") from None
    if not any(lines):
        raise CsmError(f"{file} holds no text.", "Write one text a line.")
    return [line for line in lines if line]


def _speaker(lineage: dict[str, Any], given: int | None) -> int:
    speakers = lineage["data"]["speakers"]
    if given is not None:
        return given
    if len(speakers) > 1:
        raise CsmError(f"the run was trained on speakers {', '.join(map(str, speakers))}.", "Choose one: --speaker N.")
    return int(speakers[0])
