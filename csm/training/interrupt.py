"""SIGINT and SIGTERM during training: finish the update, save, leave with 130 or 143."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from csm.errors import CsmError


class Interrupted(CsmError):
    """A signal stopped the work after it was saved; the exit code is 128 plus the signal's number."""

    def __init__(self, message: str, number: int):
        super().__init__(message, "Run the same command again: it goes on where it was.", 128 + number)


class StopSignals:
    """While entered, a first SIGINT or SIGTERM is only noted in `received`; a second SIGINT breaks off at once.

    Outside the main thread, where Python allows no handlers, signals keep their usual meaning.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
