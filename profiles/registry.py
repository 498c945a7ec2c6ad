"""The registry: the voices of one file, found by id, name or speaker id.

Every change is one locked read-modify-write of the whole file; every look reads it anew, so two programs see each
other's changes. Meant for up to some ten thousand voices.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from tinydb import TinyDB, where
from tinydb.table import Table

from csm.errors import CsmError
from profiles.storage import AtomicStorage, locked
from profiles.voice import Voice, fold

SHIPPED_MODELS = ("csm-tiny",)  # named by their name instead of a path: they move with the installation

Voices = list[Voice]


def default_path() -> Path:
    """Where a user's voices are kept when no file is named: the user's data folder, by the system's custom."""
    from platformdirs import user_data_path

    return user_data_path("csm") / "voices.json"


class Registry:
    """The voices in the file at `path`; the file and its folder are made by the first voice."""

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()  # a link to the file must not be replaced by the file

    def create(self, name: str, speaker_id: int, description: str, model_path: str | Path, **details: Any) -> Voice:
        """Store a new voice, with its id and moment; relative model paths become absolute.

        Args:
            details: further fields of `Voice`: base, gender, age_range, accent, sampling, lineage, scores.

        Raises:
            CsmError: a value does not fit, the name is taken, the model is not there, or the file cannot be changed.
        """
        moment = _now()
        details = _with_lasting_base(details)
        voice = Voice(
            id=uuid4().hex,
            name=name,
            speaker_id=speaker_id,
            description=description,
            model_path=_lasting(model_path),
            created=moment,
            changed=moment,
            **details,
        )
        with locked(self.path):
            self._refuse_taken(voice)
            self._table().insert(voice.to_dict())
        return voice

    def update(self, voice_id: str, **changes: Any) -> Voice:
        """Change fields of the voice with this very id, such as its scores; a field's new value replaces the old one.

        Raises:
            CsmError: no voice has the id, or as `create`.
        """
        if "model_path" in changes:
            changes["model_path"] = _lasting(changes["model_path"])
        changes = _with_lasting_base(changes)
        with locked(self.path):
            old = next((voice for voice in self.list() if voice.id == voice_id), None)
            if old is None:
                raise self._unknown(voice_id)
            voice = replace(old, **changes, changed=max(_now(), old.changed))
            self._refuse_taken(voice)
            self._table().update(voice.to_dict(), where("id") == voice_id)
        return voice

    def find(self, key: str) -> Voice:
        """The voice that `key` means: its id, else its name in any case, else (all digits) its speaker id.

        Raises:
            CsmError: no voice is meant, and which are near; or several are, and which.
        """
        voices = self.list()
        found = [voice for voice in voices if voice.id == key] or [v for v in voices if fold(v.name) == fold(key)]
        if not found and key.isdecimal():
            found = [voice for voice in voices if voice.speaker_id == int(key)]
        if not found:
            raise self._unknown(key)
        if len(found) > 1:
            meant = ", ".join(f"{voice.name!r} (id {voice.id})" for voice in found)
            raise CsmError(f"{key} means {len(found)} voices: {meant}.", "Say which one by its name or its id.")
        return found[0]

    def list(self) -> Voices:
        """All voices, in the order of their making; none where there is no file yet.

        Raises:
            CsmError: the file is broken, two of its voices have one id, or a newer csm wrote it.
        """
        voices = []
        for row in self._table():
            try:
                voices.append(Voice.from_dict(row))
            except CsmError as error:
                raise CsmError(f"{self.path}, voice {row.doc_id}: {error.message}", error.hint) from error
        self._refuse_doubles(voices)
        return voices

    def _table(self) -> Table:
        return TinyDB(self.path, storage=AtomicStorage).table("voices")  # new each time: TinyDB's tables remember

    def _refuse_doubles(self, voices: Voices) -> None:
        first: dict[str, Voice] = {}
        for voice in voices:
            if voice.id in first:
                raise CsmError(
                    f"{self.path}: {first[voice.id].name!r} and {voice.name!r} have one id, {voice.id}.",
                    f"Give one of them another in the file, such as {uuid4().hex}.",
                )
            first[voice.id] = voice

    def _refuse_taken(self, voice: Voice) -> None:
        for other in self.list():
            if other.id != voice.id and fold(other.name) == fold(voice.name):
                raise CsmError(
                    f"There is a voice named {other.name!r} already (speaker {other.speaker_id}, id {other.id}).",
                    f"Choose another name, such as {voice.name + ' 2'!r}; upper and lower case make no difference.",
                )

    def _unknown(self, key: str) -> CsmError:
        voices = self.list()
        if not voices:
            return CsmError(f"There is no voice {key!r}: {self.path} holds none yet.", "csm voice create makes one.")
        names = {fold(voice.name): voice.name for voice in voices}
        near = [repr(names[name]) for name in difflib.get_close_matches(fold(key), names, n=3)]
        if key.isdecimal():
            near = [f"speaker {number}" for number in sorted({voice.speaker_id for voice in voices})[:10]]
        nearest = f" Near are: {', '.join(near)}." if near else ""
        return CsmError(f"There is no voice {key!r} in {self.path}.{nearest}", "csm voice list shows what there is.")


def _lasting(model_path: str | Path) -> str:
    """The path as every later working folder can use it; a run's folder stays the run's, so that it means its best."""
    if str(model_path) in SHIPPED_MODELS:
        return str(model_path)
    path = Path(os.path.abspath(Path(model_path).expanduser()))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(model_path)) and not path.parent.exists():
        return str(model_path)  # a hub id
    if not path.exists():
        shipped = " or ".join(SHIPPED_MODELS)
        raise CsmError(f"The model {path} is not there.", f"Name a model folder, a run, a weights file or {shipped}.")
    return str(path)


def _with_lasting_base(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "base": _lasting(values["base"])} if values.get("base") is not None else values


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
