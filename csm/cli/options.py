"""Flags in bundles: what every command that runs a model takes, what every command that trains takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
SEED = click.IntRange(0, 2**63 - 1)


def _bundle(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


runs_model = _bundle(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps"),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16"),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; by default what the CPU quota grants"),
)

samples_speech = _bundle(
    click.option("--temperature", type=float, help="0 is greedy; default: the model folder's, else 0.9"),
    click.option(
        "--top-k", type=click.IntRange(0), help="codes to draw from, 0 for all; default: the folder's, else 50"
    ),
)

takes_base = click.option(
    "--base", type=PATH, help="a model folder that lends config, tokenizer and codec to weights that stand alone"
)

names_data = _bundle(
    click.option("--data-path", "data_paths", multiple=True, type=PATH, metavar="PATH",
                 help="JSON of conversations, or a folder with audio/ and transcripts/; may be repeated"),
    click.option("--audio-dir", type=PATH, help="sound files, with --transcript-dir"),
    click.option("--transcript-dir", type=PATH, help="a .txt for each sound file, by the same relative name"),
    click.option("--speaker-id", type=click.IntRange(0), help="who speaks, where the data does not say"),
)  # fmt: skip

reads_data = _bundle(
    names_data,
    click.option("--strict", is_flag=True, help="stop at a clip that cannot be used, rather than skip and count it"),
    click.option("--cache-dir", type=PATH, help="where audio codes are kept; default: the user's cache folder"),
)  # fmt: skip


def _listed(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """A list however it was written: repeated, with commas, or with spaces inside one word; None where it was not."""
    return tuple(word for text in value for word in text.replace(",", " ").split()) or None


def _listed_numbers(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[int, ...] | None:
    words = _listed(context, option, value)
    wrong = [word for word in words or () if not word.isdigit()]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not the number of a layer.")
    return tuple(map(int, words)) if words else None


adapts = _bundle(
    click.option("--method", type=click.Choice(["full", "lora"]), help="learn the weights, or thin adapters beside them"),
    click.option("--lora-rank", type=int, help="width of the adapters"),
    click.option("--lora-alpha", type=float, help="their weight is alpha / rank"),
    click.option("--lora-dropout", type=float, help="share of the adapters' input that is left out in training"),
    click.option("--target-modules", "lora_targets", multiple=True, callback=_listed, metavar="NAMES",
                 help="attn (all matrices of the layers), or any of q_proj k_proj v_proj o_proj gate_proj up_proj "
                 "down_proj; projection codebook0_head acoustic_heads text_embeddings audio_embeddings; backbone.NAME or "
                 "decoder.NAME for one transformer; default: all that learns but embeddings"),
    click.option("--target-layers", "lora_layers", multiple=True, callback=_listed_numbers, metavar="NUMBERS",
                 help="layers of the backbone, from 0; default: all"),
    click.option("--dora/--no-dora", "lora_dora", default=None, help="learn length and direction apart"),
    click.option("--rslora/--no-rslora", "lora_rslora", default=None, help="weigh by alpha / sqrt(rank)"),
)  # fmt: skip

shapes_recipe = _bundle(
    click.option("--learning-rate", type=float),
    click.option("--epochs", type=int),
    click.option("--max-steps", type=int, help="updates in all, in place of epochs"),
    click.option("--batch-size", type=int, help="examples in a micro-batch"),
    click.option("--accumulate", type=int, help="micro-batches in an update"),
    click.option("--freeze-backbone/--no-freeze-backbone", default=None),
    click.option("--freeze-decoder/--no-freeze-decoder", default=None),
    click.option("--freeze-embeddings/--no-freeze-embeddings", default=None),
    click.option("--semantic-weight", type=float, help="weight of codebook 0's loss"),
    click.option("--acoustic-weight", type=float, help="weight of the other codebooks' loss"),
    click.option("--decoder-fraction", type=float, help="share of frames that train the depth decoder"),
    click.option("--context-turns", "--max-context-turns", type=int, help="turns before the target at most"),
    click.option("--weight-decay", type=float),
    click.option("--max-grad-norm", type=float, help="0 clips nothing"),
    click.option("--val-split", type=float, help="share of files or conversations held out; 0 for none"),
    click.option("--save-every", type=int, help="updates between checkpoints; 0 for once an epoch"),
    click.option("--seed", type=int),
)

RECIPE_FLAGS = (
    "learning_rate", "epochs", "max_steps", "batch_size", "accumulate", "freeze_backbone", "freeze_decoder",
    "freeze_embeddings", "semantic_weight", "acoustic_weight", "decoder_fraction", "context_turns", "weight_decay",
    "max_grad_norm", "val_split", "save_every", "seed", "style_name",
)  # fmt: skip
ADAPTER_FLAGS = (
    "method", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_layers", "lora_dora", "lora_rslora",
)  # fmt: skip
