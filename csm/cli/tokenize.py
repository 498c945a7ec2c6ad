"""`csm-finetune tokenize`: codes and texts into a folder that a run is trained from; processes may share the work."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csm.cli.console import answer, say, warn
from csm.cli.options import PATH, names_data, stops_at_faults, takes_base
from csm.cli.together import Apart
from csm.errors import CsmError
from csm.processes import own_place

if TYPE_CHECKING:
    from csm.data.codes_folder import Part
    from csm.data.row import Row


class _Share(click.ParamType):
    """`i/n`, counted from 0."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = re.fullmatch(r"(\d+)/(\d+)", str(value))
        if not found or not int(found[1]) < int(found[2]) < 100_000:
            self.fail(f"{value!r} is no part of the work: 0/8 is the first of eight, 7/8 the last.", param, ctx)
        return int(found[1]), int(found[2])


@click.command("tokenize", cls=Apart)
@click.argument("data", nargs=-1)
@names_data
@stops_at_faults
@click.option(
    "--output", required=True, type=PATH, metavar="CODES", help="the folder of codes; what is there is gone on with"
)
@click.option(
    "--model-path", default="csm-tiny", show_default=True, help="the model whose codec and tokenizer are used"
)
@takes_base
@click.option(
    "--shard", "share", type=_Share(), help="a part of the work, 0/8 to 7/8; default: what torchrun says, else all"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; by default what the CPU quota grants")
def tokenize(data: tuple[str, ...], output: Path, share: tuple[int, int] | None, **flags: Any) -> None:
    """Encode DATA once: codes, texts and speakers into CODES, which `--data-path CODES` trains from without the sound files.

    Interrupted, the same command goes on. Several processes may share the work: the last to end completes the folder.
    """
    from csm.backend import choose_backend
    from csm.cli.data import read_rows
    from csm.data.codes_folder import Part, is_codes_folder
    from csm.model_folder import open_folder

    paths = (*flags["data_paths"], *data)
    if any(is_codes_folder(Path(path)) for path in paths):
        raise CsmError("the data are codes already.", "Name the sound files that they were made from.")
    place = own_place()
    part = Part(*(share or (place.rank, place.size)))
    folder = open_folder(flags["model_path"], flags["base"])
    backend = choose_backend(folder, flags["device"], "auto", flags["threads"])
    rows, faults = read_rows({**flags, "data_paths": paths})
    if write_codes(output, rows, faults, part, folder, backend, flags["strict"]):
        answer(str(output))
    else:
        say(f"part {part.number} of {part.count} is done; {output} waits for others")


def write_codes(
    output: Path, rows: list[list[Row]], faults: Any, part: Part, model: Any, backend: Any, strict: bool
) -> bool:
    """Encode a part of the rows and write it down; whether the folder is complete."""
    from csm.cli.progress import Progress
    from csm.data.ahead import spare_threads
    from csm.data.clips import SETTINGS
    from csm.data.codes import CodeCache, summary, tokenise
    from csm.data.codes_folder import Head, data_digest, write_rows
    from csm.data.faults import render
    from csm.tokenizer import TextTokenizer

    codec, tokenizer = backend.codec(model), TextTokenizer(model.beside)
    tokenizer.require_speakers(row.speaker for conversation in rows for row in conversation)
    cache = CodeCache(output, codec)
    mine = part.of(len(rows))
    with Progress("tokenising") as bar:
        told = faults if part.number == 0 else []
        settings: dict[str, Any] = dict(strict=strict, threads=spare_threads(), needed=part.count == 1)
        found = tokenise(rows[mine.start : mine.stop], cache, bar.update, faults=told, **settings)
    if found.faults:
        warn(f"skipped:\n{render(found.faults)}")
    say(f"data: {summary(found)}")
    turns = found.turns
    assert turns.places is not None
    counts = tokenizer.lengths(turns.texts, turns.speakers)
    listed = (
        (int(turns.conversation_of[i]), turns.row(i), int(place), cache.shards.entry(int(place)), int(counts[i]))
        for i, place in enumerate(turns.places)
    )
    head = Head(
        data_digest(rows), codec.fingerprint, SETTINGS, codec.sample_rate, codec.frame_rate, codec.codebooks,
        tokenizer.fingerprint,
    )  # fmt: skip
    return write_rows(output, part, head, listed)


def codes_alone(flags: dict[str, Any]) -> Path | None:
    """The folder of codes that a run's data flags name; None where they name other data.

    Raises:
        CsmError: it is named together with other data, or with flags that only sound files can be read by.
    """
    from csm.data.codes_folder import is_codes_folder

    paths = [Path(os.path.expanduser(path)) for path in flags["data_paths"]]
    folders = [path for path in paths if is_codes_folder(path)]
    if not folders:
        return None
    if len(paths) > 1 or flags["audio_dir"] or flags["transcript_dir"]:
        raise CsmError(
            f"{folders[0]} is a folder of codes and other data are named beside it.",
            "Tokenize all of them into one folder.",
        )
    idle = [name for name in ("alignment_dir", "align", "denoise", "data_format") if flags.get(name)]
    if idle:
        named = ", ".join("--" + name.removeprefix("data_").replace("_", "-") for name in idle)
        raise CsmError(f"{folders[0]} is a folder of codes, on which {named} can do nothing.", "Give it to tokenize.")
    return folders[0]


def rows_if_heard(folder: Path, tuner: Any) -> list[list[Row]]:
    """The rows of a folder of codes where the run's samples are compared with their sounds; none are needed else."""
    from csm.data.codes_folder import read_rows
    from csm.recipe import BY_SOUND

    recipe = tuner.resolved.recipe
    return read_rows(folder) if recipe.sample_every or recipe.select_by in BY_SOUND else []
