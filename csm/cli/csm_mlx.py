"""`csm-mlx`: csm-mlx's own name for what is here of its commands."""

from __future__ import annotations

import click

from csm.cli.console import Group
from csm.cli.convert import convert


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="csm-finetune", prog_name="csm-mlx")
def main() -> None:
    """csm-mlx's commands by its name; so far `finetune convert`.

    Its `finetune full` and `finetune lora` are `csm-finetune full` and `csm-finetune lora`, with its flags.
    """


@main.group()
def finetune() -> None:
    """Data for a fine-tune. For the fine-tunes themselves: csm-finetune full, csm-finetune lora."""


finetune.add_command(convert)


if __name__ == "__main__":
    main()
