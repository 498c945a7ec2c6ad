"""Flags that take lists, written in any way: `--flag a,b`, `--flag a b`, `--flag "a b"`, `--flag a --flag b`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

NUMBERS = "NUMBERS"


class ListOption(click.Option):
    """A flag whose value is a tuple, each entry once; None where the flag was not given."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "multiple": True})

    def process_value(self, ctx: click.Context, value: Any) -> tuple[Any, ...] | None:
        given = super().process_value(ctx, value)
        if not given:
            return None
        entries = tuple(dict.fromkeys(entry for part in given for entry in part))
        if not entries:
            raise click.BadParameter("the list is empty.", ctx, self)
        return entries


class ListCommand(click.Command):
    """A command whose list flags take all the words up to the next flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_commas(args, self._list_flags()))

    def _list_flags(self) -> set[str]:
        if any(isinstance(parameter, click.Argument) for parameter in self.params):
            return set()
        return {flag for option in self.params if isinstance(option, ListOption) for flag in option.opts}


def listed(*names: str, known: Sequence[str] = (), metavar: str = "NAMES", help: str) -> Callable[[Any], Any]:
    """A list flag; with the metavar NUMBERS of whole numbers, with `known` of those words alone."""
    return click.option(*names, cls=ListOption, type=_Entries(known, metavar), metavar=metavar, help=help)


class _Entries(click.ParamType):
    name = "list"

    def __init__(self, known: Sequence[str], metavar: str):
        self.known, self.numbers = known, metavar == NUMBERS

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        words = str(value).replace(",", " ").split()
        for word in words:
            if self.numbers and not (word.isascii() and word.isdigit()):
                self.fail(f"{word!r} is not a whole number; write whole numbers like 0,2.", param, ctx)
            if self.known and word not in self.known:
                self.fail(f"{word!r} is not one of {', '.join(self.known)}.", param, ctx)
        return tuple(map(int, words)) if self.numbers else tuple(words)


def _with_commas(args: list[str], flags: set[str]) -> list[str]:
    """`--flag a b` as `--flag a,b`, for the flags that take lists."""
    joined: list[str] = []
    takes_more = False
    for place, word in enumerate(args):
        if word == "--":
            return joined + args[place:]
        if takes_more and not word.startswith("-"):
            joined[-1] += f",{word}"
            continue
        takes_more = bool(joined) and joined[-1] in flags and not word.startswith("-")
        joined.append(word)
    return joined
