"""`csm-finetune`: the staged presets, one engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csm.cli.console import Group, answer, say, warn
from csm.cli.options import ADAPTER_FLAGS, PATH, RECIPE_FLAGS, adapts, reads_data, runs_model, shapes_recipe


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="csm-finetune", prog_name="csm-finetune")
def main() -> None:
    """Fine-tune a CSM model: for a voice, a style, a domain or conversation.

    Each command is a preset of one engine; --dry-run shows its values and where each comes from.
    """


def _preset_command(preset: str, summary: str) -> None:
    @main.command(preset, help=summary)
    @click.option("--model-path", default="csm-tiny", show_default=True, help="a model folder, a run, or csm-tiny")
    @click.option("--output-dir", required=True, type=PATH, help="the run folder; the same run there is gone on with")
    @reads_data
    @shapes_recipe
    @adapts
    @click.option("--recipe", "recipe_file", type=PATH, help="YAML or TOML with any of a recipe's keys")
    @click.option("--dry-run", is_flag=True, help="print the recipe with its sources, and stop")
    @click.option("--resume", is_flag=True, help="fail unless there is a run to go on with")
    @click.option("--fresh", is_flag=True, help="move a run that is there aside and begin anew")
    @runs_model
    def command(**flags: Any) -> None:
        _finetune(preset, flags)

    if preset == "style-tune":
        click.option("--style-name", required=True, help="what the style is called, kept with the run")(command)


def _finetune(preset: str, flags: dict[str, Any]) -> None:
    if flags["resume"] and flags["fresh"]:
        raise click.UsageError("--resume and --fresh exclude each other.")
    if preset == "style-tune" and not flags["style_name"].strip():
        raise click.UsageError("--style-name is empty.")
    from csm.data.manifest import read_data
    from csm.training.finetuner import CSMFineTuner

    placement = {key: flags[key] for key in ("device", "dtype", "threads")}
    tuner = CSMFineTuner(flags["model_path"], flags["output_dir"], preset=preset, cache=flags["cache_dir"], **placement)
    tuner.layers += _layers(flags["recipe_file"], flags)
    (answer if flags["dry_run"] else say)(f"{preset} of {tuner.base.path}\n{tuner.resolved.describe()}")
    if adapters := tuner.adapters:
        say(f"adapters: {adapters}")
    say(f"backend: {tuner.backend.reason}")
    if flags["dry_run"]:
        return
    rows, faults = read_data(flags["data_paths"], flags["audio_dir"], flags["transcript_dir"], flags["speaker_id"])
    _train(tuner, rows, faults, flags)


def _layers(recipe_file: Path | None, flags: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    from csm.recipe import read_recipe

    file_layer = [(str(recipe_file), read_recipe(recipe_file))] if recipe_file else []
    return [*file_layer, ("flag", {key: flags.get(key) for key in RECIPE_FLAGS + ADAPTER_FLAGS})]


def _train(tuner: Any, rows: Any, faults: Any, flags: dict[str, Any]) -> None:
    from csm.cli.progress import Progress
    from csm.data.codes import summary
    from csm.data.faults import render

    with Progress("tokenising") as bar:
        data = tuner.tokenise(rows, faults, bar.update, flags["strict"])
    if data.faults:
        warn(f"skipped:\n{render(data.faults)}")
    say(f"data: {summary(data)}")
    if unread := tuner.unread_characters(data):
        warn(f"this model cannot read {' '.join(unread)!r} in the transcripts; write numbers as words.")

    def report(step: int, steps: int, values: dict[str, float]) -> None:
        validation = values.get("validation_loss")
        bar.update(step, steps, f"loss {values['loss']:.4g}")
        if validation is not None:
            say(f"step {step}: loss {values['loss']:.4g}, validation {validation:.4g}; saved")

    with Progress("training") as bar:
        outcome = tuner.train(data, resume=flags["resume"], fresh=flags["fresh"], report=report)
    if outcome.moved_aside:
        say(f"the old run was moved to {outcome.moved_aside}")
    if outcome.from_step == outcome.step:
        say(f"this run is done already: {outcome.step} steps; --fresh begins anew")
    elif outcome.from_step:
        say(f"went on from step {outcome.from_step}")
    say("best checkpoint:")
    answer(str(outcome.best))


_preset_command("voice-adapt", "Take on a voice from minutes of recordings: heads and depth decoder learn.")
_preset_command("style-tune", "Take on a way of speaking: all parts learn, codebook 0 counts most.")
_preset_command("domain", "Learn a domain's words: the backbone learns, the voice stays.")
_preset_command("conversation", "Learn to answer in a dialogue: earlier turns are context.")


if __name__ == "__main__":
    main()
