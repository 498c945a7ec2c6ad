"""Where a command's answer goes: looked at before the work, so that no work is lost for want of a place to put it."""

from __future__ import annotations

import os
from pathlib import Path

from csm.errors import CsmError


def writable(path: Path) -> Path:
    """The file that will be written: `path` with its links followed, so that a link stays a link.

    Raises:
        CsmError: it is a folder or a device, a folder on the way is a file, or the right to write there is missing.
    """
    target = Path(os.path.realpath(path.expanduser()))
    if target.is_dir():
        raise CsmError(f"{path} is a folder.", "Name a file.")
    if os.path.lexists(target) and not target.is_file():
        raise CsmError(f"{path} is not a regular file.", "Name a file.")
    folder = target.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise CsmError(f"{path} cannot be written: {folder} is a file, not a folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CsmError(f"{path} cannot be written: you have no right to write in {folder}.")
    return target
