"""Lines of fields between bars, beside a folder `wavs/`: `id|text|normalised`, `id|text`, `file|speaker|text`.

LJSpeech's own metadata.csv has three fields, of which the last is what is said; where it is empty the second is. Three
fields are a file, a speaker and a text where no second field holds a space.
"""

from __future__ import annotations

from pathlib import Path

from csm.audio import SUFFIXES
from csm.data.faults import Fault
from csm.data.fields import Defaults
from csm.data.row import Row
from csm.data.sounds import Sounds, find_file
from csm.data.table import read_records
from csm.data.table_files import Record
from csm.data.text_file import read_lines

FOLDERS = ("wavs", "wav", "audio", "clips", ".")


def read_ljspeech(path: Path, defaults: Defaults) -> tuple[list[list[Row]], list[Fault]]:
    """Read a file of lines between bars; sounds are looked for in `wavs/` and its like, and beside the file.

    Raises:
        CsmError: the file is missing, is no UTF-8 text, or nobody is said to speak.
    """
    lines = [(number, line.split("|")) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    threes = [fields for _, fields in lines if len(fields) == 3]
    speakers = bool(threes) and all(len(fields[1].split()) == 1 and fields[1] != fields[2] for fields in threes)
    records = [_record(path, number, fields, speakers) for number, fields in lines]
    return read_records(records, path, defaults, Sounds(path.parent))


def _record(path: Path, line: int, fields: list[str], speakers: bool) -> Record | Fault:
    if len(fields) not in (2, 3):
        return Fault(path, f"has {len(fields)} fields between bars, not 2 or 3; the row is left out", line)
    values = {"audio": sound_of(path.parent, fields[0].strip()), "text": fields[1]}
    if len(fields) == 3:
        values["text"] = fields[2] if fields[2].strip() else "" if speakers else fields[1]
        if speakers:
            values["speaker"] = fields[1]
    return Record(values, path, line)


def sound_of(folder: Path, written: str) -> str:
    """The path of the sound that an id or a file name means; where there is none, as it was written."""
    for place in FOLDERS:
        for suffix in ("", *SUFFIXES):
            path = f"{place}/{written}{suffix}" if place != "." else f"{written}{suffix}"
            if written and find_file(folder, path):
                return path
    return written
