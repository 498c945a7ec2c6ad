"""From rounds to records: one flat JSON line for a measurement, for a ratio and for a check."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from benchmarks.work import Job

FRAME_SECONDS = 0.08
LOSS_TOLERANCE = 1e-5
RATIOS = ("seconds", "cpu_seconds", "first_frame_seconds", "peak_rss_mb", "grown_rss_mb")

Rounds = list[dict[str, Any]]


def measurement(job: Job, rounds: Rounds) -> dict[str, Any]:
    """One implementation's rounds: medians of times, the highest memory."""

    def each(key: str) -> list[float]:
        return [result[key] for result in rounds]

    seconds, batch = median(each("seconds")), job.batch
    record = {key: value for key, value in asdict(job).items() if key not in ("folder", "frames", "decoder_fraction")}
    record |= {"rounds": len(rounds), "seconds": seconds}
    record |= {"seconds_min": min(each("seconds")), "seconds_max": max(each("seconds"))}
    record |= {"cpu_seconds": median(each("cpu_seconds"))}
    record |= {"loaded_rss_mb": rounds[0]["loaded_rss_mb"], "peak_rss_mb": max(each("peak_rss_mb"))}
    record |= {"grown_rss_mb": max(each("grown_rss_mb"))}
    if not job.generates:
        return record | {"decoder_fraction": job.decoder_fraction, "loss": rounds[0]["loss"]}
    first = median(each("first_frame_seconds"))
    return record | {
        "frames": job.frames,
        "first_frame_ms": 1000 * first,
        "ms_per_frame": 1000 * (seconds - first) / max(job.frames - 1, 1),
        "frames_per_s": batch * job.frames / seconds,
        "real_time_factor": seconds / (job.frames * FRAME_SECONDS),
    }


def ratios(jobs: Sequence[Job], results: Sequence[Rounds]) -> Iterator[dict[str, Any]]:
    """The first implementation over each other one, round by round: above 1 the other is faster, or smaller."""
    for job, rounds in zip(jobs[1:], results[1:], strict=True):
        for key in RATIOS:
            if key not in rounds[0]:
                continue
            quotients = [first[key] / other[key] for first, other in zip(results[0], rounds, strict=True)]
            yield {
                "ratio": f"{jobs[0].impl} / {job.impl}",
                "work": job.work,
                "of": key,
                "median": median(quotients),
                "min": min(quotients),
                "max": max(quotients),
            }


def comparison(job: Job, expected: Rounds, found: Rounds) -> dict[str, Any]:
    """What a check says: greedy codes are equal, or losses over a few updates are within the tolerance."""
    record = {"check": job.work, "impl": job.impl, "config": job.config, "dtype": job.dtype, "batch": job.batch}
    if job.generates:
        codes, others = np.array(expected[0]["codes"]), np.array(found[0]["codes"])
        wrong = (codes != others).any(-1).any(0)
        return record | {
            "passed": not wrong.any(),
            "frames": job.frames,
            "different_codes": int((codes != others).sum()),
            "first_different_frame": int(wrong.argmax()) if wrong.any() else None,
            "distinct_codes": len(np.unique(codes)),
        }
    worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(expected, found, strict=True))
    return record | {
        "passed": worst <= LOSS_TOLERANCE,
        "decoder_fraction": job.decoder_fraction,
        "worst_difference": worst,
        "losses": [round_["loss"] for round_ in expected],
    }


def show(record: dict[str, Any]) -> None:
    """Print one line."""
    rounded = {key: round(value, 7) if isinstance(value, float) else value for key, value in record.items()}
    print(json.dumps(rounded, default=bool), flush=True)
