"""Commands under `torchrun`: the first process runs the command, the others work for it and say nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from csm.cli.console import Group, tell
from csm.errors import CsmError
from csm.processes import own_place

APART = ("tokenize",)
"""Commands whose processes share the work among themselves: each runs the command."""


class Together(click.Command):
    """Beside another command class: a command that may train in several processes; alone it is any other."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        rank = 0
        try:
            place = own_place()
            if place.size == 1 or self._is_apart(args[0] if args else kwargs.get("args")):
                return super().main(*args, **kwargs)
            rank = place.rank
            from csm.torch.processes import together

            with together() as first:
                if first:
                    super().main(*args, **kwargs)
        except CsmError as error:
            if rank <= 1:  # where the first has gone without a word, one of the others says so
                tell(error)
            sys.exit(error.exit_code)

    def _is_apart(self, words: Sequence[str] | None) -> bool:
        """Whether the words (None: the process's own) begin with a command of `APART`."""
        words = sys.argv[1:] if words is None else words
        return isinstance(self, click.Group) and next(iter(words), None) in APART


class TogetherGroup(Together, Group):
    """A group of such commands."""
