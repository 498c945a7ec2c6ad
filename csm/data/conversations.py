"""Conversations in JSON, the layout of csm-mlx: a list of conversations, each a list of turns.

A turn is `{"text": ..., "audio_path": ..., "speaker": N}`, or `speaker_id` for `speaker`; it may have the `weight` of its
loss, 1 where it has none. What is wrong with the file's form stops the work; a turn whose text is empty or whose sound is
missing is a fault, and the turn is left out.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from bisect import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.data.faults import Fault, printable
from csm.data.row import Row, clean_text, text_problem, weight_problem
from csm.errors import CsmError


def read_conversations(path: str | Path, default_speaker: int | None = None) -> tuple[list[list[Row]], list[Fault]]:
    """Read a JSON file of conversations.

    Args:
        path: the file. Audio paths in it may begin with `~`; relative ones start at the file's own folder.
        default_speaker: who speaks the turns that name no speaker.

    Returns:
        the conversations that have a turn left, and the faults of the turns left out.

    Raises:
        CsmError: the file is missing, is no JSON or has another form; a turn lacks a part, names two different
            speakers, or names none where there is no default.
    """
    text, document = _load(Path(path))
    if _is_flat(document):
        raise CsmError(f"{path} is a list of turns, not of conversations.", "Put each conversation's turns in [ ].")
    return _rows(Path(path), text, document, default_speaker)


def read_context(path: str | Path) -> list[Row]:
    """The turns of the one conversation in a file, `[{...}]` or `[[{...}]]`.

    Raises:
        CsmError: as `read_conversations`, and where a turn would have to be left out.
    """
    text, document = _load(Path(path))
    if _is_flat(document):
        text, document = f"[{text}]", [document]
    if len(document) != 1:
        raise CsmError(f"{path} holds {len(document)} conversations, but a context is one.", "Keep one of them.")
    conversations, faults = _rows(Path(path), text, document, None)
    if faults:
        raise CsmError(faults[0].text, "A context is used whole or not at all.")
    return conversations[0]


def _load(path: Path) -> tuple[str, list[Any]]:
    """The file's text without byte order mark, and the list in it."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise CsmError(f"{path} is not there." if missing else f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise CsmError(f"{path} is not UTF-8 text (byte {error.start + 1}).", "Save it as UTF-8.") from error
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(path, text, error) from error
    except RecursionError as error:
        raise CsmError(f"{path} is nested too deeply to be conversations.") from error
    except ValueError as error:  # a number of thousands of digits
        raise CsmError(f"{path} holds a number that cannot be read ({error}).") from error
    _refuse_other_forms(path, document)
    return text, document


def _invalid(path: Path, text: str, error: json.JSONDecodeError) -> CsmError:
    if not text.strip():
        return CsmError(f"{path} is an empty file.")
    at, message, hint = error.pos, f"{error.msg[:1].lower()}{error.msg[1:]}", "Mend it there and try again."
    before = text[: at + 1].rstrip() if text[at : at + 1] == "," else text[:at].rstrip()
    if before.endswith(",") and re.match(r"\s*[]}]", text[len(before) :]):
        at, message, hint = len(before) - 1, "a comma stands before a closing bracket", "Delete that comma."
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return CsmError(f"{path}, line {line}, column {column}, is not valid JSON: {message}.", hint)


def _refuse_other_forms(path: Path, document: Any) -> None:
    entries = document if isinstance(document, list) else [document]
    keys = {key for entry in entries if isinstance(entry, dict) for key in entry}
    form = '[[{"text", "audio_path", "speaker"}, ...], ...]'
    if keys & {"chosen", "rejected"}:
        raise CsmError(f"{path} is preference data (chosen and rejected), not conversations.", f"Write them as {form}.")
    if keys & {"segments", "preference"}:
        raise CsmError(
            f"{path} is preference data (segments and preference), not conversations.", f"Write them as {form}."
        )
    if not isinstance(document, list):
        raise CsmError(f"{path} is not a list of conversations.", f"Its form is {form}.")
    if not document:
        raise CsmError(f"{path} holds no conversations.")


def _is_flat(document: list[Any]) -> bool:
    return all(isinstance(entry, dict) for entry in document)


@dataclass(frozen=True)
class _Place:
    file: Path
    line: int
    conversation: int
    turn: int

    def error(self, problem: str, hint: str | None = None) -> CsmError:
        turn = f", turn {self.turn}" if self.turn else ""
        return CsmError(f"{self.file}, line {self.line}, conversation {self.conversation}{turn}, {problem}.", hint)

    def fault(self, problem: str) -> Fault:
        place = f"turn {self.turn} of conversation {self.conversation} is left out"
        return Fault(self.file, f"{problem}; {place}", self.line)


def _rows(path: Path, text: str, document: list[Any], speaker: int | None) -> tuple[list[list[Row]], list[Fault]]:
    conversations: list[list[Row]] = []
    faults: list[Fault] = []
    errors: list[CsmError] = []
    for place, turn in _turns(path, text, document):
        if place.turn <= 1:
            conversations.append([])
        try:
            row = _row(place, turn, speaker)
        except CsmError as error:
            errors.append(error)
        else:
            if isinstance(row, Fault):
                faults.append(row)
            else:
                conversations[-1].append(row)
    if errors:
        more = f"{len(errors) - 1} more such places follow." if len(errors) > 1 else ""
        raise CsmError(errors[0].message, f"{errors[0].hint or ''} {more}".strip() or None)
    return [conversation for conversation in conversations if conversation], faults


def _turns(path: Path, text: str, document: list[Any]) -> list[tuple[_Place, Any]]:
    """Every turn with its place; a conversation that is no list, or has no turns, is its own turn number 0."""
    newlines = [match.start() for match in re.finditer("\n", text)]
    turns = []
    for number, (conversation, at) in enumerate(zip(document, elements(text, text.index("[")), strict=True), 1):
        if not isinstance(conversation, list) or not conversation:
            turns.append((_Place(path, bisect(newlines, at) + 1, number, 0), conversation))
            continue
        for count, (turn, start) in enumerate(zip(conversation, elements(text, at), strict=True), 1):
            turns.append((_Place(path, bisect(newlines, start) + 1, number, count), turn))
    return turns


def elements(text: str, at: int) -> list[int]:
    """Where the elements begin of the array that opens at `at`; the text is known to be JSON."""
    decoder, starts = json.JSONDecoder(), []
    at = _next(text, at + 1)
    while text[at] != "]":
        starts.append(at)
        at = _next(text, decoder.raw_decode(text, at)[1])
        if text[at] == ",":
            at = _next(text, at + 1)
    return starts


def _next(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


def _row(place: _Place, turn: Any, default_speaker: int | None) -> Row | Fault:
    if not place.turn:
        raise place.error("has no turns" if turn == [] else "is not a list of turns")
    if not isinstance(turn, dict):
        raise place.error('is not of the form {"text", "audio_path", "speaker"}')
    for key in ("text", "audio_path"):
        if not isinstance(turn.get(key), str):
            raise place.error(f"has no {key}" if turn.get(key) is None else f"has a {key} that is not a string")
    speaker = _speaker(place, turn, default_speaker)
    weight = 1.0 if turn.get("weight") is None else turn["weight"]
    if wrong := weight_problem(weight):
        raise place.error(wrong, "1 is a turn like the others, 0 is context only.")
    text = clean_text(turn["text"])
    problem = text_problem(text)
    if problem:
        return place.fault(problem)
    written = turn["audio_path"]
    audio = _find(place.file.parent, written)
    if audio is None:
        return place.fault(f"names the sound file {printable(written) or '(empty)'}, which is not there")
    name = unicodedata.normalize("NFC", Path(os.path.normpath(written)).with_suffix("").as_posix())
    return Row(name, audio, text, speaker, place.file, place.line, weight=float(weight))


def _speaker(place: _Place, turn: dict[str, Any], default: int | None) -> int:
    named = {key: turn[key] for key in ("speaker", "speaker_id") if turn.get(key) is not None}
    for key, value in named.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise place.error(f"has a {key} that is not a whole number from 0")
    if len(set(named.values())) > 1:
        values = f"speaker {named['speaker']} and speaker_id {named['speaker_id']}"
        raise place.error(f"names two speakers, {values}", "Keep one of the two.")
    if not named and default is None:
        raise place.error(
            "names no speaker", 'Add "speaker" to every turn; for training, --speaker-id says it for all.'
        )
    return next(iter(named.values()), default)  # type: ignore[return-value]


def _find(folder: Path, written: str) -> Path | None:
    """The file that a path in the JSON means, however its accents are composed on disk."""
    for spelling in dict.fromkeys((written, *(unicodedata.normalize(form, written) for form in ("NFC", "NFD")))):
        try:
            spelling.encode()
            path = folder / os.path.expanduser(spelling)
        except ValueError:  # half a character or a NUL, which no name of a file holds
            return None
        if os.path.isfile(path):
            return path
    return None
