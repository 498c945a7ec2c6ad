"""The curves of a run, from its metrics.jsonl: drawn as PNG, and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.errors import CsmError
from csm.training.metrics import MetricsFile

SMOOTHING = 0.9  # of the training loss's running mean, where there are updates enough to need one
INK, GRID = "#333333", "#dddddd"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito, 2008


@dataclass(frozen=True)
class Panel:
    """One set of axes: curves by name, each a list of (step, value)."""

    title: str
    unit: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    logarithmic: bool = False


def read_panels(run: Path) -> list[Panel]:
    """What there is to draw of a run; panels without a point are left out.

    Raises:
        CsmError: the folder holds no metrics.
    """
    records = MetricsFile(run / "metrics.jsonl").read()
    if not records:
        raise CsmError(f"{run} holds no metrics.jsonl with a line in it.", "Name a run folder.")

    def named(**keys: str) -> dict[str, list[tuple[int, float]]]:
        found = {name.replace("_", " "): _points(records, key) for name, key in keys.items()}
        return {name: points for name, points in found.items() if points}

    rates = {group: f"rate_{group}" for group in ("backbone", "decoder", "embeddings")}
    books = sorted({k for r in records for k in r if k.startswith("validation_codebook_")}, key=lambda k: (len(k), k))
    panels = [
        Panel("Loss, weighted", "", named(training="loss", validation="validation_loss")),
        Panel(
            "Validation apart", "nats", named(codebook_0="validation_semantic_loss", others="validation_acoustic_loss")
        ),
        Panel("Validation by codebook", "nats", {k.split("_")[2]: _points(records, k) for k in books}),
        Panel("Clips with terms and others", "", named(terms="validation_terms_loss", other="validation_other_loss")),
        Panel("Speaker similarity of samples", "cosine", named(samples="speaker_similarity")),
        Panel("Gradient norm before clipping", "", named(norm="grad_norm"), logarithmic=True),
        Panel("Learning rate", "", named(**rates)),
        Panel("Speed", "frames a second", named(frames="frames_per_second")),
        Panel("Peak memory", "MB", named(memory="peak_memory_mb")),
    ]
    return [panel for panel in panels if panel.curves]


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(record["step"], record[key]) for record in records if key in record]


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The running mean, weighted so that it starts at the first value."""
    out, total, weight = [], 0.0, 0.0
    for step, value in points:
        total, weight = SMOOTHING * total + value, SMOOTHING * weight + 1
        out.append((step, total / weight))
    return out


def draw(run: Path, out: Path) -> list[Path]:
    """Write `curves.png` and `curves.html` into `out`.

    Raises:
        CsmError: there is nothing to draw, or matplotlib is not installed.
    """
    panels = read_panels(run)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CsmError(
            "drawing needs matplotlib, which is not installed.", "pip install 'csm-finetune[plots]'"
        ) from None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows), layout="constrained")
    figure.suptitle(run.resolve().name, color=INK)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "curves.png", dpi=120)
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    (out / "curves.html").write_text(_page(run, picture.getvalue(), panels), encoding="utf-8")
    return [out / "curves.png", out / "curves.html"]


def _draw_panel(axes: Any, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator

    many = len(panel.curves) > len(COLOURS)
    for number, (name, points) in enumerate(panel.curves.items()):
        colour = _shade(number, len(panel.curves)) if many else COLOURS[number]
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(points) < 30 else {}
        if any(points == before for before in list(panel.curves.values())[:number]):
            style["linestyle"] = (0, (3, 3))  # the curve below shows through
        if name == "training" and len(points) >= 30:
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.6, alpha=0.35)
            points = smoothed(points)
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, label=name, **style)
    axes.set_title(panel.title, fontsize=10, color=INK, loc="left")
    axes.set_ylabel(panel.unit, fontsize=8, color=INK)
    axes.set_xlabel("update", fontsize=8, color=INK)
    if panel.logarithmic and all(value > 0 for points in panel.curves.values() for _, value in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter("{x:g}")
    else:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
        axes.yaxis.get_offset_text().set(size=8, color=INK)
    axes.tick_params(which="both", labelsize=8, colors=INK)
    axes.grid(color=GRID, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(panel.curves) > 1:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if many else {}
        axes.legend(fontsize=7, frameon=False, ncols=1 + len(panel.curves) // 17, **beside)


def _shade(number: int, count: int) -> tuple[float, float, float]:
    """From dark to light blue: codebooks are ordered, so their colours are."""
    along = number / max(1, count - 1)
    return (0.03 + 0.65 * along, 0.19 + 0.62 * along, 0.42 + 0.5 * along)


def _page(run: Path, picture: str, panels: Sequence[Panel]) -> str:
    """The drawing, and its numbers as tables below it for who cannot see it or wants to copy them."""
    name = html.escape(run.resolve().name)
    tables = "\n".join(_table(panel) for panel in panels)
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;color:#333;margin:2rem auto;max-width:90rem;padding:0 1rem}"
        "svg{width:100%;height:auto}table{border-collapse:collapse;font-size:13px}"
        "th,td{padding:.1rem .6rem;text-align:right;border-bottom:1px solid #ddd}"
    )
    drawing = picture[picture.index("<svg") :]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{style}</style></head>\n'
        f"<body><h1>{name}</h1>\n{drawing}\n<h2>The numbers</h2>\n{tables}\n</body></html>\n"
    )


def _table(panel: Panel) -> str:
    steps = sorted({step for points in panel.curves.values() for step, _ in points})
    columns = [dict(points) for points in panel.curves.values()]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in panel.curves)
    rows = "".join(
        f"<tr><th>{step}</th>{''.join(f'<td>{c[step]:.5g}</td>' if step in c else '<td></td>' for c in columns)}</tr>"
        for step in steps
    )
    title = html.escape(panel.title)
    return f"<details><summary>{title}</summary><table><tr><th>update</th>{head}</tr>{rows}</table></details>"
