"""Hugging Face data sets: a folder that `save_to_disk` wrote, a folder of Parquet files, or `hf://owner/name` on the hub.

The sounds stay as they are stored (`Audio(decode=False)`), and are written to the user's cache folder one by one as the
rows stream past: neither torchcodec nor all rows at once are needed. Columns are those of a table; `source` says who
speaks where no other column does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from csm.data import fields
from csm.data.faults import Fault
from csm.data.fields import Defaults
from csm.data.row import Row
from csm.data.sounds import Sounds
from csm.data.table import read_records
from csm.data.table_files import Record, records_of
from csm.errors import CsmError

ADDRESS = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.\[\]%:-]+))?")
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")


def read_hugging_face(path: str | Path, defaults: Defaults) -> tuple[list[list[Row]], list[Fault]]:
    """Read a data set: a folder, or `hf://owner/name`, `hf://owner/name/config:split`; the split is `train` by default.

    Raises:
        CsmError: the package datasets is needed and not installed, the set cannot be opened, or lacks columns.
    """
    place = Path(path)
    source = str(path)
    records: Iterator[Record | Fault]
    if ADDRESS.fullmatch(source):
        records = _records(_stream(source), place)
    elif any((place / name).is_file() for name in SAVED):
        records = _records(_saved(place), place)
    else:
        records = _parquet_folder(place)
    return read_records(map(_with_source, records), place, defaults, Sounds(place if place.is_dir() else Path()))


def is_hugging_face(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder, or it is one of Parquet files."""
    return any((folder / name).is_file() for name in SAVED) or bool(_parquet_files(folder))


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise CsmError("Hugging Face data sets need the package datasets.", "pip install 'csm-finetune[hf]'") from error
    return datasets


def _stream(address: str) -> Iterable[dict[str, Any]]:
    datasets, parts = _datasets(), ADDRESS.fullmatch(address)
    assert parts
    try:
        opened = datasets.load_dataset(
            parts["name"], parts["config"], split=parts["split"] or "train", streaming=True
        )  # code that comes with a data set is never run: datasets 4 and later cannot, and are asked for
        return _undecoded(datasets, opened)
    except Exception as error:  # the hub's client has errors of its own, and every one is told
        raise CsmError(f"{address} cannot be opened: {_one_line(error)}.") from error


def _saved(folder: Path) -> Iterable[dict[str, Any]]:
    datasets = _datasets()
    try:
        opened = datasets.load_from_disk(str(folder))
        if isinstance(opened, datasets.DatasetDict):
            if "train" not in opened:
                names = ", ".join(opened)
                raise CsmError(f"{folder} has no split called train, but {names}.", "Name one of these folders in it.")
            opened = opened["train"]
        return _undecoded(datasets, opened)
    except CsmError:
        raise
    except Exception as error:
        raise CsmError(f"{folder} cannot be opened as a data set: {_one_line(error)}.") from error


def _undecoded(datasets: Any, opened: Any) -> Iterable[dict[str, Any]]:
    for name, feature in (opened.features or {}).items():
        if isinstance(feature, datasets.Audio):
            opened = opened.cast_column(name, datasets.Audio(decode=False))
    return opened


def _records(rows: Iterable[dict[str, Any]], place: Path) -> Iterator[Record | Fault]:
    try:
        for number, values in enumerate(rows, 1):
            yield Record({str(key).lower(): value for key, value in values.items()}, place, number)
    except (OSError, ValueError, RuntimeError) as error:
        raise CsmError(f"{place} cannot be read to its end: {_one_line(error)}.") from error


def _parquet_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])


def _parquet_folder(folder: Path) -> Iterator[Record | Fault]:
    files = _parquet_files(folder)
    if not files:
        raise CsmError(
            f"{folder} is no data set of Hugging Face.", "It holds neither dataset_info.json nor .parquet files."
        )
    for file in files:
        yield from records_of(file)


def _with_source(record: Record | Fault) -> Record | Fault:
    if isinstance(record, Fault) or fields.is_missing(record.values.get("source")):
        return record
    if any(not fields.is_missing(record.values.get(key)) for key in fields.SPEAKER):
        return record
    return Record({**record.values, "speaker": record.values["source"]}, record.file, record.line)


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
