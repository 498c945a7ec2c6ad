"""Sounds behind addresses, fetched once into the user's cache folder: `https://`, and what fsspec knows (`s3://`, ...).

A file is kept under its address and the entity tag (or date, or size) that the server gives it; the server is asked
each time whether that still holds. Files appear whole: what is cut off, too large or too slow leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import mimetypes
import os
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from csm.data.fields import WrongField
from csm.data.patience import Unanswered, in_time

PIECE = 1 << 18
GIVE_UP_AFTER = 3
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


@dataclass(frozen=True)
class Limits:
    """What one file may take: bytes, seconds without a byte, seconds in all."""

    size: int = 2 << 30
    silence: float = 20.0
    total: float = 900.0


class Remote:
    """Fetches addresses into a folder. A server that does not answer three times is not asked again.

    Args:
        cache: the folder; by default in the user's cache.
        limits: of each file.
    """

    def __init__(self, cache: Path | None = None, limits: Limits | None = None):
        self.cache = cache or platformdirs.user_cache_path("csm") / "sounds"
        self.limits = limits or Limits()
        self._found: dict[str, Path | WrongField] = {}
        self._silent: dict[str, int] = {}

    def fetch(self, url: str) -> Path:
        """The file of an address.

        Raises:
            WrongField: it cannot be had, or passes a limit.
        """
        found = self.try_fetch(url)
        if isinstance(found, WrongField):
            raise found
        return found

    def try_fetch(self, url: str) -> Path | WrongField:
        """The file, or why there is none; each address is asked for once."""
        if url not in self._found:
            try:
                self._found[url] = self._fetch(url)
            except WrongField as error:
                self._found[url] = error
        return self._found[url]

    def _fetch(self, url: str) -> Path:
        try:
            host = urlsplit(url).netloc
        except ValueError as error:
            raise WrongField(_told(url, error)) from error
        if self._silent.get(host, 0) >= GIVE_UP_AFTER:
            raise WrongField(f"{_names(url)}: {host} has not answered {GIVE_UP_AFTER} times")
        entry = self.cache / "remote" / hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()
        try:
            return (_from_web if _scheme(url) in ("http", "https") else _from_store)(url, entry, self.limits)
        except Unanswered as error:
            self._silent[host] = self._silent.get(host, 0) + 1
            raise WrongField(_told(url, error)) from error
        except _Refused as error:
            raise WrongField(_told(url, error)) from error


class _Refused(Exception):
    pass


def is_remote(written: str) -> bool:
    """Whether a path is an address, `scheme://...`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", written) is not None


def _scheme(url: str) -> str:
    return url.split("://", 1)[0].lower()


def _names(url: str) -> str:
    """The address without what may be secret in it."""
    bare = url.split("?", 1)[0]
    return f"names {re.sub(r'//[^/@]*@', '//', bare)[:300]}, which cannot be had".encode("ascii", "replace").decode()


def _told(url: str, error: Exception) -> str:
    """What went wrong with an address; libraries repeat it whole in their errors."""
    secret = url.partition("?")[2]
    text = f"{_names(url)}: {error}"
    return text.replace(secret, "...") if secret else text


def _from_web(url: str, entry: Path, limits: Limits) -> Path:
    known = _known(entry)
    headers = {"User-Agent": "csm-finetune", "Accept-Encoding": "identity"}
    if known:
        name = "If-None-Match" if known["kind"] == "etag" else "If-Modified-Since"
        headers[name] = known["version"]
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=limits.silence) as response:
            return _keep_response(url, entry, limits, response)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 304 and known:
                return entry.parent / known["file"]
            raise _Refused(f"the server says {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise Unanswered(_reason(error.reason)) from error
    except TimeoutError as error:
        raise Unanswered(f"nothing came for {limits.silence:g} s") from error
    except (http.client.HTTPException, ValueError) as error:
        raise _Refused(_reason(error)) from error
    except ConnectionError as error:
        raise Unanswered(_reason(error)) from error


def _keep_response(url: str, entry: Path, limits: Limits, response: Any) -> Path:
    headers = response.headers
    length = headers.get("Content-Length")
    expected = int(length) if length and length.isdigit() else None
    kind, version = next(
        ((kind, headers[key]) for kind, key in (("etag", "ETag"), ("date", "Last-Modified")) if headers.get(key)),
        ("", ""),
    )
    pieces = iter(lambda: response.read1(PIECE), b"")
    guess = mimetypes.guess_extension(headers.get_content_type()) or ""
    return _keep(url, entry, limits, pieces, expected, (kind, version), guess)


def _from_store(url: str, entry: Path, limits: Limits) -> Path:
    import fsspec

    try:
        store, path = in_time(lambda: fsspec.core.url_to_fs(url), limits.silence)
        facts = in_time(lambda: store.info(path), limits.silence)
        version = str(
            next((facts[key] for key in ("ETag", "etag", "mtime", "LastModified", "size") if facts.get(key)), "")
        )
        known = _known(entry)
        if known and known["version"] == version:
            return entry.parent / known["file"]
        with in_time(lambda: store.open(path, "rb"), limits.silence) as file:
            pieces = iter(lambda: in_time(lambda: file.read(PIECE), limits.silence), b"")
            return _keep(url, entry, limits, pieces, facts.get("size"), ("store", version), "")
    except (Unanswered, _Refused):
        raise
    except ImportError as error:
        package = PACKAGES.get(_scheme(url), f"fsspec's package for {_scheme(url)}")
        raise _Refused(f"{package} is needed; pip install 'csm-finetune[s3]' brings the one for s3") from error
    except FileNotFoundError as error:
        raise _Refused("there is no such file") from error
    except Exception as error:  # each store has errors of its own; every one of them ends up in the fault
        raise _Refused(f"{type(error).__name__}: {_reason(error)}") from error


def _keep(
    url: str,
    entry: Path,
    limits: Limits,
    pieces: Iterator[bytes],
    expected: int | None,
    version: tuple[str, str],
    guess: str,
) -> Path:
    """The pieces as a file in the cache, once all of them have come."""
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    suffix = suffix if re.fullmatch(r"\.[a-z0-9]{1,5}", suffix) else guess
    mark = hashlib.sha256(version[1].encode() or uuid.uuid4().bytes).hexdigest()[:16]
    path = entry.with_name(f"{entry.name}-{mark}{suffix}")
    write_whole(path, _limited(pieces, expected, limits))
    if version[1]:
        note = {"url": url.split("?", 1)[0], "kind": version[0], "version": version[1], "file": path.name}
        write_whole(entry.with_suffix(".json"), [json.dumps(note).encode()])
    return path


def _limited(pieces: Iterator[bytes], expected: int | None, limits: Limits) -> Iterator[bytes]:
    begun, came = time.monotonic(), 0
    if expected is not None and expected > limits.size:
        raise _Refused(f"it has {expected / 1e6:.0f} MB, and {limits.size / 1e6:.0f} MB are the limit")
    for piece in pieces:
        came += len(piece)
        if came > limits.size:
            raise _Refused(f"it is larger than the limit of {limits.size / 1e6:.0f} MB")
        if time.monotonic() - begun > limits.total:
            raise _Refused(f"it took longer than {limits.total:g} s")
        yield piece
    if expected is not None and came != expected:
        raise _Refused(f"it was cut off after {came} of {expected} bytes")
    if not came:
        raise _Refused("it is empty")


def _known(entry: Path) -> dict[str, str] | None:
    """What the cache says of an address, where its file is still there."""
    try:
        note = json.loads(entry.with_suffix(".json").read_bytes())
        return note if (entry.parent / note["file"]).is_file() and note["version"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # never fetched, or a note that is no note: it is fetched again


def _reason(error: Any) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def write_whole(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file beside its place and swap it in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(beside, "wb") as file:
            for piece in pieces:
                file.write(piece)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
