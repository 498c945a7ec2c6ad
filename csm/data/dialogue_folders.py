"""Folders of conversations: each subfolder is one, its clips in natural order, `NNN_speakerK_words.wav` with `.txt`.

The first `speakerK` of a name counts. Sounds that lie beside the subfolders are passed over, as csm-mlx does; a folder
without subfolders of sounds is one conversation itself.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from csm.audio import SUFFIXES
from csm.data.faults import Fault
from csm.data.fields import Defaults
from csm.data.folders import files_in, read_folders
from csm.data.row import Row, natural_key
from csm.errors import CsmError

SPEAKER = re.compile(r"(?<![A-Za-z])speaker[-_ ]?(\d{1,9})(?!\d)", re.IGNORECASE)


def read_dialogues(path: Path, defaults: Defaults) -> tuple[list[list[Row]], list[Fault]]:
    """Read a folder of conversation folders.

    Returns:
        a conversation for each subfolder that has a turn left, in natural order, and the faults.

    Raises:
        CsmError: it is no folder, or holds no sounds.
    """
    if not path.is_dir():
        raise CsmError(f"{path} is not a folder." if path.exists() else f"{path} is not there.")
    conversations, faults = [], []
    places = sound_folders(path)
    if not places:
        raise CsmError(f"{path} holds no sound files (looked for {', '.join(SUFFIXES)} in it and in its subfolders).")
    for place in places:
        turns, found = _conversation(path, place, defaults)
        faults += found
        if turns:
            conversations.append(turns)
    return conversations, faults


def sound_folders(path: Path) -> list[Path]:
    """The subfolders, at any depth, with sounds or transcripts in them, in natural order; else the folder itself."""
    below = {file.parent for file in files_in(path) if file.suffix.lower() in (*SUFFIXES, ".txt")}
    return sorted(below - {path} or below, key=lambda place: natural_key(place.relative_to(path).as_posix()))


def is_dialogues(path: Path) -> bool:
    """Whether most of the sounds in a folder and its subfolders say in their names who speaks."""
    names = [file.stem for file in files_in(path) if file.suffix.lower() in SUFFIXES]
    return sum(SPEAKER.search(name) is not None for name in names) * 2 > len(names)


def _conversation(root: Path, place: Path, defaults: Defaults) -> tuple[list[Row], list[Fault]]:
    try:
        rows, faults = read_folders(place, place, 0, defaults.language)
    except CsmError as error:  # a folder with sounds alone, or transcripts alone
        return [], [Fault(place, error.message.removeprefix(f"{place} ").rstrip("."))]
    turns = []
    for row in (row for row in rows if row.audio.parent == place):
        said = SPEAKER.search(row.audio.stem)
        speaker = int(said[1]) if said else defaults.speaker
        if speaker is None:
            faults.append(Fault(row.audio, "has no speaker in its name, as in 001_speaker0_hello.wav"))
            continue
        turns.append(replace(row, name=(place / row.name).relative_to(root).as_posix(), speaker=speaker))
    return turns, [fault for fault in faults if fault.file.parent == place]
