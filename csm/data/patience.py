"""Calls into libraries that have no time-out of their own, waited for only so long."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Unanswered(Exception):
    """Nothing came."""


def in_time(call: Callable[[], T], seconds: float) -> T:
    """What a call returns, or raises, within so many seconds.

    Raises:
        Unanswered: nothing by then; the call is left to itself in a thread that does not keep the program alive.
    """
    answer: queue.SimpleQueue[tuple[bool, T | BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((True, call()))
        except BaseException as error:
            answer.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        done, value = answer.get(timeout=seconds)
    except queue.Empty:
        raise Unanswered(f"nothing came for {seconds:g} s") from None
    if not done:
        raise value  # type: ignore[misc]
    return value  # type: ignore[return-value]
