"""All printing of the command line: answers on stdout, talk on stderr, one red sentence for what went wrong."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import click

from csm.cli.lists import ListCommand
from csm.errors import CsmError


def answer(text: str) -> None:
    """Print the command's result on stdout."""
    click.echo(text)


def answer_json(value: Any) -> None:
    """Print the command's result on stdout as JSON; NaN and infinity are refused, never written."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


LEVELS = ("debug", "info", "warning", "error", "critical")
_least: ContextVar[str] = ContextVar("least", default="info")


@contextmanager
def talking_from(level: str) -> Iterator[None]:
    """Within, only talk of this level and above is said; an error always is."""
    token = _least.set(level)
    try:
        yield
    finally:
        _least.reset(token)


def talks(level: str) -> bool:
    """Whether talk of a level is said."""
    return LEVELS.index(level) >= LEVELS.index(_least.get())


def detail(text: str) -> None:
    """Say on stderr what only someone who looks for a fault wants to know."""
    if talks("debug"):
        click.echo(text, err=True)


def say(text: str) -> None:
    """Talk to the user on stderr: progress, reasons, paths."""
    if talks("info"):
        click.echo(text, err=True)


def warn(text: str) -> None:
    """Say on stderr what the user should know although the work goes on."""
    if talks("warning"):
        click.secho(f"warning: {text}", err=True, fg="yellow")


def tell(error: CsmError) -> None:
    """Say on stderr what went wrong, and what to do about it."""
    _fail(error.message, error.hint)


class _EndsInSentence(click.Command):
    """What of click ends in one sentence and the right exit code, whatever is raised."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except CsmError as error:
            tell(error)
            code = error.exit_code
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except click.Abort:
            _fail("interrupted.", None)
            code = 130
        except OSError as error:
            if error.errno != errno.EPIPE:  # whoever reads our answer may stop reading, as `head` does
                _fail(*_explain(error))
            code = 1
        sys.exit(code if isinstance(code, int) else 0)


class Command(_EndsInSentence, ListCommand):
    """A command that is a program of its own."""


class Group(_EndsInSentence, click.Group):
    """A group of commands."""

    command_class = ListCommand


def _fail(message: str, hint: str | None) -> None:
    click.secho(f"error: {message}", err=True, fg="red")
    if hint:
        click.echo(f"  {hint}", err=True)


def _explain(error: OSError) -> tuple[str, str | None]:
    name = error.filename2 or error.filename  # of a swap's two files the one that the user named
    place = f" ({name})" if name else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full{place}.", "Free some space and run the same command again: it goes on where it was."
    if (error.strerror or "").startswith("No usable temporary directory"):  # from tempfile, with the list of them
        return "no temporary file can be written: the disk is full, or TMPDIR names a folder without that right.", None
    return f"{error.strerror or error}{place}.", None
