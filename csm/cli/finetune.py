"""`csm-finetune`: the staged presets, one engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csm.cli.check import check, doubts
from csm.cli.console import answer, detail, say, warn
from csm.cli.convert import convert
from csm.cli.options import (
    ADAPTER_FLAGS,
    PATH,
    RECIPE_FLAGS,
    adapts,
    chooses_method,
    reads_data,
    runs_model,
    shapes_recipe,
    takes_base,
)
from csm.cli.plot import plot
from csm.cli.prepare import prepare
from csm.cli.reference_commands import full, lora
from csm.cli.run_options import begins_run, names_terms, run_layer, steers_run
from csm.cli.stages import run, stages
from csm.cli.together import TogetherGroup
from csm.cli.tokenize import codes_alone, rows_if_heard, tokenize

REPORTED = {
    "validation_loss": "validation",
    "validation_terms_loss": "clips with terms",
    "validation_other_loss": "other clips",
    "speaker_similarity": "similarity",
    "score": "score",
}

if TYPE_CHECKING:
    from csm.cli.live import TrainingView
    from csm.training.watchers import Saved


@click.group(cls=TogetherGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="csm-finetune", prog_name="csm-finetune")
def main() -> None:
    """Fine-tune a CSM model: for a voice, a style, a domain or conversation; or in full or by LoRA as csm-mlx has it.

    Each command is a preset of one engine; --dry-run shows its values and where each comes from.
    """


def _preset_command(preset: str, summary: str) -> None:
    @main.command(preset, help=summary)
    @click.option(
        "--model-path",
        default="csm-tiny",
        show_default=True,
        help="csm-tiny, a model folder, a run, a weights file or a hub id",
    )
    @takes_base
    @click.option("--output-dir", required=True, type=PATH, help="the run folder; the same run there is gone on with")
    @reads_data
    @shapes_recipe
    @chooses_method
    @adapts
    @steers_run
    @begins_run
    @runs_model
    def command(**flags: Any) -> None:
        if preset == "style-tune" and not flags["style_name"].strip():
            raise click.UsageError("--style-name is empty.")
        answer_best(finetune(preset, flags))

    if preset == "style-tune":
        click.option("--style-name", required=True, help="what the style is called, kept with the run")(command)
    if preset == "domain":
        names_terms(command)


def answer_best(best: Path | None) -> None:
    """Print the best checkpoint; nothing after a dry run."""
    if best:
        say("best checkpoint:")
        answer(str(best))


def finetune(preset: str, flags: dict[str, Any], saved: Saved | None = None) -> Path | None:
    """Fine-tune as a command's flags say; the best checkpoint's folder, None after a dry run.

    Args:
        preset: one of `csm.presets.PRESETS`.
        flags: by the names that the bundles of options give them. `translated` holds layers of the recipe that are made of
            other flags; `val_data_paths` is data to validate on.
        saved: told (step, folder) of every checkpoint.
    """
    if flags["resume"] and flags["fresh"]:
        raise click.UsageError("--resume and --fresh exclude each other.")
    from csm.cli.data import read_rows
    from csm.training.finetuner import CSMFineTuner

    placement = {key: flags[key] for key in ("device", "dtype", "threads", "base")}
    tuner = CSMFineTuner(flags["model_path"], flags["output_dir"], preset=preset, cache=flags["cache_dir"], **placement)
    tuner.layers += recipe_layers(flags)
    held = flags.get("val_data_paths")
    _refuse_idle(flags, tuner.resolved.recipe, bool(held))
    (answer if flags["dry_run"] else say)(f"{preset} of {tuner.base.path}\n{tuner.resolved.describe()}")
    if adapters := tuner.adapters:
        say(f"adapters: {adapters}")
    say(f"backend: {tuner.backend.reason}")
    if flags["dry_run"]:
        _say_epochs(tuner)
        return None
    if folder := codes_alone(flags):
        known = read_rows(flags, held) if held else None
        return _train(tuner, rows_if_heard(folder, tuner), [], flags, known, saved, folder)
    rows, faults = read_rows(flags)
    return _train(tuner, rows, faults, flags, read_rows(flags, held) if held else None, saved)


def _say_epochs(tuner: Any) -> None:
    """A dry run reads no data, so it can only say what will follow from them."""
    from csm.presets import EPOCHS

    span, resolved = EPOCHS.get(tuner.preset), tuner.resolved
    if span and resolved.sources["epochs"].startswith("preset") and not resolved.recipe.max_steps:
        say(f"epochs will follow from the minutes of the data: {span.fewest} to {span.most}")


def _refuse_idle(flags: dict[str, Any], recipe: Any, held: bool) -> None:
    """Flags that would do nothing beside the others."""
    from csm.recipe import BY_SOUND

    if flags.get("sample_prompts") and not recipe.sample_every and recipe.select_by not in BY_SOUND:
        raise click.UsageError("--sample-prompt is for --sample-every or --select-by speaker_similarity or score.")
    for key, flag in (("val_every", "--val-every"), ("val_batch_size", "--val-batch-size")):
        if flags.get(key) and not recipe.val_split and not held:
            raise click.UsageError(f"{flag} has nothing to validate on: nothing is held out. Give --val-split 0.1.")


def recipe_layers(flags: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Recipe file (or the keys of a stage), then flags."""
    from csm.recipe import read_recipe

    recipe_file = flags["recipe_file"]
    file_layer = [(str(recipe_file), read_recipe(recipe_file))] if recipe_file else []
    if flags.get("recipe_keys"):
        file_layer = [(flags["recipe_source"], flags["recipe_keys"])]
    given = {key: flags.get(key) for key in RECIPE_FLAGS + ADAPTER_FLAGS}
    return [*file_layer, ("flag", given), ("flag", run_layer(flags)), *flags.get("translated", [])]


def _listener(tuner: Any, rows: Any, reference: Path | None) -> Any:
    """Who listens to the run's samples; None where its recipe asks for none."""
    from csm.cli.listening import Listener
    from csm.data.speakers import learned_speakers
    from csm.errors import CsmError
    from csm.recipe import BY_SOUND

    recipe = tuner.resolved.recipe
    if not recipe.sample_every and recipe.select_by not in BY_SOUND:
        if reference:
            raise CsmError(
                "--reference is for --sample-every or --select-by speaker_similarity or score.", "Give one of them."
            )
        return None
    flat = [row for conversation in rows for row in conversation]
    speakers = learned_speakers((row.speaker for row in flat), recipe.mask_speaker_ids, recipe.only_speaker_ids)
    prompts = recipe.sample_prompts
    if recipe.select_by == "score":
        from csm.cli.chooser import FEWEST_PROMPTS, Chooser

        if 0 < len(prompts) < FEWEST_PROMPTS:
            raise CsmError(
                f"--select-by score needs {FEWEST_PROMPTS} prompts to tell luck from loss; there are {len(prompts)}.",
                "Give more --sample-prompt, or none for the built-in ones.",
            )
        return Chooser(tuner.backend, tuner.run.path, flat, prompts, reference, speakers)
    return Listener(tuner.backend, tuner.run.path, flat, prompts, reference, speakers)


def _train(
    tuner: Any,
    rows: Any,
    faults: Any,
    flags: dict[str, Any],
    held: Any,
    saved: Saved | None,
    folder: Path | None = None,
) -> Path:
    from csm.cli.live import TrainingView
    from csm.training.watchers import Watchers

    listen = _listener(tuner, rows, flags["reference"])
    data = _tokenise(tuner, rows, faults, flags["strict"], folder=folder)
    if unread := tuner.unread_characters(data):
        warn(f"this model cannot read {' '.join(unread)!r} in the transcripts; write numbers as words.")
    validation = _tokenise(tuner, held[0], held[1], flags["strict"], "data to validate on") if held else None

    for doubt in doubts(tuner, data):
        warn(doubt)

    with TrainingView() as view:
        talk = _Talk(view, tuner.run.path / "metrics.jsonl", saved)
        watch = Watchers(talk.updated, view.say, listen, talk.begun, talk.saved)
        outcome = tuner.train(
            data, validation_dataset=validation, resume=flags["resume"], fresh=flags["fresh"], watch=watch
        )
    if outcome.from_step == outcome.step:
        say(f"this run is done already: {outcome.step} steps; --fresh begins anew")
    return outcome.best


def _tokenise(tuner: Any, rows: Any, faults: Any, strict: bool, name: str = "data", folder: Path | None = None) -> Any:
    """The rows' codes, or what a folder of codes holds, told in a line."""
    from csm.cli.progress import Progress
    from csm.data.codes import summary
    from csm.data.faults import render

    if folder:
        data = tuner.read_codes(folder, strict)
    else:
        with Progress("tokenising") as bar:
            data = tuner.tokenise(rows, faults, bar.update, strict)
    if data.faults:
        warn(f"skipped:\n{render(data.faults)}")
    say(f"{name}: {summary(data)}")
    return data


class _Talk:
    """Tells of a training as it goes: where it begins, how good the base is, every update, validation and checkpoint."""

    def __init__(self, bar: TrainingView, metrics: Path, told: Saved | None):
        self.bar, self.metrics, self.knows_base, self.told, self.saved_step = bar, metrics, False, told, 0

    def saved(self, step: int, folder: Path) -> None:
        self.saved_step = step
        if self.told:
            self.told(step, folder)

    def begun(self, step: int, moved_aside: Path | None) -> None:
        if moved_aside:
            self.bar.say(f"the old run was moved to {moved_aside}")
        if step:
            self.bar.say(f"the run stands at step {step} and goes on from there")

    def updated(self, step: int, steps: int, values: dict[str, float]) -> None:
        if not self.knows_base:
            self._tell_base()
        self.bar.take(step, values)
        self.bar.update(step, steps, f"loss {values['loss']:.4g}")
        shown = {key: name for key, name in REPORTED.items() if key in values}
        if shown or self.saved_step == step:
            parts = [f"loss {values['loss']:.4g}", *(f"{name} {values[key]:.4g}" for key, name in shown.items())]
            self.bar.say(f"step {step}: {', '.join(parts)}{'; saved' if self.saved_step == step else ''}")
        detail(f"step {step} of {steps}: {', '.join(f'{key} {value:.6g}' for key, value in values.items())}")

    def _tell_base(self) -> None:
        from csm.training.metrics import MetricsFile

        self.knows_base = True
        for record in MetricsFile(self.metrics).read():  # of a run that goes on, all that it learned before
            self.bar.take(record["step"], record)
            if record["step"] == 0 and "validation_loss" in record:
                self.bar.say(f"the base: validation {record['validation_loss']:.4g}")


_preset_command("voice-adapt", "Take on a voice from minutes of recordings: heads and depth decoder learn.")
_preset_command("style-tune", "Take on a way of speaking: all parts learn, codebook 0 counts most.")
_preset_command("domain", "Learn a domain's words: the backbone learns, the voice stays.")
_preset_command("conversation", "Learn to answer in a dialogue: earlier turns are context.")

for _command in (check, convert, full, lora, run, stages, plot, prepare, tokenize):
    main.add_command(_command)


if __name__ == "__main__":
    main()
