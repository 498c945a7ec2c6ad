"""Memory: what judges said of a sound, kept in a file, so that a sound that was judged is not judged again.

An answer is found again by the sound's own bytes and by who was asked what; a file that is damaged is begun anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA_VERSION = 1


class Memory:
    """Answers by question and sound.

    Args:
        path: the file; it and its folder are made by `keep`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._answers: dict[str, Any] = {}
        self._changed = False
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        if isinstance(found, dict) and found.get("schema_version") == SCHEMA_VERSION:
            answers = found.get("answers")
            self._answers = answers if isinstance(answers, dict) else {}

    def recall(self, question: str, wave: np.ndarray, rate: int, ask: Callable[[], Any]) -> Any:
        """The answer that was given before, else that of `ask`, which must be plain JSON.

        Args:
            question: what is asked, and of whom.
            wave: `(samples,)`.
            rate: samples per second.
            ask: gives the answer.
        """
        sound = np.ascontiguousarray(wave, dtype=np.float32).tobytes()
        key = f"{question}: {hashlib.sha256(f'{rate}:'.encode() + sound).hexdigest()[:32]}"
        if key not in self._answers:
            self._answers[key] = ask()
            self._changed = True
        return self._answers[key]

    def keep(self) -> None:
        """Write what is new, whole or not at all."""
        if not self._changed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.part")
        document = {"schema_version": SCHEMA_VERSION, "answers": self._answers}
        beside.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(beside, self.path)
        self._changed = False
