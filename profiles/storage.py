"""How the registry's file is kept: one writer at a time, written beside and swapped in, the state before as a backup.

`voices.json` holds `schema_version` and TinyDB's table of voices; `voices.json.bak` is the file as it was before the
last change; `voices.json.lock` is empty and stays. A process killed at any moment leaves the old file or the new one
(and perhaps a `.new` beside it, which the next change overwrites). Limit: the lock is advisory, and on network file
systems as good as theirs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from tinydb import Storage

from csm.errors import CsmError

SCHEMA_VERSION = 1
_PATIENCE_SECONDS = 30.0

Tables = dict[str, dict[str, Any]]


@contextmanager
def locked(path: Path, patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Keep other writers of `path` out during a read-modify-write; the parent folder is made, for its owner only.

    Raises:
        CsmError: another process has held the lock for `patience_seconds`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with filelock.FileLock(_beside(path, ".lock"), timeout=patience_seconds):
            yield
    except filelock.Timeout as error:
        raise CsmError(
            f"{path} has been in use by another process for {patience_seconds:g} s.", "Try again when that one is done."
        ) from error


class AtomicStorage(Storage):
    """TinyDB's storage for one JSON file whose content is always whole. Whoever writes holds `locked(path)`."""

    def __init__(self, path: Path):
        self.path = path
        self.backup = _beside(path, ".bak")

    def read(self) -> Tables | None:
        """The tables of the file, or None where there is no file yet.

        Raises:
            CsmError: the file is broken (the hint says how the backup is put back), or of a newer schema.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _parse(content, self.path)
        except ValueError as error:
            raise CsmError(f"{self.path} is broken: {error}.", self._way_back()) from error

    def write(self, data: Tables) -> None:
        """Put the tables in place of the file's, and the file as it was in the backup's place.

        Raises:
            CsmError: a value has no JSON form, the disk would not take it, or the file in place is broken. The file
                then is what it was.
        """
        stored = {"schema_version": SCHEMA_VERSION, **data}
        try:
            content = (json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        except (TypeError, ValueError) as error:
            raise CsmError(f"{self.path} was not changed: a value cannot be stored as JSON ({error}).") from error
        is_there = self.read() is not None  # and whole: a broken file is neither replaced nor made the backup
        try:
            if is_there:
                _swap_in(self.backup, self.path.read_bytes(), like=self.path)
            _swap_in(self.path, content, like=self.path if is_there else None)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CsmError(f"{self.path} was not changed: {reason}.", "Put that right, then try again.") from error
        _sync_folder(self.path.parent)

    def _way_back(self) -> str:
        try:
            voices = len(_parse(self.backup.read_bytes(), self.backup).get("voices", {}))
        except FileNotFoundError:
            return "No backup stands beside it: mend the file by hand, or move it away to begin anew."
        except (ValueError, CsmError):
            return f"The backup {self.backup} cannot be read either: mend one of them by hand, or move both away."
        kept = f"The state before the last change ({voices} voice{'s' * (voices != 1)})"
        return f"{kept} comes back with: cp {shlex.quote(str(self.backup))} {shlex.quote(str(self.path))}"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _swap_in(path: Path, content: bytes, like: Path | None) -> None:
    """Make `content` the file's, all at once; with the access rights of `like`, else for its owner only."""
    beside = _beside(path, ".new")
    beside.unlink(missing_ok=True)
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            if like:
                shutil.copymode(like, beside)
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere folders cannot be opened; there a swap lasts once the system has written it out
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parse(content: bytes, path: Path) -> Tables:
    """The tables in a file's bytes. Raises ValueError, with the fault's position, or CsmError for a newer schema."""
    if not content.strip():
        raise ValueError("it is empty, cut off before line 1 column 1")
    data = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    version = data.pop("schema_version", None) if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError("it has no schema_version, so it is no registry of voices")
    if version > SCHEMA_VERSION:
        raise CsmError(
            f"{path} has schema version {version}, and this csm knows version {SCHEMA_VERSION}.",
            "Upgrade csm to use it; the file is left as it is.",
        )
    for name, table in data.items():
        if not isinstance(table, dict) or not all(key.isdecimal() and isinstance(table[key], dict) for key in table):
            raise ValueError(f"{name!r} is no table of numbered records")
    return data


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one record")
    return table


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number")
