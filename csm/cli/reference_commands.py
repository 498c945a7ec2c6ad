"""`csm-finetune full` and `csm-finetune lora`: csm-mlx's two fine-tunes, with its flags and defaults, on one engine."""

from __future__ import annotations

from typing import Any

import click

from csm.cli.csm_mlx_flags import trains_adapters, trains_in_full, understood
from csm.cli.lists import ListCommand


@click.command("full", cls=ListCommand)
@trains_in_full
def full(**flags: Any) -> None:
    """Learn all weights from conversations, as `csm-mlx finetune full` does."""
    from csm.cli.finetune import answer_best, finetune

    answer_best(finetune("full", understood("full", flags)))


@click.command("lora", cls=ListCommand)
@trains_adapters
def lora(**flags: Any) -> None:
    """Learn adapters from conversations, as `csm-mlx finetune lora` does."""
    from csm.cli.console import say
    from csm.cli.finetune import answer_best, finetune

    if flags["lora_bias"] and not flags["only_save_adapter"]:
        raise click.UsageError(
            "--lora-bias cannot be merged: a model folder has no place for biases. Leave out --save-all."
        )
    best = finetune("lora", understood("lora", flags))
    if best and not flags["only_save_adapter"]:
        from csm.training.lora_files import write_merged

        say(f"merged: {write_merged(flags['output_dir'].expanduser(), best)}")
    answer_best(best)
