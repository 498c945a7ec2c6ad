"""All printing of the command line: answers on stdout, talk on stderr, one red sentence for what went wrong."""

from __future__ import annotations

import errno
import json
import sys
from typing import Any

import click

from csm.errors import CsmError


def answer(text: str) -> None:
    """Print the command's result on stdout."""
    click.echo(text)


def answer_json(value: Any) -> None:
    """Print the command's result on stdout as JSON; NaN and infinity are refused, never written."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """Talk to the user on stderr: progress, reasons, paths."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Say on stderr what the user should know although the work goes on."""
    click.secho(f"warning: {text}", err=True, fg="yellow")


class Group(click.Group):
    """A click group whose commands end in one sentence and the right exit code, whatever they raise."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except CsmError as error:
            _fail(error.message, error.hint)
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
