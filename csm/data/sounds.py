"""From what a layout writes for a sound to the file that it means: a path, an address, or the bytes themselves."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from csm.data.faults import printable
from csm.data.fields import WrongField
from csm.data.remote import Remote, is_remote, write_whole

FETCHERS = 8


class Sounds:
    """The sounds of one manifest.

    Args:
        folder: where relative paths begin; `~` is the home folder.
        remote: fetches addresses such as `https://...` or `s3://...`, and names the cache folder, in which bytes that
            stand in a table become files too.
    """

    def __init__(self, folder: Path, remote: Remote | None = None):
        self.folder, self.remote = folder, remote or Remote()

    def find(self, written: Any) -> Path:
        """The file of a path, an address, bytes, or a mapping with `bytes` and `path` as Hugging Face's tables hold.

        Raises:
            WrongField: there is none.
        """
        if isinstance(written, Mapping):
            data, path = written.get("bytes"), written.get("path")
            if isinstance(data, bytes):
                return self._store(data, str(path or ""))
            written = path
        if isinstance(written, bytes):
            return self._store(written, "")
        if not isinstance(written, str):
            raise WrongField("has a sound that is no path, address or bytes")
        if is_remote(written):
            return self.remote.fetch(written)
        path = find_file(self.folder, written)
        if path is None:
            raise WrongField(f"names the sound file {printable(written)[:300] or '(empty)'}, which is not there")
        return path

    def fetch_ahead(self, written: Iterable[Any]) -> None:
        """Fetch the addresses among these, several at a time; what goes wrong is told when each is asked for."""
        urls = list(dict.fromkeys(one for one in written if isinstance(one, str) and is_remote(one)))
        if len(urls) > 1:
            with ThreadPoolExecutor(FETCHERS) as pool:
                list(pool.map(self.remote.try_fetch, urls))

    def _store(self, data: bytes, name: str) -> Path:
        """The bytes as a file in the cache, under their own hash."""
        if not data:
            raise WrongField("has a sound of no bytes")
        suffix = PurePosixPath(name).suffix.lower()
        suffix = suffix if suffix.isascii() and suffix[1:].isalnum() and len(suffix) < 6 else ""
        digest = hashlib.sha256(data).hexdigest()
        path = self.remote.cache / "embedded" / digest[:2] / f"{digest}{suffix}"
        if not (path.is_file() and path.stat().st_size == len(data)):
            write_whole(path, [data])
        return path


def find_file(folder: Path, written: str) -> Path | None:
    """The file of a path, however its accents are composed on disk; None where there is none."""
    for spelling in dict.fromkeys((written, *(unicodedata.normalize(form, written) for form in ("NFC", "NFD")))):
        try:
            spelling.encode()
            path = folder / os.path.expanduser(spelling)
        except ValueError:  # half a character or a NUL, which no name of a file holds
            return None
        if os.path.isfile(path):
            return path
    return None


def sound_name(written: Any, audio: Path) -> str:
    """A row's name: the path as written, without suffix, in NFC; of bytes their own path or the cached file's name."""
    path = written.get("path") if isinstance(written, Mapping) else written
    text = path if isinstance(path, str) and path else audio.name
    if is_remote(text):
        text = text.split("?", 1)[0]  # what follows may be a key
    else:
        text = Path(os.path.normpath(text)).with_suffix("").as_posix()
    return unicodedata.normalize("NFC", text)
