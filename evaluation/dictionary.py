"""How English words are pronounced: the CMU dictionary as the package pocketsphinx ships it, read as a file.

The package is found and never imported. Its licence is BSD's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

PLACE = "model/en-us/cmudict-en-us.dict"
INSTALL = "pip install 'csm-finetune[align]'"


def pronouncer() -> Callable[[str], Sequence[str] | None] | None:
    """A function from a word in lower case to its phones (ARPAbet, without stress), None for a word it lacks.

    Returns:
        the function, or None where the dictionary is not installed.
    """
    found = importlib.util.find_spec("pocketsphinx")
    path = Path(found.origin).parent / PLACE if found and found.origin else None
    if path is None or not path.is_file():
        return None
    entries = _entries(path)

    def pronounce(word: str) -> Sequence[str] | None:
        if word not in entries and word.endswith("'s"):
            stem = entries.get(word[:-2])
            return (*stem, "Z") if stem else None
        return entries.get(word)

    return pronounce


@cache
def _entries(path: Path) -> dict[str, tuple[str, ...]]:
    entries: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phones = line.split()
        entries.setdefault(word.split("(")[0], tuple(phones))
    return entries
