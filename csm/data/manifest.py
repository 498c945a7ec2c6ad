"""Every data layout in: files and folders that users name become conversations of rows, and faults.

The layouts and how each is told from the others are in `csm.data.layout`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from csm.data.codes_folder import is_codes_folder, read_rows
from csm.data.conversations import read_conversations
from csm.data.dialogue_folders import read_dialogues
from csm.data.faults import Fault, require_usable
from csm.data.fields import Defaults
from csm.data.folders import read_folders
from csm.data.hugging_face import read_hugging_face
from csm.data.layout import FORMATS, layout_of
from csm.data.ljspeech import read_ljspeech
from csm.data.row import Row
from csm.data.script import read_script
from csm.data.speaker_names import give_to, number_speakers
from csm.data.speakers_file import Entry, read_speakers
from csm.data.table import read_table
from csm.errors import CsmError

Part = tuple[list[list[Row]], list[Fault]]


def read_data(
    paths: Sequence[str | Path] = (),
    audio_dir: str | Path | None = None,
    transcript_dir: str | Path | None = None,
    speaker: int | None = None,
    *,
    format: str | None = None,
    language: str = "en",
) -> Part:
    """Read what `--data-path`, or `--audio-dir` with `--transcript-dir`, names.

    Args:
        paths: files and folders in any layout, mixed; `hf://owner/name` for a data set on the hub. A clip that is part
            of no dialogue is a conversation of one turn.
        audio_dir: the folder of the sound files, in place of `paths`.
        transcript_dir: the folder of their transcripts.
        speaker: who speaks where the data does not say; data that says wins.
        format: one of `csm.data.layout.FORMATS`, which all `paths` have; None finds each one's out.
        language: BCP 47 tag of the rows that name none.

    Returns:
        the conversations in the order of `paths`, and the faults of what is left out.

    Raises:
        CsmError: nothing or too much is named, a path is missing or of another kind, or nothing in it can be used.
    """
    if format is not None and format not in FORMATS:
        raise CsmError(f"There is no format {format!r}.", f"Known are {', '.join(FORMATS)}.")
    conversations, faults = number_speakers(
        *_read(paths, audio_dir, transcript_dir, Defaults(speaker, language), format), speaker
    )
    require_usable(len(conversations), faults)
    return conversations, faults


def _read(
    paths: Sequence[str | Path],
    audio_dir: str | Path | None,
    transcript_dir: str | Path | None,
    defaults: Defaults,
    format: str | None,
) -> Part:
    if bool(paths) == bool(audio_dir or transcript_dir):
        problem = "Both --data-path and --audio-dir name data." if paths else "No data is named."
        raise CsmError(problem, "Give either --data-path, or --audio-dir with --transcript-dir.")
    if paths:
        parts = [_read_path(os.path.expanduser(path), defaults, format) for path in paths]
    elif audio_dir and transcript_dir:
        if format not in (None, "folders"):
            raise CsmError(
                f"--audio-dir with --transcript-dir is the format folders, not {format}.", "Leave --format out."
            )
        parts = [_read_pair(Path(audio_dir), Path(transcript_dir), defaults)]
    else:
        given, missing = ("--audio-dir", "--transcript-dir") if audio_dir else ("--transcript-dir", "--audio-dir")
        raise CsmError(f"{given} is given without {missing}.", "They may be the same folder.")
    return [conversation for part, _ in parts for conversation in part], [
        fault for _, found in parts for fault in found
    ]


def _read_path(written: str, defaults: Defaults, format: str | None) -> Part:
    if not written:
        raise CsmError("A path of the data is empty.", "Is a variable of the shell not set?")
    if is_codes_folder(Path(written)):
        return read_rows(Path(written)), []
    layout, path = layout_of(written, format)
    match layout:
        case "conversations":
            return read_conversations(path, defaults.speaker, defaults.language)
        case "folders":
            audio, transcripts = path / "audio", path / "transcripts"
            apart = audio.is_dir() and transcripts.is_dir()
            return _read_pair(*((audio, transcripts) if apart else (path, path)), defaults)
        case "dialogues":
            return read_dialogues(path, defaults)
        case "table" | "voxcpm":
            return read_table(path, defaults)
        case "ljspeech":
            return read_ljspeech(path, defaults)
        case "script":
            return read_script(path, defaults)
        case "speakers":
            return read_speakers(path, lambda entry: _read_entry(entry, defaults))
        case _:
            return read_hugging_face(written, defaults)


def _read_entry(entry: Entry, defaults: Defaults) -> Part:
    for one in entry.paths:
        if layout_of(one, entry.format)[0] == "speakers":
            raise CsmError(f"{one} is a speakers file itself.", "Name the data of one speaker.")
    own = Defaults(entry.speaker, entry.language or defaults.language)
    conversations, faults = _read(entry.paths, entry.audio_dir, entry.transcript_dir, own, entry.format)
    return give_to(entry.speaker, conversations), faults


def _read_pair(audio: Path, transcripts: Path, defaults: Defaults) -> Part:
    if defaults.speaker is None:
        raise CsmError(f"{audio} does not say who speaks.", "Say it with --speaker-id.")
    rows, faults = read_folders(audio, transcripts, defaults.speaker, defaults.language)
    return [[row] for row in rows], faults
