"""A folder that is there whole or not at all: written beside under another name, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csm.errors import CsmError


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` at the end, and is gone where the work between fails.

    Raises:
        CsmError: `out` is there already.
    """
    out = out.expanduser()
    if out.exists() or out.is_symlink():
        raise CsmError(f"{out} is there already.", "Give a name that is free.")
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for path in [*beside.iterdir(), beside]:
            _flush(path)
        os.rename(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _flush(out.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
