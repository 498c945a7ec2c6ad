"""The live view of a training: its figures on a terminal, the plain lines of `Progress` elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from csm.cli.progress import Progress

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table

LOSSES = {"loss": "loss", "semantic_loss": "semantic", "acoustic_loss": "acoustic"}
MEASURED = {
    "terms_loss": "clips with terms",
    "other_loss": "other clips",
    "speaker_similarity": "similarity",
}


class Figures:
    """What is known of a training by now: the last update, the last validation, the best one."""

    def __init__(self) -> None:
        self.update: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.best: dict[str, float] = {}

    def take(self, step: int, values: Mapping[str, float]) -> None:
        """Take in a record of metrics.jsonl; step 0 is the base, of which only the validation is known."""
        if "loss" in values:
            self.update = {**values, "step": step}
        measured = {key.removeprefix("validation_"): v for key, v in values.items() if key.startswith("validation_")}
        if "speaker_similarity" in values:
            measured["speaker_similarity"] = values["speaker_similarity"]
        if measured:
            self.validation = {"step": step, **measured}
        if "loss" in measured and measured["loss"] <= self.best.get("loss", float("inf")):
            self.best = self.validation

    def table(self) -> Table:
        """Losses: a row a part, columns for training, the last validation and the lowest."""
        from rich.table import Table

        columns = {"training": self.update, "validation": self.validation, "lowest": self.best}
        shown = {name: values for name, values in columns.items() if values}
        made = Table(box=None, pad_edge=False, header_style="dim")
        made.add_column("", style="bold", min_width=13)
        for name in shown:
            made.add_column(name, justify="right", min_width=10, style="green" if name == "lowest" else "")
        for key, name in (LOSSES | MEASURED).items():
            if key in self.update or key in self.validation:
                made.add_row(name, *(_short(values, key) for values in shown.values()))
        if shown:
            made.add_row("at step", *(f"{values['step']:.0f}" for values in shown.values()), style="dim")
        return made

    def lines(self) -> Table:
        """Gradient norm, rates, speed, memory: a name and a value each."""
        from rich.table import Table

        made = Table.grid(padding=(0, 1))
        made.add_column(style="bold", min_width=13)
        made.add_column(overflow="fold")
        if not self.update:
            return made
        rates = {key.removeprefix("rate_"): v for key, v in self.update.items() if key.startswith("rate_")}
        made.add_row("gradient norm", _short(self.update, "grad_norm"))
        made.add_row("rates", "  ".join(f"{group} {rate:.3g}" for group, rate in rates.items()))
        made.add_row("speed", f"{_short(self.update, 'frames_per_second')} frames/s")
        made.add_row("peak memory", f"{self.update.get('peak_memory_mb', 0):,.0f} MB")
        return made


def _short(values: Mapping[str, float], key: str) -> str:
    return f"{values[key]:.4g}" if key in values else ""


class TrainingView(Progress):
    """Progress of a training; on a terminal its figures stand above the bar."""

    def __init__(self) -> None:
        super().__init__("training")
        self.figures = Figures()
        self._live: Live | None = None
        if self._bar:
            from rich.live import Live

            self._live = Live(console=self._bar.console, get_renderable=self.rendered, refresh_per_second=4)

    def rendered(self) -> Group:
        """What the terminal shows."""
        from rich.console import Group

        assert self._bar is not None
        return Group("", self.figures.table(), self.figures.lines(), self._bar)

    def __enter__(self) -> TrainingView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def take(self, step: int, values: Mapping[str, Any]) -> None:
        """Take in the figures of a step, to be shown."""
        self.figures.take(step, values)
