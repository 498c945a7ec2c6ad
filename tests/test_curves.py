"""The curves of a run: what is in the record is what is drawn, and the page needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import finetune

from csm.training.curves import read_panels, smoothed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [{"step": 0, "validation_loss": 9.0}]
    for step in range(1, 41):
        lines.append(
            {"step": step, "loss": 8 / step, "grad_norm": 1 / step, "rate_decoder": 1e-4, "learning_rate": 1e-4}
        )
        if step % 10 == 0:
            lines[-1] |= {f"validation_codebook_{book}_loss": 5 + book / step for book in range(12)}
            lines[-1] |= {"validation_loss": 9 - step / 10}
    folder = tmp_path / "<b>run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_panels_hold_the_record(run: Path) -> None:
    panels = {panel.title: panel for panel in read_panels(run)}
    loss = panels["Loss, weighted"].curves
    assert loss["validation"] == [(0, 9.0), (10, 8.0), (20, 7.0), (30, 6.0), (40, 5.0)]
    assert len(loss["training"]) == 40
    assert list(panels["Validation by codebook"].curves) == [str(book) for book in range(12)], "in order, 10 after 9"
    assert "Speaker similarity of samples" not in panels


def test_smoothing_keeps_a_constant_and_starts_at_the_first() -> None:
    assert smoothed([(1, 2.0), (2, 2.0), (3, 2.0)]) == [(1, 2.0), (2, 2.0), (3, 2.0)]
    assert smoothed([(1, 5.0), (2, 1.0)])[0] == (1, 5.0)


def test_plot_writes_a_picture_and_a_page_by_itself(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    told = finetune("plot", run, "--output", tmp_path / "out").stdout
    assert told == f"{tmp_path / 'out' / 'curves.png'}\n{tmp_path / 'out' / 'curves.html'}\n"
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "curves.html").read_text()
    assert "<svg" in page
    assert "<b>run" not in page, "names are escaped"
    assert "&lt;b&gt;run" in page
    for outside in ("<script", "<link", "src=", "@import", 'href="http'):
        assert outside not in page, outside
    assert "<td>8</td>" in page
    assert (finetune("plot", run).stdout.splitlines()[0]) == str(run / "report" / "curves.png")


def test_plot_without_its_package_or_a_record_is_a_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    assert "metrics.jsonl" in finetune("plot", tmp_path, code=1).stderr
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "csm-finetune[plots]" in finetune("plot", run, code=1).stderr
