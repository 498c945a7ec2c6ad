"""A page on which a person corrects the texts of prepared clips by ear, and the corrections on their way back.

The page stands in the prepared folder and needs nothing but a browser. It keeps what is typed in the browser's own store,
and saves `{"schema_version": 1, "clips": {NAME: {"text": ...} or {"drop": true}}}`.
"""

from __future__ import annotations

import html
import json
import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from csm.data.journal import Journal, Prepared, read_clips, write_text
from csm.data.row import clean_text, natural_key, text_problem
from csm.errors import CsmError

PAGE = "review.html"
BY_HAND = "dropped by hand"


def write_page(folder: Path, language: str = "en") -> Path:
    """Write the page of all clips that a prepared folder's journal names; returns its path."""
    clips = sorted(read_clips(folder), key=lambda clip: natural_key(clip.name))
    kept = [_shown(clip) for clip in clips if not clip.reason]
    dropped = [_shown(clip) for clip in clips if clip.reason]
    title = folder.resolve().name
    data = {"folder": title, "language": language, "clips": kept, "dropped": dropped}
    template = files("csm").joinpath("assets/review.html").read_text(encoding="utf-8")
    inline = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # no text can end the script
    page = template.replace("{{TITLE}}", html.escape(title)).replace("{{LANGUAGE}}", html.escape(language))
    write_text(folder / PAGE, page.replace("{{DATA}}", inline))
    return folder / PAGE


def _shown(clip: Prepared) -> dict[str, object]:
    return {
        "name": clip.name,
        "text": clip.text,
        "recording": Path(clip.recording).name,
        "start": clip.start,
        "seconds": round(clip.seconds, 2),
        "reason": clip.reason,
        "sure": clip.measures.get("log_probability"),
    }


def apply_corrections(corrections: Path, folder: Path) -> tuple[int, int]:
    """Write corrected texts into a prepared folder; clips to be dropped move to its `dropped/`.

    Everything is checked before anything is written, so a faulty file changes nothing; applying it twice changes nothing
    more.

    Returns:
        how many texts were changed, and how many clips were dropped.

    Raises:
        CsmError: the file or the folder is not what it should be, a clip is unknown, or a text cannot be used.
    """
    journal = Journal(folder)
    if not journal.clips:
        raise CsmError(f"{folder} holds no prepared clips.", "Name the folder that prepare wrote.")
    changes = [_change(journal, corrections, name, entry) for name, entry in _read(corrections).items()]
    texts = drops = 0
    for clip in (clip for clip in changes if clip is not None):
        if clip.reason:
            _move_aside(folder, clip.name)
            drops += 1
        else:
            write_text(folder / "transcripts" / f"{clip.name}.txt", clip.text + "\n")
            texts += 1
        journal.add(clip)
    return texts, drops


def _read(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise CsmError(f"{path} is not there." if missing else f"{path} cannot be read ({error.strerror}).") from error
    except json.JSONDecodeError as error:
        raise CsmError(f"{path}, line {error.lineno}, is not valid JSON: {error.msg}.") from error
    except ValueError as error:
        raise CsmError(f"{path} is not UTF-8 text.") from error
    clips = document.get("clips") if isinstance(document, dict) else None
    if not isinstance(clips, dict):
        raise CsmError(f"{path} holds no corrections.", "Save them with the button on the review page.")
    return clips


def _change(journal: Journal, corrections: Path, name: str, entry: object) -> Prepared | None:
    """The clip as it should be; None where it is so already."""
    clip = journal.clips.get(name)
    if clip is None:
        raise CsmError(
            f"{corrections} corrects {name}, which {journal.folder} does not hold.", "Is it another folder's?"
        )
    if isinstance(entry, dict) and entry.get("drop") is True:
        return None if clip.reason else replace(clip, reason=BY_HAND)
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise CsmError(f'{corrections} says neither "text" nor "drop" of {name}.')
    text = clean_text(entry["text"])
    if problem := text_problem(text):
        raise CsmError(f"{corrections}: {name} {problem}.", "Drop the clip, or write what is said in it.")
    if clip.reason:
        raise CsmError(f"{corrections} corrects {name}, which was dropped ({clip.reason}).")
    return None if text == clip.text else replace(clip, text=text)


def _move_aside(folder: Path, name: str) -> None:
    for kind, suffix in (("transcripts", ".txt"), ("audio", ".wav")):
        source, target = folder / kind / f"{name}{suffix}", folder / "dropped" / kind / f"{name}{suffix}"
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
