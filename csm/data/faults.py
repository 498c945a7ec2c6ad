"""Fault: why one clip is skipped. Faults are gathered over the whole data set and told once, file by file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from csm.data.row import Row, is_copy, natural_key
from csm.errors import CsmError

_LISTED = 5


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file.

    Args:
        file: the file to mend.
        message: the sentence that the file's name begins, without its full stop ("is silent").
        line: the line of `file`, counted from 1, where it has lines that matter.
    """

    file: Path
    message: str
    line: int | None = None

    @property
    def text(self) -> str:
        """One sentence on one line, with the file."""
        place = str(self.file) if self.line is None else f"{self.file}, line {self.line},"
        return printable(f"{place} {self.message}.")


class UnusableData(CsmError):
    """Nothing is left to train on, or a fault was found under `strict`; `faults` are all that were found."""

    def __init__(self, message: str, hint: str | None, faults: Iterable[Fault]):
        super().__init__(message, hint)
        self.faults = list(faults)


def of_row(fault: Fault, row: Row) -> Fault:
    """The fault of a row's sound, told at the place in the data that names it where the file is a copy in the cache."""
    if fault.file != row.audio or not is_copy(row.audio):
        return fault
    sound = "a sound that" if is_copy(row.name) else f"{row.name}, which"
    return Fault(row.source, f"names {sound} {fault.message}", row.line)


def render(faults: Iterable[Fault]) -> str:
    """One line a fault, sorted by file and line; the same fault found twice is named once."""
    return "\n".join(_sentences(faults))


def require_usable(usable: int, faults: Iterable[Fault], strict: bool = False) -> None:
    """Stop where there is nothing to train on.

    Raises:
        UnusableData: `usable` is 0, or `strict` is set and there is a fault; the hint lists the first
            faults, with `strict` all of them.
    """
    faults = list(faults)
    sentences = _sentences(faults)
    if usable and not (strict and sentences):
        return
    listed = sentences if usable else sentences[:_LISTED]
    if len(sentences) > len(listed):
        listed.append(f"... and {len(sentences) - _LISTED} more; `csm-finetune check` names them all.")
    if not usable:
        raise UnusableData("Nothing in the data can be used.", "\n  ".join(listed) or None, faults)
    count = "1 fault" if len(sentences) == 1 else f"{len(sentences)} faults"
    raise UnusableData(f"The data has {count}, and strict was asked for.", "\n  ".join(listed), faults)


def printable(text: str) -> str:
    """The text with line breaks, control characters and halves of characters written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _sentences(faults: Iterable[Fault]) -> list[str]:
    order = sorted(faults, key=lambda fault: (natural_key(fault.file.as_posix()), fault.line or 0, fault.message))
    return list(dict.fromkeys(fault.text for fault in order))
