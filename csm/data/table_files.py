"""Tables on disk as records: JSON, JSON lines, CSV and its kin, Parquet, SQLite. A line that is broken is a fault."""

from __future__ import annotations

import csv
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.data import fields
from csm.data.faults import Fault
from csm.data.json_file import Lines, elements, load_json
from csm.data.text_file import read_lines
from csm.errors import CsmError

SEPARATORS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Record:
    """A row of a table: its cells by column, the file, and the line (or number, from 1) of it.

    `called` tells rows apart that may stand on one line.
    """

    values: Mapping[str, Any]
    file: Path
    line: int | None
    called: str = "the row"


def records_of(path: Path) -> Iterator[Record | Fault]:
    """The rows of a table, read as its suffix says.

    Raises:
        CsmError: the suffix is of no table, or the file is none.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise CsmError(f"{path} is no table that can be read.", f"Tables are {', '.join(_READERS)}.")
    return read(path)


def _json_records(path: Path) -> Iterator[Record | Fault]:
    text, document = load_json(path)
    if isinstance(document, dict):
        yield from _columns(path, document)
        return
    if not isinstance(document, list):
        raise CsmError(f"{path} is not a list of rows.", 'Its form is [{"path", "text", "speaker"}, ...].')
    lines = Lines(text)
    for number, (value, at) in enumerate(zip(document, elements(text, text.index("[")), strict=True), 1):
        yield _record(value, path, lines[at], f"row {number}")


def _columns(path: Path, document: dict[str, Any]) -> Iterator[Record | Fault]:
    """Columns of equal length, each a list or (as pandas writes them) a mapping from row to cell."""
    if not document or not all(isinstance(column, dict | list) for column in document.values()):
        raise CsmError(f"{path} is not a list of rows.", 'Its form is [{"path", "text", "speaker"}, ...].')
    columns = {name: list(cells.values() if isinstance(cells, dict) else cells) for name, cells in document.items()}
    if len({len(cells) for cells in columns.values()}) > 1:
        raise CsmError(f"{path} has columns of different lengths.")
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        yield Record(dict(zip(columns, cells, strict=True)), path, number)


def _record(value: Any, path: Path, line: int, called: str = "the row") -> Record | Fault:
    if not isinstance(value, dict):
        return Fault(path, f"is no row of the form {{...}}; {called} is left out", line)
    return Record(value, path, line, called)


def _json_lines(path: Path) -> Iterator[Record | Fault]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            yield _record(json.loads(line), path, number)
        except json.JSONDecodeError as error:
            problem = f"is not valid JSON: {error.msg[:1].lower()}{error.msg[1:]} (column {error.colno})"
            yield Fault(path, f"{problem}; the row is left out", number)
        except (ValueError, RecursionError):
            yield Fault(path, "holds a value that cannot be read; the row is left out", number)


def _separated(path: Path) -> Iterator[Record | Fault]:
    lines = read_lines(path)
    header = next((line for line in lines if line.strip()), "")
    separator = header_separator(header)
    if separator is None:
        raise CsmError(
            f"{path} has no header that names its columns.",
            "The first line should be as: path,text,speaker. Without one, id|text and file|speaker|text are read.",
        )
    names: list[str] | None = None
    for line, cells in _cells(lines, separator):
        if isinstance(cells, csv.Error):
            yield Fault(path, f"is no line of a table ({cells}); the row is left out", line)
        elif names is None:
            names = [cell.strip().lower() for cell in cells]
            if twice := [name for name in names if names.count(name) > 1 and name]:
                raise CsmError(f"{path} has two columns called {twice[0]}.", "Rename one of them.")
        elif len(cells) != len(names):
            quote = ", and a text with a comma needs quotation marks" if separator == "," else ""
            yield Fault(path, f"has {len(cells)} fields, not {len(names)} as the header{quote}; it is left out", line)
        else:
            yield Record(dict(zip(names, cells, strict=True)), path, line)


def _cells(lines: list[str], separator: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The number of the line that a row begins on, and its cells; after a broken row the next line begins one.

    So a quotation mark that is never closed costs its own row, not all that follow.
    """
    style: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if separator == "|" else {"strict": True}
    at = 0
    while at < len(lines):
        reader = csv.reader((f"{lines[i]}\n" for i in range(at, len(lines))), delimiter=separator, **style)
        begin = at
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield begin + 1, cells
                begin = at + reader.line_num
            return
        except csv.Error as error:
            yield begin + 1, error
            at = begin + 1


def header_separator(line: str) -> str | None:
    """What separates the columns of a header; None where a line names none of a sound and of a text."""
    for separator in SEPARATORS:
        names = {name.strip().strip('"').lower() for name in line.split(separator)}
        if names & set(fields.AUDIO) and names & set(fields.TEXT):
            return separator
    return None


def _parquet(path: Path) -> Iterator[Record | Fault]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CsmError(f"{path} needs pyarrow.", "pip install 'csm-finetune[parquet]'") from error
    try:
        numbers = itertools.count(1)
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(64):
                for values in batch.to_pylist():
                    yield Record(values, path, next(numbers))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise CsmError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:200]}).") from error


def _sqlite(path: Path) -> Iterator[Record | Fault]:
    with open(path, "rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise CsmError(f"{path} is no SQLite database.", "A dump of SQL statements is not read: load it first.")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            names = [
                name for (name,) in database.execute("select name from sqlite_master where type in ('table', 'view')")
            ]
            names = [name for name in names if not name.startswith("sqlite_")]
            table = "data" if "data" in names else names[0] if len(names) == 1 else None
            if table is None:
                raise CsmError(
                    f"{path} has {len(names)} tables and none called data.", "Call the one that is meant data."
                )
            cursor = database.execute('select * from "{}"'.format(table.replace('"', '""')))
            columns = [column[0].lower() for column in cursor.description]
            for number, cells in enumerate(cursor, 1):
                yield Record(dict(zip(columns, cells, strict=True)), path, number)
    except sqlite3.Error as error:
        raise CsmError(f"{path} cannot be read as SQLite ({error}).") from error


_READERS: dict[str, Callable[[Path], Iterator[Record | Fault]]] = {
    ".json": _json_records,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated,
    ".tsv": _separated,
    ".psv": _separated,
    ".txt": _separated,
    ".parquet": _parquet,
    ".sqlite": _sqlite,
    ".sqlite3": _sqlite,
    ".db": _sqlite,
    ".sql": _sqlite,
}
TABLES = tuple(_READERS)
