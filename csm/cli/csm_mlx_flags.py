"""csm-mlx's flags that are not ours: for `csm-finetune full|lora`, and for whoever else offers its commands.

What they mean here is a layer of the recipe (`translated`), shown by --dry-run with the flag that it came from.
"""

from __future__ import annotations

from typing import Any

import click

from csm.cli.options import PATH, adapts, bundle, reads_data, runs_model, shapes_recipe, takes_base
from csm.cli.run_options import begins_run, steers_run
from csm.errors import CsmError

SIZES = {"1b": "sesame/csm-1b"}
FIRST_WEIGHT = "--first-codebook-weight-multiplier"

_NAMES = (
    click.option("--model", "-m", type=click.Choice(list(SIZES)), default="1b", show_default=True,
                 help="the size of the hub's model, where --pretrained-path names none"),
    click.option("--pretrained-path", "--model-path", "model_path",
                 help="weights that are here: csm-tiny, a model folder, a run, a weights file"),
    takes_base,
    click.option("--output-dir", "-o", required=True, type=PATH, help="the run folder; the same run there is gone on with"),
)  # fmt: skip
_OWN = (
    click.option(FIRST_WEIGHT, "--fcw", "first_weight", type=float,
                 help="weight of codebook 0: the loss weights become this / 32 and 31 / 32  [default: 1]"),
    click.option("--val-data-path", "val_data_paths", multiple=True, type=PATH, metavar="PATH",
                 help="data to validate on; may be repeated"),
    click.option("--val-ckpt", is_flag=True, help="insist on a validation of every checkpoint: fail without data for it"),
)  # fmt: skip
_SAVES = click.option("--only-save-adapter/--save-all", default=True, show_default=True,
                      help="--save-all writes the model with the adapter merged in too, to OUT/merged")  # fmt: skip

trains_in_full = bundle(*_NAMES, reads_data, shapes_recipe, *_OWN, steers_run, begins_run, runs_model)
trains_adapters = bundle(*_NAMES, reads_data, shapes_recipe, *_OWN, adapts, _SAVES, steers_run, begins_run, runs_model)


def understood(preset: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags as `csm.cli.finetune.finetune` takes them.

    Raises:
        CsmError: the hub did not give the model of --model, or there is nothing that --val-ckpt could validate on.
        UsageError: two flags say the same thing.
    """
    from csm.presets import PRESETS, first_codebook_weights

    multiplier, layers = flags["first_weight"], []
    if multiplier is not None:
        if flags["semantic_weight"] is not None or flags["acoustic_weight"] is not None:
            raise click.UsageError(
                f"{FIRST_WEIGHT} stands for --semantic-weight and --acoustic-weight: give one or the other."
            )
        layers = [(f"flag {FIRST_WEIGHT} {multiplier:g}", first_codebook_weights(multiplier))]
    share = flags["val_split"] if flags["val_split"] is not None else PRESETS[preset].val_split
    if flags["val_ckpt"] and not flags["val_data_paths"] and not share and not flags["recipe_file"]:
        raise click.UsageError("--val-ckpt needs something to validate on: give --val-data-path or --val-split.")
    return {**flags, "model_path": flags["model_path"] or _of_hub(flags["model"]), "translated": layers}


def _of_hub(size: str) -> str:
    """The folder of a size's model, fetched where it is not here yet."""
    from csm.model_folder import resolve

    try:
        return str(resolve(SIZES[size]))
    except CsmError as error:
        raise CsmError(
            f"--model {size}: {error.message}",
            "Name weights that are here with --pretrained-path (csm-tiny to try), or fetch it once with the network.",
        ) from None
