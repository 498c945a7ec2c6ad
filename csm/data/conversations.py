"""Conversations in JSON, the layout of csm-mlx: a list of conversations, each a list of turns.

A turn is `{"text": ..., "audio_path": ..., "speaker": N}`, or `speaker_id` for `speaker`; it may have the `weight` of its
loss, 1 where it has none, `language`, and `start` and `end` in seconds, which csm-mlx does not know. What is wrong with the
file's form stops the work; a turn whose text is empty or whose sound is missing is a fault, and the turn is left out.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.data import fields
from csm.data.faults import Fault
from csm.data.fields import Defaults, WrongField
from csm.data.json_file import Lines, elements, load_json
from csm.data.remote import write_whole
from csm.data.row import Row, clean_text, text_problem, weight_problem
from csm.data.sounds import Sounds, sound_name
from csm.errors import CsmError


def read_conversations(
    path: str | Path, default_speaker: int | None = None, language: str = "en"
) -> tuple[list[list[Row]], list[Fault]]:
    """Read a JSON file of conversations.

    Args:
        path: the file. Audio paths in it may begin with `~`; relative ones start at the file's own folder.
        default_speaker: who speaks the turns that name no speaker.
        language: of the turns that name none.

    Returns:
        the conversations that have a turn left, and the faults of the turns left out.

    Raises:
        CsmError: the file is missing, is no JSON or has another form; a turn lacks a part, names two different
            speakers, or names none where there is no default.
    """
    text, document = _load(Path(path))
    if _is_flat(document):
        raise CsmError(f"{path} is a list of turns, not of conversations.", "Put each conversation's turns in [ ].")
    return _rows(Path(path), text, document, Defaults(default_speaker, language))


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
    conversations, faults = _rows(Path(path), text, document, Defaults())
    if faults:
        raise CsmError(faults[0].text, "A context is used whole or not at all.")
    return conversations[0]


def write_conversations(path: Path, conversations: list[list[Row]]) -> None:
    """Write rows of whole files as `read_conversations` and csm-mlx read them; sounds by their absolute paths.

    `language` stands beside the keys of csm-mlx where it is not English.

    Raises:
        CsmError: a sound's name is not UTF-8.
    """
    document = [[_turn(row) for row in conversation] for conversation in conversations]
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise CsmError(f"{path} was not written: a sound has a name that is not UTF-8.", "Rename it.") from error
    write_whole(path, [text, b"\n"])


def _turn(row: Row) -> dict[str, Any]:
    assert row.start is None, "csm-mlx names whole files"
    assert row.end is None, "csm-mlx names whole files"
    turn = {"text": row.text, "audio_path": os.path.abspath(row.audio), "speaker": row.speaker}
    return turn if row.language == "en" else {**turn, "language": row.language}


def _load(path: Path) -> tuple[str, list[Any]]:
    """The file's text without byte order mark, and the list in it."""
    text, document = load_json(path)
    _refuse_other_forms(path, document)
    return text, document


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


def _rows(path: Path, text: str, document: list[Any], defaults: Defaults) -> tuple[list[list[Row]], list[Fault]]:
    conversations: list[list[Row]] = []
    faults: list[Fault] = []
    errors: list[CsmError] = []
    turns, sounds = _turns(path, text, document), Sounds(path.parent)
    sounds.fetch_ahead(turn.get("audio_path") for _, turn in turns if isinstance(turn, dict))
    for place, turn in turns:
        if place.turn <= 1:
            conversations.append([])
        try:
            row = _row(place, turn, defaults, sounds)
        except CsmError as error:
            errors.append(error)
        else:
            if isinstance(row, Fault):
                faults.append(row)
            else:
                conversations[-1].append(row)
    if errors:
        more = {1: "", 2: "1 more such place follows."}.get(len(errors), f"{len(errors) - 1} more such places follow.")
        raise CsmError(errors[0].message, f"{errors[0].hint or ''} {more}".strip() or None)
    return [conversation for conversation in conversations if conversation], faults


def _turns(path: Path, text: str, document: list[Any]) -> list[tuple[_Place, Any]]:
    """Every turn with its place; a conversation that is no list, or has no turns, is its own turn number 0."""
    lines, turns = Lines(text), []
    for number, (conversation, at) in enumerate(zip(document, elements(text, text.index("[")), strict=True), 1):
        if not isinstance(conversation, list) or not conversation:
            turns.append((_Place(path, lines[at], number, 0), conversation))
            continue
        for count, (turn, start) in enumerate(zip(conversation, elements(text, at), strict=True), 1):
            turns.append((_Place(path, lines[start], number, count), turn))
    return turns


def _row(place: _Place, turn: Any, defaults: Defaults, sounds: Sounds) -> Row | Fault:
    if not place.turn:
        raise place.error("has no turns" if turn == [] else "is not a list of turns")
    if not isinstance(turn, dict):
        raise place.error('is not of the form {"text", "audio_path", "speaker"}')
    for key in ("text", "audio_path"):
        if not isinstance(turn.get(key), str):
            raise place.error(f"has no {key}" if turn.get(key) is None else f"has a {key} that is not a string")
    speaker = _speaker(place, turn, defaults.speaker)
    weight = 1.0 if turn.get("weight") is None else turn["weight"]
    if wrong := weight_problem(weight):
        raise place.error(wrong, "1 is a turn like the others, 0 is context only.")
    text = clean_text(turn["text"])
    problem = text_problem(text)
    if problem:
        return place.fault(problem)
    try:
        start, end = fields.part(turn)
        language = fields.language(turn, defaults.language)
        audio = sounds.find(turn["audio_path"])
    except WrongField as error:
        return place.fault(str(error))
    name = sound_name(turn["audio_path"], audio)
    return Row(name, audio, text, speaker, place.file, place.line, start, end, language, float(weight))


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
