"""A large data set before its first update: under 2 GB and a minute for a million rows, 64 bytes of memory a row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import measure

ROOT = Path(__file__).parents[1]
ROWS = 1_000_000


def hold(found: dict[str, Any]) -> None:
    """CPU seconds stand for the minute: other programs do not count."""
    share = found["rows"] / ROWS
    assert found["array_bytes_a_row"] <= 64
    assert sum(value for key, value in found.items() if key.endswith("_cpu_s")) < 60 * share + 1
    assert found["order_with_budget_batches"] >= found["order_batches"]


def test_twenty_thousand_rows_stay_in_their_share(tmp_path: Path) -> None:
    hold(measure(20_000, tmp_path))


@pytest.mark.slow
def test_a_million_rows_stay_under_two_gigabytes_and_a_minute() -> None:
    run = [sys.executable, "-m", "benchmarks.scale", "--rows", str(ROWS)]
    found = json.loads(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    hold(found)
    assert found["peak_mb"] < 2000
