"""Progress of long work: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from csm.cli.console import say, talks

QUIET_SECONDS = 15.0


class Progress:
    """A bar for one piece of work; `update(done, total, note)` may be called as often as one likes."""

    def __init__(self, title: str):
        self.title, self._said = title, time.monotonic()
        self._bar = self._task = None
        if sys.stderr.isatty() and talks("info"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=None, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Talk to the user while the bar is live: above it, on lines of their own."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, note=note)
        elif done == total or time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            say(f"{self.title}: {done}/{total}{'  ' + note if note else ''}")
