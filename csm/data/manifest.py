"""Every data layout in: files and folders that users name become conversations of rows, and faults.

Read now: JSON of conversations, a folder with `audio/` and `transcripts/`, a folder with .txt beside the sound files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from csm.data.codes_folder import is_codes_folder, read_rows
from csm.data.conversations import read_conversations
from csm.data.faults import Fault, require_usable
from csm.data.folders import read_folders
from csm.data.row import Row
from csm.errors import CsmError


def read_data(
    paths: Sequence[str | Path] = (),
    audio_dir: str | Path | None = None,
    transcript_dir: str | Path | None = None,
    speaker: int | None = None,
) -> tuple[list[list[Row]], list[Fault]]:
    """Read what `--data-path`, or `--audio-dir` with `--transcript-dir`, names.

    Args:
        paths: JSON files and folders; a clip of a folder is a conversation of one turn.
        audio_dir: the folder of the sound files, in place of `paths`.
        transcript_dir: the folder of their transcripts.
        speaker: who speaks where the data does not say; data that says wins.

    Returns:
        the conversations in the order of `paths`, and the faults of what is left out.

    Raises:
        CsmError: nothing or too much is named, a path is missing or of another kind, or nothing in it can be used.
    """
    if bool(paths) == bool(audio_dir or transcript_dir):
        problem = "Both --data-path and --audio-dir name data." if paths else "No data is named."
        raise CsmError(problem, "Give either --data-path, or --audio-dir with --transcript-dir.")
    if paths:
        parts = [_read_path(Path(os.path.expanduser(path)), speaker) for path in paths]
    elif audio_dir and transcript_dir:
        parts = [_read_pair(Path(audio_dir), Path(transcript_dir), speaker)]
    else:
        given, missing = ("--audio-dir", "--transcript-dir") if audio_dir else ("--transcript-dir", "--audio-dir")
        raise CsmError(f"{given} is given without {missing}.", "They may be the same folder.")
    conversations = [conversation for part, _ in parts for conversation in part]
    faults = [fault for _, found in parts for fault in found]
    require_usable(len(conversations), faults)
    return conversations, faults


def _read_path(path: Path, speaker: int | None) -> tuple[list[list[Row]], list[Fault]]:
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise CsmError(f"{path} is a pickle, which can run code and is never read.", "Export it as JSON.")
    if is_codes_folder(path):
        return read_rows(path), []
    if path.is_dir():
        audio, transcripts = path / "audio", path / "transcripts"
        apart = audio.is_dir() and transcripts.is_dir()
        return _read_pair(audio, transcripts, speaker) if apart else _read_pair(path, path, speaker)
    if path.suffix.lower() == ".json" or not path.exists():
        return read_conversations(path, speaker)
    raise CsmError(f"{path} is no data that can be read.", "Name a .json file of conversations, or a folder.")


def _read_pair(audio: Path, transcripts: Path, speaker: int | None) -> tuple[list[list[Row]], list[Fault]]:
    if speaker is None:
        raise CsmError(f"{audio} does not say who speaks.", "Say it with --speaker-id.")
    rows, faults = read_folders(audio, transcripts, speaker)
    return [[row] for row in rows], faults
