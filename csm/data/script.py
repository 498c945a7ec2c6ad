"""A dialogue script: a text file of `[1]: words` lines, beside numbered clips. The script is one conversation.

The number in brackets is the speaker; where the lines are numbered 1, 2, 3, ... up to the last of three or more, it is
the line's own number, and the speaker is to be said. A line's clip is the sound in the script's folder, or in a folder
`audio/`, `wavs/` or `clips/` beside it, whose name begins or ends with the line's place in the script, counted from 1.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from csm.audio import SUFFIXES
from csm.data.faults import Fault
from csm.data.fields import Defaults
from csm.data.row import Row, clean_text, text_problem
from csm.data.text_file import read_lines
from csm.errors import CsmError

LINE = re.compile(r"\s*\[\s*(\d{1,9})\s*\]\s*:?\s*(.*)")
FOLDERS = (".", "audio", "wavs", "clips")


def is_script(line: str) -> bool:
    """Whether a line has the form of a script's."""
    return re.match(r"\s*\[\s*\d{1,9}\s*\]\s*:", line) is not None


def read_script(path: Path, defaults: Defaults) -> tuple[list[list[Row]], list[Fault]]:
    """Read a script; lines without a clip, and clips without a line, are faults.

    Raises:
        CsmError: the file is missing or no UTF-8 text, holds no lines, has no numbered clips beside it, or nobody is
            said to speak.
    """
    faults, lines = [], []
    for number, text in enumerate(read_lines(path), 1):
        if match := LINE.fullmatch(text):
            lines.append((number, int(match[1]), clean_text(match[2])))
        elif text.strip():
            faults.append(Fault(path, "is no line of a script, as [1]: words", number))
    if not lines:
        raise CsmError(f"{path} holds no lines of a script.", "Its form is [1]: words, a line for each turn.")
    clips = _numbered(path)
    counted = [said for _, said, _ in lines] == list(range(1, len(lines) + 1)) and len(lines) > 2
    if counted and defaults.speaker is None:
        raise CsmError(f"{path} numbers its lines and does not say who speaks.", "Say it with --speaker-id.")
    rows: list[Row] = []
    for place, (number, said, text) in enumerate(lines, 1):
        row = _row(path, number, text, clips.pop(place, []), (defaults.speaker or 0) if counted else said, defaults)
        (faults if isinstance(row, Fault) else rows).append(row)  # type: ignore[arg-type]
    faults += [Fault(clip, f"has no line in {path}, which has {len(lines)}") for few in clips.values() for clip in few]
    return [rows] if rows else [], faults


def _row(path: Path, line: int, text: str, clips: list[Path], speaker: int, defaults: Defaults) -> Row | Fault:
    if problem := text_problem(text):
        return Fault(path, f"{problem}; the turn is left out", line)
    if not clips:
        return Fault(path, "has no clip with its number; the turn is left out", line)
    if len(clips) > 1:
        return Fault(path, f"has several clips, {', '.join(clip.name for clip in clips)}; the turn is left out", line)
    name = clips[0].relative_to(path.parent).with_suffix("").as_posix()
    return Row(name, clips[0], text, speaker, path, line, language=defaults.language)


def _numbered(path: Path) -> dict[int, list[Path]]:
    """The clips by the number that their names begin or end with."""
    for place in FOLDERS:
        folder = path.parent / place
        if not folder.is_dir():
            continue
        found: dict[int, list[Path]] = defaultdict(list)
        for file in sorted(folder.iterdir()):
            number = re.match(r"\d{1,9}(?!\d)", file.stem) or re.search(r"(?<!\d)\d{1,9}$", file.stem)
            if number and file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                found[int(number[0])].append(file)
        if found:
            return dict(found)
    raise CsmError(
        f"{path} has no numbered clips beside it.", "They are called 1.wav, 002_hello.wav, line_3.wav or alike."
    )
