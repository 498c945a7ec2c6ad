"""One implementation in a process of its own, which imports only what that implementation imports.

So its peak memory is its own, and rounds of several can alternate, one computing at a time.

Run as a program it serves: load, warm up, say "ready", then one round for each line on stdin, one JSON line each.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.work import Job, Peer, round_of_work

ADAPTERS = {
    "transformers": "python:benchmarks.transformers_peer:load",
    "ours": "python:benchmarks.ours:load",
}


class Worker:
    """The near end: starts the process and waits until it is ready."""

    def __init__(self, job: Job):
        self.job = job
        threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(job))]
        self.process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | threads
        )
        self.loaded = json.loads(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.job.impl} failed at {self.job.work}; what it said stands above.")
        return line

    def round(self) -> dict[str, Any]:
        """Let it work once."""
        print(file=self.process.stdin, flush=True)
        return self.loaded | json.loads(self._answer())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def run_rounds(jobs: Sequence[Job], rounds: int) -> list[list[dict[str, Any]]]:
    """Results (implementations x rounds): one round of each in turn, so that a busy minute falls on all of them."""
    workers = [Worker(job) for job in jobs]
    by_round = [[worker.round() for worker in workers] for _ in range(rounds)]
    for worker in workers:
        worker.close()
    return [list(results) for results in zip(*by_round, strict=True)]


def load_peer(job: Job) -> Peer:
    """The adapter's peer: a name in ADAPTERS or python:MODULE:FUNCTION."""
    place = ADAPTERS.get(job.impl, job.impl).split(":")
    if len(place) != 3 or place[0] != "python":
        sys.exit(f"{job.impl!r} is not one of {', '.join(ADAPTERS)}, python:MODULE:FUNCTION.")
    return getattr(importlib.import_module(place[1]), place[2])(job.folder, job.dtype, job.threads)


def serve(job: Job) -> None:
    """The far end. Answers go to the real stdout alone; whatever the implementation prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer = load_peer(job)
    peer.prepare(job.work)
    loaded = {"loaded_rss_mb": memory_mb("VmRSS")}
    do_round = round_of_work(job, peer)
    try:
        for _ in range(job.warmup):
            do_round()
        print(json.dumps(loaded), file=answers)
        for _ in sys.stdin:
            done, peak = do_round(), memory_mb("VmHWM")
            grown = {"peak_rss_mb": peak, "grown_rss_mb": peak - loaded["loaded_rss_mb"]}
            print(json.dumps(done | grown), file=answers)
    except NotImplementedError as missing:
        sys.exit(f"{job.impl}: {missing}")


def memory_mb(kind: str) -> float:
    """VmRSS now or VmHWM at its highest, of this process alone; elsewhere than on Linux the highest for both."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(kind))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


if __name__ == "__main__":
    serve(Job(**json.loads(sys.argv[1])))
