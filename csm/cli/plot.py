"""`csm-finetune plot`: the curves of a run as pictures."""

from __future__ import annotations

from pathlib import Path

import click

from csm.cli.console import answer
from csm.cli.lists import ListCommand
from csm.cli.options import PATH


@click.command("plot", cls=ListCommand)
@click.argument("run", type=PATH)
@click.option("--output", "--output-dir", "output", type=PATH, help="where to; default: the run's folder report")
def plot(run: Path, output: Path | None) -> None:
    """Draw RUN's losses, rates, speed and memory into curves.png and curves.html, and print their paths."""
    from csm.training.curves import draw

    for path in draw(run, output or run / "report"):
        answer(str(path))
