"""A folder of sound files and a folder of transcripts, paired by relative path without suffix.

Files and folders whose name begins with a dot are passed over. Everything else that does not pair is a fault.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from pathlib import Path

from csm.audio import SUFFIXES
from csm.data.faults import Fault
from csm.data.row import Row, clean_text, natural_key, text_problem
from csm.errors import CsmError

TRANSCRIPT_SUFFIXES = (".txt",)


def read_folders(
    audio_dir: str | Path, transcript_dir: str | Path, speaker: int, language: str = "en"
) -> tuple[list[Row], list[Fault]]:
    """Pair `AUDIO/a/x.wav` with `TRANSCRIPTS/a/x.txt`, in subfolders too; both may be the same folder.

    Names pair whether they are written in NFC or NFD. Transcripts are UTF-8, with or without byte order mark.

    Args:
        audio_dir: holds the sound files (`csm.audio.SUFFIXES`).
        transcript_dir: holds a .txt for each.
        speaker: the number of the one who speaks them all.
        language: of all the texts.

    Returns:
        the rows in natural order of their names, and the faults of the files that make none.

    Raises:
        CsmError: a folder is missing, or holds no sound files, or no transcripts.
    """
    sounds, faults = _by_name(Path(audio_dir), SUFFIXES, "sound files")
    texts, text_faults = _by_name(Path(transcript_dir), TRANSCRIPT_SUFFIXES, "transcripts")
    faults += text_faults
    rows: list[Row] = []
    for name in sorted(sounds.keys() | texts.keys(), key=natural_key):
        pair = _pair(name, sounds.get(name, []), texts.get(name, []), (Path(audio_dir), Path(transcript_dir)))
        row = pair if isinstance(pair, Fault) else _row(name, *pair, speaker, language)
        if isinstance(row, Fault):
            faults.append(row)
        else:
            rows.append(row)
    return rows, faults


def _by_name(folder: Path, suffixes: tuple[str, ...], what: str) -> tuple[dict[str, list[Path]], list[Fault]]:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "is not there"
        raise CsmError(f"{folder} {problem}.", f"It should be the folder with the {what} ({', '.join(suffixes)}).")
    found: dict[str, list[Path]] = defaultdict(list)
    faults: list[Fault] = []
    for path in files_in(folder, faults):
        if path.suffix.lower() not in suffixes:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if any("\ud800" <= character <= "\udfff" for character in name):
            faults.append(Fault(path, "has a name that is not UTF-8; rename it"))
        else:
            found[unicodedata.normalize("NFC", name)].append(path)
    if not found and not faults:
        raise CsmError(f"{folder} holds no {what} (looked for {', '.join(suffixes)} in it and in its subfolders).")
    return found, faults


def files_in(folder: Path, faults: list[Fault] | None = None) -> list[Path]:
    """All files below the folder, linked folders included, each real folder once.

    Folders below it that cannot be read are added to `faults`; without such a list, and for the folder itself, OSError.
    """

    def unread(error: OSError) -> None:
        if faults is None or Path(error.filename) == folder:
            raise error
        faults.append(Fault(Path(error.filename), f"is a folder that cannot be read ({error.strerror})"))

    seen, files = set(), []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=unread):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return files


def _pair(name: str, sounds: list[Path], texts: list[Path], folders: tuple[Path, Path]) -> tuple[Path, Path] | Fault:
    for files in (sounds, texts):
        if len(files) > 1:
            others = ", ".join(str(file) for file in files[1:])
            return Fault(files[0], f"and {others} share one name, so which of them is meant is not known")
    if not texts:
        return Fault(sounds[0], f"has no transcript: {folders[1] / name}.txt is not there")
    if not sounds:
        return Fault(texts[0], f"has no sound file: {folders[0] / name} is not there as {', '.join(SUFFIXES)}")
    return sounds[0], texts[0]


def _row(name: str, sound: Path, transcript: Path, speaker: int, language: str) -> Row | Fault:
    try:
        text = clean_text(transcript.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        return Fault(transcript, f"is not UTF-8 text (byte {error.start + 1}); save it as UTF-8")
    except OSError as error:
        return Fault(transcript, f"cannot be read ({error.strerror})")
    problem = text_problem(text)
    if problem:
        return Fault(transcript, problem)
    return Row(name, sound, text, speaker, transcript, language=language)
