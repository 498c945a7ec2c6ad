"""JSON files, with the place of what is wrong in them and the line that each element begins on."""

from __future__ import annotations

import json
import re
from bisect import bisect
from pathlib import Path
from typing import Any

from csm.data.text_file import read_text
from csm.errors import CsmError


def load_json(path: Path) -> tuple[str, Any]:
    """The file's text without byte order mark, and what it says.

    Raises:
        CsmError: the file is missing, is no UTF-8 text, or no JSON; line and column are named.
    """
    text = read_text(path)
    try:
        return text, json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(path, text, error) from error
    except RecursionError as error:
        raise CsmError(f"{path} is nested too deeply to be conversations.") from error
    except ValueError as error:  # a number of thousands of digits
        raise CsmError(f"{path} holds a number that cannot be read ({error}).") from error


def _invalid(path: Path, text: str, error: json.JSONDecodeError) -> CsmError:
    if not text.strip():
        return CsmError(f"{path} is an empty file.")
    at, message, hint = error.pos, f"{error.msg[:1].lower()}{error.msg[1:]}", "Mend it there and try again."
    before = text[: at + 1].rstrip() if text[at : at + 1] == "," else text[:at].rstrip()
    if before.endswith(",") and re.match(r"\s*[]}]", text[len(before) :]):
        at, message, hint = len(before) - 1, "a comma stands before a closing bracket", "Delete that comma."
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return CsmError(f"{path}, line {line}, column {column}, is not valid JSON: {message}.", hint)


class Lines:
    """The line, counted from 1, of a place in a text."""

    def __init__(self, text: str):
        self._ends = [match.start() for match in re.finditer("\n", text)]

    def __getitem__(self, at: int) -> int:
        return bisect(self._ends, at) + 1


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
