"""`csm`: generate speech, look at models, score runs, keep voices."""

from __future__ import annotations

from importlib import import_module

import click

from csm.cli.console import Group

_COMMANDS = {
    "evaluate": "csm.cli.evaluate:evaluate",
    "generate": "csm.cli.generate:generate",
    "model": "csm.cli.model:model",
    "voice": "csm.cli.voice:voice",
}


class _Lazy(Group):
    """Imports a command's module when it is used, so that `csm --help` costs nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[name].split(":")
        return getattr(import_module(module), attribute)


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="csm-finetune", prog_name="csm")
def main() -> None:
    """Speak with CSM models, score them and keep their voices.

    Fine-tuning has a command of its own: csm-finetune --help.
    """


if __name__ == "__main__":
    main()
