"""`python -m csm.cli.finetune_lora`: the LoRA guide's command, with its flags, defaults and names of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csm.cli.console import LEVELS, answer, say, talking_from
from csm.cli.options import PATH, adapts, reads_data, runs_model, shapes_recipe, takes_base
from csm.cli.run_options import begins_run, refuse_empty_prompts, steers_run
from csm.cli.together import TogetherCommand

PROMPT = "This is a test of the fine-tuned voice model."


@click.command("finetune_lora", cls=TogetherCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model-path", required=True, help="csm-tiny, a model folder, a run, a weights file or a hub id")
@takes_base
@click.option("--output-dir", required=True, type=PATH, help="the run folder, and the guide's files at its top")
@reads_data
@shapes_recipe
@adapts
@click.option(
    "--save-mode",
    type=click.Choice(["lora", "full", "both"]),
    default="lora",
    show_default=True,
    help="at the end write the adapter, the model with it merged in, or both",
)
@click.option("--generate-samples", is_flag=True, help="speak --sample-prompt at the end, into OUT/sample.wav")
@click.option("--resume-from", type=PATH, help="checkpoint_latest.safetensors of the run in --output-dir: go on there")
@click.option(
    "--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="how much is said on stderr"
)
@click.option("--debug", is_flag=True, help="--log-level debug: every figure of every update")
@steers_run
@begins_run
@runs_model
def main(**flags: Any) -> None:
    """Fine-tune a CSM by LoRA on one speaker's recordings. Adapters go onto q_proj and v_proj where nothing else is said."""
    with talking_from("debug" if flags["debug"] else flags["log_level"]):
        _main(flags)


def _main(flags: dict[str, Any]) -> None:
    from csm.cli.finetune import answer_best, finetune
    from csm.training.lora_files import LATEST, write_adapter_file

    if flags["speaker_id"] is None:
        flags["speaker_id"] = 0
        say("speaker 0, where the data does not say (--speaker-id)")
    out = flags["output_dir"] = flags["output_dir"].expanduser()
    _check(flags)
    refuse_empty_prompts(flags["sample_prompts"])
    prompts = flags["sample_prompts"] or (PROMPT,)
    if not flags["sample_every"]:
        flags["sample_prompts"] = ()  # of the end alone, and no part of the recipe
    best = finetune("finetune-lora", flags, lambda step, folder: write_adapter_file(folder, out / LATEST))
    if best is None:
        return
    _write_results(out, best, flags["save_mode"])
    answer_best(best)
    if flags["generate_samples"]:
        _speak(out, best, prompts, flags)


def _check(flags: dict[str, Any]) -> None:
    """What would fail only after the training, and what --resume-from means."""
    from csm.training.lora_files import run_to_resume
    from csm.training.run_folder import RunFolder

    if flags["lora_bias"] and flags["save_mode"] != "lora":
        raise click.UsageError(
            "--lora-bias cannot be merged: a model folder has no place for biases. Give --save-mode lora."
        )
    if flags["sample_prompts"] and not flags["generate_samples"] and not flags["sample_every"]:
        raise click.UsageError("--sample-prompt is for --generate-samples or --sample-every.")
    if flags["resume_from"] is None:
        return
    run_to_resume(flags["resume_from"].expanduser(), flags["output_dir"])
    identity = RunFolder(flags["output_dir"]).recipe()
    if not flags["recipe_file"]:
        flags["recipe_keys"], flags["recipe_source"] = identity["recipe"], "the run that goes on"
    flags["resume"] = True


def _write_results(out: Path, best: Path, mode: str) -> None:
    from csm.training.lora_files import write_tuned
    from csm.training.lora_trainer import lora_values
    from csm.training.run_folder import RunFolder

    for file in write_tuned(out, best, mode, lora_values(RunFolder(out).recipe()["recipe"])):
        say(f"wrote {file}")


def _speak(out: Path, best: Path, prompts: tuple[str, ...], flags: dict[str, Any]) -> None:
    """OUT/sample.wav, or sample-1.wav and so on where there are several prompts."""
    from csm.audio import write_wave
    from csm.generator import load_generator
    from csm.training.lora_trainer import speak_first
    from csm.training.run_folder import RunFolder

    learned = RunFolder(out).lineage()["data"]["speakers"]
    speaker = flags["speaker_id"] if flags["speaker_id"] in learned else learned[0]
    generator = load_generator(best, flags["device"], flags["dtype"], flags["threads"])
    for number, prompt in enumerate(prompts, 1):
        file = out / ("sample.wav" if len(prompts) == 1 else f"sample-{number}.wav")
        speech = speak_first(generator, prompt, speaker)
        write_wave(file, speech.wave, speech.sample_rate)
        say(f"speaker {speaker}, {speech.seconds:.2f} s, seed {speech.seed}, ended by {speech.stop_reason}:")
        answer(str(file))


if __name__ == "__main__":
    main()
