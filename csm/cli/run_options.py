"""Flags around a run: whose turns are learned, when it ends, what is kept of it, what it says on the way."""

from __future__ import annotations

from typing import Any

import click

from csm.cli.lists import NUMBERS, listed
from csm.cli.options import PATH, bundle
from csm.errors import CsmError
from csm.recipe import LOGS, SELECT_BY

steers_run = bundle(
    listed("--mask-speaker-ids", metavar=NUMBERS, help="speakers whose turns are context only"),
    listed("--only-speaker-ids", metavar=NUMBERS, help="the speakers whose turns are learned"),
    click.option("--context-dropout", type=float, help="share of examples an epoch shows without their context"),
    click.option("--early-stop", type=int, help="end after so many validations without a better one; 0 never"),
    click.option("--select-by", type=click.Choice(SELECT_BY), help="what `best` and --early-stop go by"),
    click.option("--sample-every", type=int, help="speak fixed prompts every so many updates; 0 never"),
    click.option("--sample-prompt", "sample_prompts", multiple=True, help="a prompt for samples; may be repeated"),
    click.option("--reference", type=PATH, help="recordings that samples are compared with; default: the data's own"),
    click.option("--keep", type=int, help="the newest checkpoints to keep, beside the best; 0 keeps all"),
    click.option("--gradient-ckpt/--no-gradient-ckpt", default=None, help="less memory for more time, equal numbers"),
    listed("--log-to", known=(*LOGS, "none"), help=f"any of {', '.join(LOGS)}, or none; default: tensorboard"),
)
begins_run = bundle(
    click.option("--recipe", "recipe_file", type=PATH, help="YAML or TOML with any of a recipe's keys"),
    click.option("--dry-run", is_flag=True, help="print the recipe with its sources, and stop"),
    click.option("--resume", is_flag=True, help="fail unless there is a run to go on with"),
    click.option("--fresh", is_flag=True, help="move a run that is there aside and begin anew"),
)
names_terms = bundle(
    click.option("--terms", type=PATH, help="a file of terms, one a line: their clips are shown more often"),
    click.option("--term-factor", type=float, help="how many times an epoch shows a clip with a term  [default: 3]"),
)
KEYS = (
    "mask_speaker_ids", "only_speaker_ids", "context_dropout", "early_stop", "select_by", "sample_every",
    "sample_prompts", "keep", "gradient_ckpt", "log_to", "term_factor",
)  # fmt: skip


def refuse_empty_prompts(prompts: tuple[str, ...]) -> None:
    """Before the training, since they are spoken in it or after it."""
    if not all(prompt.strip() for prompt in prompts):
        raise CsmError("--sample-prompt is empty.", "Give words to speak, or leave it out.")


def run_layer(flags: dict[str, Any]) -> dict[str, Any]:
    """The recipe's values that these flags give; None where a flag was not given.

    Raises:
        CsmError: the file of terms cannot be used.
    """
    values = {key: flags.get(key) for key in KEYS}
    values["sample_prompts"] = values["sample_prompts"] or None
    refuse_empty_prompts(values["sample_prompts"] or ())
    if values["log_to"] and "none" in values["log_to"]:
        if len(values["log_to"]) > 1:
            raise CsmError("--log-to none goes with no other.")
        values["log_to"] = ()
    if flags.get("terms"):
        from csm.data.terms import read_terms

        values["terms"] = read_terms(flags["terms"])
    return values
