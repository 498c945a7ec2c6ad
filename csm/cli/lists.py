"""Flags that take lists, written in any way: `--flag a,b`, `--flag a b`, `--flag "a b"`, `--flag a --flag b`.

And flags of any kind, written with underscores or dashes.
"""

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
    """A command whose repeatable flags take all the words up to the next flag; `--a_flag` is `--a-flag`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [option for option in self.params if isinstance(option, click.Option)]
        known = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
        alone = len(options) == len(self.params)  # else a word may be an argument
        many = {flag for option in options if option.multiple for flag in option.opts} if alone else set()
        valued = {flag for option in options if not (option.is_flag or option.count) for flag in option.opts}
        return super().parse_args(ctx, _repeated([_dashed(word, known) for word in args], many, valued))


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


def _dashed(word: str, known: set[str]) -> str:
    """A flag with dashes where it is known by them; any other word as it is."""
    flag, equals, value = word.partition("=")
    dashed = flag.replace("_", "-")
    return f"{dashed}{equals}{value}" if flag.startswith("--") and flag not in known and dashed in known else word


def _repeated(args: list[str], many: set[str], valued: set[str]) -> list[str]:
    """`--flag a b` as `--flag a --flag b`, for the flags that may be repeated.

    The word after a flag that takes a value is its value, whatever it looks like.
    """
    out: list[str] = []
    flag, place = "", 0
    while place < len(args):
        word = args[place]
        if word == "--":
            return out + args[place:]
        name, equals, _ = word.partition("=")
        if word.startswith("-") and word != "-":
            flag = name if name in many else ""
            words = 2 if name in valued and not equals else 1
            out += args[place : place + words]
            place += words
        else:
            out += [flag, word] if flag else [word]
            place += 1
    return out
