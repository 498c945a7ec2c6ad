"""A speakers file, JSON or YAML: several speakers in one run, each with data and a number.

    speakers:
      - {name: Ann, speaker_id: 0, audio_dir: ann/audio, transcript_dir: ann/transcripts}
      - {name: Ben, speaker_id: 1, data_path: [ben/one, ben/two.csv], language: de}

A bare list of such entries is read too, and a mapping from names to them. Paths start at the file's folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.data.faults import Fault
from csm.data.fields import is_missing
from csm.data.json_file import load_json
from csm.data.row import Row
from csm.data.text_file import read_text
from csm.errors import CsmError

KEYS = ("name", "speaker_id", "data_path", "audio_dir", "transcript_dir", "language", "format")
DATA = {"data_path", "audio_dir"}


@dataclass(frozen=True)
class Entry:
    """One speaker's data, as `read_data` takes them."""

    paths: tuple[str, ...]
    audio_dir: Path | None
    transcript_dir: Path | None
    speaker: int
    language: str | None
    format: str | None


Read = Callable[[Entry], tuple[list[list[Row]], list[Fault]]]


def is_speakers(document: Any) -> bool:
    """Whether what a file says are speakers with their data."""
    entries = _listed(document)
    return bool(entries) and all(isinstance(one, dict) and DATA & set(_keys(one)) for _, one in entries)


def read_speakers(path: Path, read: Read) -> tuple[list[list[Row]], list[Fault]]:
    """Read the data of every speaker.

    Raises:
        CsmError: the file cannot be read or has another form; an entry lacks something or has an unknown key; two
            entries have one number; and what `read` raises, with the speaker's name.
    """
    document = _load(path)
    if not is_speakers(document):
        raise CsmError(
            f"{path} lists no speakers.", "Each needs a speaker_id, and audio_dir with transcript_dir, or data_path."
        )
    entries = [(name, _entry(path, name, raw)) for name, raw in _listed(document)]
    numbers = [entry.speaker for _, entry in entries]
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise CsmError(f"{path} gives two speakers the number {twice[0]}.", "Give each its own speaker_id.")
    conversations, faults = [], []
    for name, entry in entries:
        try:
            part, found = read(entry)
        except CsmError as error:
            raise CsmError(f"{path}, speaker {name}: {error.message}", error.hint) from error
        conversations += part
        faults += found
    return conversations, faults


def _load(path: Path) -> Any:
    """What a JSON or YAML file says.

    Raises:
        CsmError: it cannot be read; the place is named.
    """
    if path.suffix.lower() == ".json":
        return load_json(path)[1]
    import yaml

    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CsmError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}.") from error


def _listed(document: Any) -> list[tuple[str, Any]]:
    """Names and entries."""
    if isinstance(document, dict) and "speakers" in document:
        document = document["speakers"]
    if isinstance(document, dict):
        return [(str(name), entry) for name, entry in document.items()]
    if not isinstance(document, list):
        return []
    names = [one.get("name") if isinstance(one, dict) else None for one in document]
    return [(str(name or number), one) for number, (name, one) in enumerate(zip(names, document, strict=True), 1)]


def _keys(raw: dict[Any, Any]) -> dict[str, Any]:
    spelled = {"id": "speaker_id", "speaker": "speaker_id", "data_paths": "data_path"}
    keys = {str(key).replace("-", "_"): value for key, value in raw.items() if not is_missing(value)}
    return {spelled.get(key, key): value for key, value in keys.items()}


def _entry(path: Path, name: str, raw: dict[Any, Any]) -> Entry:
    place, values = f"{path}, speaker {name}", _keys(raw)
    if unknown := [key for key in values if key not in KEYS]:
        raise CsmError(f"{place}: unknown key {unknown[0]!r}.", f"Known are {', '.join(KEYS)}.")
    number = values.get("speaker_id")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise CsmError(f"{place} has no speaker_id that is a whole number from 0.")
    if ("data_path" in values) == bool({"audio_dir", "transcript_dir"} & set(values)):
        raise CsmError(f"{place} needs either data_path, or audio_dir with transcript_dir.")
    paths = values.get("data_path", [])
    whole = [_whole(path.parent, one) for one in (paths if isinstance(paths, list) else [paths])]
    folders = [
        Path(_whole(path.parent, values[key])) if key in values else None for key in ("audio_dir", "transcript_dir")
    ]
    language, form = (None if is_missing(values.get(key)) else str(values[key]) for key in ("language", "format"))
    return Entry(tuple(whole), folders[0], folders[1], number, language, form)


def _whole(folder: Path, written: Any) -> str:
    text = os.path.expanduser(str(written))
    return text if "://" in text else str(folder / text)
