"""The benchmark compares like with like: on its tiny model csm does transformers' work, and the harness would notice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model folder is made by the first run."""
    return tmp_path_factory.mktemp("bench") / "tiny"


def peers(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run the benchmark; its exit status, the records on stdout and the talk on stderr."""
    command = [sys.executable, "-m", "benchmarks.peers", "--config", "tiny", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
def test_ours_does_the_work_of_transformers(tiny: Path) -> None:
    """Equal greedy codes over 50 frames, alone and in a batch of 8; losses of three updates within 1e-5."""
    status, (codes, rows, losses), _ = peers(
        "generate", "generate-batch", "train-full", "--check", "--folder", str(tiny)
    )
    assert status == 0
    assert codes["passed"]
    assert codes["different_codes"] == 0
    assert codes["distinct_codes"] > 20
    assert rows["passed"]
    assert (rows["batch"], rows["distinct_codes"] > 20) == (8, True)
    assert losses["passed"]
    assert losses["worst_difference"] <= 1e-5
    assert losses["losses"][0] > losses["losses"][1] > losses["losses"][2]


@pytest.mark.slow
def test_rounds_alternate_and_give_ratios(tiny: Path) -> None:
    """A measurement of each implementation, then ratios; adapters are trained alike too."""
    status, records, _ = peers(
        "train-full", "--decoder-fraction", "0.0625", "--interleave", "transformers,ours", "--rounds", "2", "--folder",
        str(tiny),
    )  # fmt: skip
    assert status == 0
    assert [record["impl"] for record in records if "impl" in record] == ["transformers", "ours"]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], abs=1e-5)
    compared = {record["of"] for record in records if "ratio" in record}
    assert compared == {"seconds", "cpu_seconds", "peak_rss_mb", "grown_rss_mb"}
    status, checks, _ = peers("train-lora", "train-voice", "--check", "--folder", str(tiny))
    assert status == 0
    assert [check["passed"] for check in checks] == [True, True]


def test_a_check_fails_where_the_work_differs() -> None:
    """One other code, or a loss that is off by more than the tolerance, is seen."""
    from benchmarks.report import comparison
    from benchmarks.work import Job

    job = Job("ours", "generate", "tiny", "", "float32", 1, 1, 2, 1.0, 0)
    right = [{"codes": [[[1, 2], [3, 4]]]}]
    assert comparison(job, right, right)["passed"]
    record = comparison(job, right, [{"codes": [[[1, 2], [3, 5]]]}])
    assert not record["passed"]
    assert (record["different_codes"], record["first_different_frame"]) == (1, 1)
    train = Job("ours", "train-full", "tiny", "", "float32", 1, 2, 0, 1.0, 0)
    assert comparison(train, [{"loss": 3.0}], [{"loss": 3.000009}])["passed"]
    assert not comparison(train, [{"loss": 3.0}], [{"loss": 3.00002}])["passed"]


def test_ratios_pair_the_measurements_of_a_round() -> None:
    from benchmarks.report import ratios
    from benchmarks.work import Job

    jobs = [Job(impl, "train-full", "tiny", "", "float32", 1, 2, 0, 1.0, 0) for impl in ("transformers", "ours")]
    slow = [{"seconds": s, "cpu_seconds": s, "peak_rss_mb": 100.0} for s in (4.0, 40.0, 6.0)]
    fast = [{"seconds": s, "cpu_seconds": s, "peak_rss_mb": 50.0} for s in (2.0, 10.0, 2.0)]
    by = {record["of"]: record for record in ratios(jobs, [slow, fast])}
    assert (by["seconds"]["median"], by["seconds"]["min"], by["seconds"]["max"]) == (3.0, 2.0, 4.0)
    assert by["peak_rss_mb"]["median"] == 2.0


def test_the_batch_is_the_harness_own() -> None:
    """Our adapter's batch marks the same frames, rows and codes as the arrays it is made of."""
    from benchmarks.ours import batch_of
    from benchmarks.work import training_batch

    arrays = training_batch("tiny", 2, 1 / 16)
    batch = batch_of(arrays)
    assert batch.shape == (2, 165)
    assert (batch.audio_at[[0, 124, 125]] == [40, 164, 205]).all()
    assert (batch.codes[batch.targets].reshape(arrays["codes"].shape) == arrays["codes"]).all()
    assert len(batch.depth) == arrays["depth_frames"].sum() == 16
    assert (arrays["depth_frames"].ravel()[batch.depth]).all()
