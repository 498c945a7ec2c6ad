"""Flags that take several words at once: `--data-path A B C` is `--data-path A --data-path B --data-path C`."""

from __future__ import annotations

import click


class ListCommand(click.Command):
    """A command without arguments, whose repeatable flags take all words up to the next flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        assert not any(isinstance(one, click.Argument) for one in self.params), "which word is whose would not be known"
        options = [one for one in self.params if isinstance(one, click.Option)]
        lists = {flag for one in options if one.multiple for flag in one.opts}
        takes_one = {flag for one in options if not (one.is_flag or one.count) for flag in one.opts}
        return super().parse_args(ctx, _spread(args, lists, takes_one))


def _spread(args: list[str], lists: set[str], takes_one: set[str]) -> list[str]:
    """The words with every further word of a list flag given a flag of its own."""
    out: list[str] = []
    flag, at = None, 0
    while at < len(args):
        word = args[at]
        if word == "--":
            return out + args[at:]
        name = word.split("=", 1)[0]
        if word.startswith("-") and word != "-":
            flag = name if name in lists else None
            alone = "=" in word or name not in takes_one
            out += args[at : at + (1 if alone else 2)]  # the word after a flag is its value, whatever it looks like
            at += 1 if alone else 2
        else:
            out += [flag, word] if flag else [word]
            at += 1
    return out
