"""Flags in bundles: what every command that runs a model takes, what every command that trains takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from csm.cli.lists import NUMBERS, listed
from csm.recipe import METHODS, OPTIMIZERS, SCHEDULES

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
SEED = click.IntRange(0, 2**63 - 1)


class AutoInt(click.ParamType):
    """A whole number, or `auto`."""

    name = "INTEGER|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value if value == "auto" else int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor auto.", param, ctx)


def bundle(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """A decorator that adds the options to a command, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


runs_model = bundle(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps"),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16"),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; by default what the CPU quota grants"),
)

samples_speech = bundle(
    click.option("--temperature", type=float, help="0 is greedy; default: the model folder's, else 0.9"),
    click.option(
        "--top-k", type=click.IntRange(0), help="codes to draw from, 0 for all; default: the folder's, else 50"
    ),
)

takes_base = click.option(
    "--base", type=PATH, help="a model folder that lends config, tokenizer and codec to weights that stand alone"
)

names_format = click.option(
    "--format", "data_format", metavar="NAME", help="the layout of --data-path, where it is not to be found out"
)
names_language = click.option(
    "--language", default="en", show_default=True, metavar="TAG", help="of clips that name none: en, de, pt-BR"
)

_DATA = (
    click.option("--data-path", "data_paths", multiple=True, metavar="PATH...",
                 help="files and folders in any layout of docs/formats.md, mixed; hf://owner/name on the hub; a folder that "
                 "tokenize wrote"),
    click.option("--audio-dir", type=PATH, help="sound files, with --transcript-dir"),
    click.option("--transcript-dir", type=PATH, help="a .txt for each sound file, by the same relative name"),
    click.option("--alignment-dir", type=PATH, help="where each word lies (.json, .TextGrid), by the same relative name"),
    click.option("--align", is_flag=True, help="find the words of long clips that have no alignment (English)"),
    click.option("--piece-seconds", type=click.FloatRange(1, 90), default=10.0, show_default=True,
                 help="cut longer clips where words end, as far as it is known where"),
    click.option("--denoise", is_flag=True, help="take steady noise out of every recording, and say how much"),
    click.option("--speaker-id", type=click.IntRange(0), help="who speaks, where the data does not say"),
    names_format,
    names_language,
)  # fmt: skip
stops_at_faults = click.option(
    "--strict", is_flag=True, help="stop at a clip that cannot be used, rather than skip and count it"
)
_CACHE = click.option("--cache-dir", type=PATH, help="where audio codes are kept; default: the user's cache folder")
names_data = bundle(*_DATA)
reads_data = bundle(*_DATA, stops_at_faults, _CACHE)


chooses_method = click.option(
    "--method", type=click.Choice(METHODS), help="learn the weights, or thin adapters beside them"
)

adapts = bundle(
    click.option("--lora-rank", "--lora-r", "lora_rank", type=int, help="width of the adapters"),
    click.option("--lora-alpha", type=float, help="their weight is alpha / rank"),
    click.option("--lora-dropout", type=float, help="share of the adapters' input that is left out in training"),
    listed("--target-modules", "lora_targets",
           help="attn (all matrices of the layers), or any of q_proj k_proj v_proj o_proj gate_proj up_proj "
           "down_proj; projection codebook0_head acoustic_heads text_embeddings audio_embeddings; backbone.NAME or "
           "decoder.NAME for one transformer; default: all that learns but embeddings"),
    listed("--target-layers", "lora_layers", metavar=NUMBERS, help="layers of the backbone, from 0; default: all"),
    listed("--lora-decoder-layers", metavar=NUMBERS, help="layers of the depth decoder, from 0; default: all"),
    listed("--lora-ranks", metavar="PART=NUMBER", help="ranks of parts that differ: backbone, decoder, projection, "
           "codebook0_head, acoustic_heads, text_embeddings, audio_embeddings"),
    listed("--lora-alphas", metavar="PART=NUMBER", help="alphas of parts that differ"),
    click.option("--lora-bias/--no-lora-bias", default=None,
                 help="learn a bias in each adapter; csm speaks with them, but cannot merge them into a model folder"),
    click.option("--train-embeddings/--no-train-embeddings", "lora_embeddings", default=None,
                 help="learn both tables of embeddings as they are, beside the adapters"),
    click.option("--dora/--no-dora", "lora_dora", default=None, help="learn length and direction apart"),
    click.option("--rslora/--no-rslora", "lora_rslora", default=None, help="weigh by alpha / sqrt(rank)"),
)  # fmt: skip

shapes_recipe = bundle(
    click.option("--learning-rate", "--lr", "learning_rate", type=float),
    click.option("--epochs", type=int),
    click.option("--max-steps", type=int, help="updates in all, in place of epochs"),
    click.option("--batch-size", type=AutoInt(), help="examples in a micro-batch; auto finds what fits"),
    click.option("--max-batch-frames", type=int,
                 help="rows in a micro-batch at most, padding included; 0 for no limit"),
    click.option("--accumulate", "--gradient-accumulation-steps", "accumulate", type=int,
                 help="micro-batches in an update"),
    click.option("--freeze-backbone/--no-freeze-backbone", default=None),
    click.option("--freeze-decoder/--no-freeze-decoder", default=None),
    click.option("--freeze-embeddings/--no-freeze-embeddings", default=None),
    click.option("--semantic-weight", type=float, help="weight of codebook 0's loss"),
    click.option("--acoustic-weight", type=float, help="weight of the other codebooks' loss"),
    click.option("--decoder-fraction", type=float, help="share of frames that train the depth decoder"),
    click.option("--context-turns", "--max-context-turns", type=int, help="turns before the target at most"),
    click.option("--max-audio-length-ms", type=float, help="cut the sound of every turn there; 0 cuts nothing"),
    click.option("--max-seq-len", type=int, help="rows of text and sound in an example; 0 is what the model takes"),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS)),
    click.option("--schedule", type=click.Choice(SCHEDULES), help="of the learning rate, after its warmup"),
    click.option("--weight-decay", "--wd", "weight_decay", type=float),
    click.option("--max-grad-norm", "--max-norm", "max_grad_norm", type=float, help="0 clips nothing"),
    click.option("--val-split", type=float, help="share of files or conversations held out; 0 for none"),
    click.option("--val-every", "--val-freq", "val_every", type=int,
                 help="updates between validations; 0 for where a checkpoint is due, which is always validated"),
    click.option("--val-batch-size", type=int, help="examples scored at once; 0 is --batch-size"),
    click.option("--save-every", "--ckpt-freq", "save_every", type=int,
                 help="updates between checkpoints; 0 for once an epoch"),
    click.option("--log-every", "--log-freq", "log_every", type=int, help="updates between lines of metrics.jsonl"),
    click.option("--seed", type=int),
)  # fmt: skip

RECIPE_FLAGS = (
    "learning_rate", "epochs", "max_steps", "batch_size", "max_batch_frames", "accumulate", "freeze_backbone", "freeze_decoder",
    "freeze_embeddings", "semantic_weight", "acoustic_weight", "decoder_fraction", "context_turns", "max_audio_length_ms",
    "max_seq_len", "optimizer", "schedule", "weight_decay", "max_grad_norm", "val_split", "val_every", "val_batch_size",
    "save_every", "log_every", "seed", "style_name",
)  # fmt: skip
ADAPTER_FLAGS = (
    "method", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_layers", "lora_decoder_layers",
    "lora_ranks", "lora_alphas", "lora_bias", "lora_embeddings", "lora_dora", "lora_rslora",
)  # fmt: skip
