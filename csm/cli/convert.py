"""`csm-finetune convert`: any layout as JSON of conversations, the layout of csm-mlx."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from csm.cli.console import answer, say, warn
from csm.cli.lists import ListCommand
from csm.cli.options import PATH, names_format, names_language

if TYPE_CHECKING:
    from csm.data.row import Row


@click.command("convert", cls=ListCommand)
@click.argument("input_dir")
@click.argument("output_json", type=PATH)
@names_format
@names_language
@click.option("--speaker-id", type=click.IntRange(0), help="who speaks, where the data does not say")
@click.option("--cut", "cut_into", type=PATH, metavar="DIR", help="write parts of long recordings as files into DIR")
@click.option("--strict", is_flag=True, help="stop at a clip that cannot be used, rather than leave it out and name it")
def convert(
    input_dir: str,
    output_json: Path,
    data_format: str | None,
    language: str,
    speaker_id: int | None,
    cut_into: Path | None,
    strict: bool,
) -> None:
    """Write the data in INPUT_DIR, a folder or file in any layout, as conversations into OUTPUT_JSON.

    Sounds are named by their whole paths. The parts of a long recording need --cut, for a file of conversations that
    csm-mlx reads names whole files.
    """
    from csm.data.clip_files import cut_parts
    from csm.data.conversations import write_conversations
    from csm.data.faults import render, require_usable
    from csm.data.manifest import read_data
    from csm.data.speaker_names import named_speakers
    from csm.errors import CsmError

    conversations, faults = read_data([input_dir], speaker=speaker_id, format=data_format, language=language)
    parts = sum(_is_part(row) for conversation in conversations for row in conversation)
    if cut_into is not None:
        conversations, broken = cut_parts(conversations, cut_into)
        faults = [*faults, *broken]
    elif parts:
        clips = "1 clip is a part of a long recording" if parts == 1 else f"{parts} clips are parts of long recordings"
        raise CsmError(f"{clips}, and the layout of csm-mlx names whole files.", "Add --cut DIR.")
    require_usable(len(conversations), faults, strict)
    if named := named_speakers(conversations):
        say("speakers: " + ", ".join(f"{name} is {number}" for name, number in named.items()))
    write_conversations(output_json, conversations)
    if faults:
        warn(f"left out:\n{render(faults)}")
    turns = sum(map(len, conversations))
    say(f"{len(conversations)} conversation{'s' * (len(conversations) != 1)}, {turns} turn{'s' * (turns != 1)}")
    answer(str(output_json))


def _is_part(row: Row) -> bool:
    return row.start is not None or row.end is not None
