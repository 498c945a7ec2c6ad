"""Text files as users keep them: UTF-8 with or without byte order mark, any line ends."""

from __future__ import annotations

import codecs
from pathlib import Path

from csm.errors import CsmError

_OTHERS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def read_text(path: Path) -> str:
    """The file's text without byte order mark.

    Raises:
        CsmError: the file is missing, a folder, or no UTF-8 text; UTF-16 is named as such.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise CsmError(f"{path} is not there." if missing else f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a NUL in the name
        raise CsmError(f"{path} is not there.") from error
    for mark, name in _OTHERS.items():
        if data.startswith(mark):
            raise CsmError(f"{path} is not UTF-8 text but {name}.", "Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CsmError(f"{path} is not UTF-8 text (byte {error.start + 1}).", "Save it as UTF-8.") from error


def read_lines(path: Path) -> list[str]:
    """The file's lines without their ends; what ends a line is a line feed, a carriage return or both.

    Raises:
        CsmError: as `read_text`, and where the file holds NUL characters, as UTF-16 without a mark does.
    """
    text = read_text(path)
    if "\0" in text:
        raise CsmError(f"{path} holds NUL characters: it is UTF-16, or no text at all.", "Save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
