"""`csm-finetune`: the staged presets, one engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csm.cli.check import check, doubts
from csm.cli.console import Group, answer, say, warn
from csm.cli.options import (
    ADAPTER_FLAGS,
    PATH,
    RECIPE_FLAGS,
    adapts,
    reads_data,
    runs_model,
    shapes_recipe,
    takes_base,
)
from csm.cli.plot import plot
from csm.cli.run_options import names_terms, run_layer, steers_run
from csm.cli.stages import run, stages

REPORTED = {
    "validation_terms_loss": "clips with terms",
    "validation_other_loss": "other clips",
    "speaker_similarity": "similarity",
}

if TYPE_CHECKING:
    from csm.cli.progress import Progress


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="csm-finetune", prog_name="csm-finetune")
def main() -> None:
    """Fine-tune a CSM model: for a voice, a style, a domain or conversation.

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
    @adapts
    @steers_run
    @click.option("--recipe", "recipe_file", type=PATH, help="YAML or TOML with any of a recipe's keys")
    @click.option("--dry-run", is_flag=True, help="print the recipe with its sources, and stop")
    @click.option("--resume", is_flag=True, help="fail unless there is a run to go on with")
    @click.option("--fresh", is_flag=True, help="move a run that is there aside and begin anew")
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


def finetune(preset: str, flags: dict[str, Any]) -> Path | None:
    """Fine-tune as a command's flags say; the best checkpoint's folder, None after a dry run."""
    if flags["resume"] and flags["fresh"]:
        raise click.UsageError("--resume and --fresh exclude each other.")
    from csm.data.manifest import read_data
    from csm.training.finetuner import CSMFineTuner

    placement = {key: flags[key] for key in ("device", "dtype", "threads", "base")}
    tuner = CSMFineTuner(flags["model_path"], flags["output_dir"], preset=preset, cache=flags["cache_dir"], **placement)
    tuner.layers += recipe_layers(flags)
    (answer if flags["dry_run"] else say)(f"{preset} of {tuner.base.path}\n{tuner.resolved.describe()}")
    if adapters := tuner.adapters:
        say(f"adapters: {adapters}")
    say(f"backend: {tuner.backend.reason}")
    if flags["dry_run"]:
        _say_epochs(tuner)
        return None
    rows, faults = read_data(flags["data_paths"], flags["audio_dir"], flags["transcript_dir"], flags["speaker_id"])
    return _train(tuner, rows, faults, flags)


def _say_epochs(tuner: Any) -> None:
    """A dry run reads no data, so it can only say what will follow from them."""
    from csm.presets import EPOCHS

    span, resolved = EPOCHS.get(tuner.preset), tuner.resolved
    if span and resolved.sources["epochs"].startswith("preset") and not resolved.recipe.max_steps:
        say(f"epochs will follow from the minutes of the data: {span.fewest} to {span.most}")


def recipe_layers(flags: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Recipe file (or the keys of a stage), then flags."""
    from csm.recipe import read_recipe

    recipe_file = flags["recipe_file"]
    file_layer = [(str(recipe_file), read_recipe(recipe_file))] if recipe_file else []
    if flags.get("recipe_keys"):
        file_layer = [(flags["recipe_source"], flags["recipe_keys"])]
    given = {key: flags.get(key) for key in RECIPE_FLAGS + ADAPTER_FLAGS}
    return [*file_layer, ("flag", given), ("flag", run_layer(flags))]


def _listener(tuner: Any, rows: Any, reference: Path | None) -> Any:
    """Who listens to the run's samples; None where its recipe asks for none."""
    from csm.cli.listening import Listener
    from csm.data.speakers import learned_speakers
    from csm.errors import CsmError

    recipe = tuner.resolved.recipe
    if not recipe.sample_every and recipe.select_by != "speaker_similarity":
        if reference:
            raise CsmError(
                "--reference is for --sample-every or --select-by speaker_similarity.", "Give one of the two."
            )
        return None
    flat = [row for conversation in rows for row in conversation]
    speakers = learned_speakers((row.speaker for row in flat), recipe.mask_speaker_ids, recipe.only_speaker_ids)
    return Listener(tuner.backend, tuner.run.path, flat, recipe.sample_prompts, reference, speakers)


def _train(tuner: Any, rows: Any, faults: Any, flags: dict[str, Any]) -> Path:
    from csm.cli.progress import Progress
    from csm.data.codes import summary
    from csm.data.faults import render
    from csm.training.watchers import Watchers

    listen = _listener(tuner, rows, flags["reference"])
    with Progress("tokenising") as bar:
        data = tuner.tokenise(rows, faults, bar.update, flags["strict"])
    if data.faults:
        warn(f"skipped:\n{render(data.faults)}")
    say(f"data: {summary(data)}")
    if unread := tuner.unread_characters(data):
        warn(f"this model cannot read {' '.join(unread)!r} in the transcripts; write numbers as words.")

    for doubt in doubts(tuner, data):
        warn(doubt)

    with Progress("training") as bar:
        talk = _Talk(bar, tuner.run.path / "metrics.jsonl")
        watch = Watchers(talk.updated, bar.say, listen, talk.begun)
        outcome = tuner.train(data, resume=flags["resume"], fresh=flags["fresh"], watch=watch)
    if outcome.from_step == outcome.step:
        say(f"this run is done already: {outcome.step} steps; --fresh begins anew")
    return outcome.best


class _Talk:
    """Tells of a training as it goes: where it begins, how good the base is, every update, every validation."""

    def __init__(self, bar: Progress, metrics: Path):
        self.bar, self.metrics, self.knows_base = bar, metrics, False

    def begun(self, step: int, moved_aside: Path | None) -> None:
        if moved_aside:
            self.bar.say(f"the old run was moved to {moved_aside}")
        if step:
            self.bar.say(f"the run stands at step {step} and goes on from there")

    def updated(self, step: int, steps: int, values: dict[str, float]) -> None:
        if not self.knows_base:
            self._tell_base()
        self.bar.update(step, steps, f"loss {values['loss']:.4g}")
        if "validation_loss" in values:
            parts = [f"loss {values['loss']:.4g}", f"validation {values['validation_loss']:.4g}"]
            parts += [f"{name} {values[key]:.4g}" for key, name in REPORTED.items() if key in values]
            self.bar.say(f"step {step}: {', '.join(parts)}; saved")

    def _tell_base(self) -> None:
        from csm.training.metrics import MetricsFile

        self.knows_base = True
        for record in MetricsFile(self.metrics).read()[:1]:
            if record["step"] == 0 and "validation_loss" in record:
                self.bar.say(f"the base: validation {record['validation_loss']:.4g}")


_preset_command("voice-adapt", "Take on a voice from minutes of recordings: heads and depth decoder learn.")
_preset_command("style-tune", "Take on a way of speaking: all parts learn, codebook 0 counts most.")
_preset_command("domain", "Learn a domain's words: the backbone learns, the voice stays.")
_preset_command("conversation", "Learn to answer in a dialogue: earlier turns are context.")

for _command in (run, stages, plot, check):
    main.add_command(_command)


if __name__ == "__main__":
    main()
