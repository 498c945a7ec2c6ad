"""Commands under `torchrun`: the first process runs the command, the others work for it and say nothing; or each runs its
own part."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from csm.cli.console import Command, Group, tell
from csm.cli.lists import ListCommand
from csm.errors import CsmError
from csm.processes import own_place


class Apart(ListCommand):
    """Within a `TogetherGroup`: a command that every process runs by itself, on a part of the work."""


class Together(click.Command):
    """Beside another command class: a command that may train in several processes; alone it is any other."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        rank = 0
        try:
            place = own_place()
            if place.size == 1 or self.runs_apart(words):
                return super().main(words, *rest, **kwargs)
            rank = place.rank
            from csm.torch.processes import together

            with together() as first:
                if first:
                    super().main(words, *rest, **kwargs)
        except CsmError as error:
            if rank <= 1:  # where the first has gone without a word, one of the others says so
                tell(error)
            sys.exit(error.exit_code)

    def runs_apart(self, words: Sequence[str]) -> bool:
        """Whether a command line is for each process by itself."""
        return False


class TogetherCommand(Together, Command):
    """Such a command that is a program of its own."""


class TogetherGroup(Together, Group):
    """A group of such commands."""

    def runs_apart(self, words: Sequence[str]) -> bool:
        return isinstance(self.commands.get(words[0]) if words else None, Apart)
