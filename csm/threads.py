"""How many CPU threads to use: as many as this process may run, by its affinity, its cgroup's quota and OMP_NUM_THREADS.

A small model spends more on waiting for its threads than it gains, above all where other programs want the cores: speaking
with csm-tiny on two contended cores took ten times as long with two threads as with one.
"""

from __future__ import annotations

import os
from pathlib import Path

SPEAKING, TRAINING = 50_000_000, 10_000_000  # parameters for which one more thread pays


def useful_threads(parameters: int, training: bool) -> tuple[int, str]:
    """The number of threads that pays for a model of this size, one frame at a time or in training, and why."""
    available, why = available_threads()
    useful = max(1, parameters // (TRAINING if training else SPEAKING))
    if useful < available:
        return useful, f"enough for {parameters / 1e6:.0f} million parameters"
    return available, why


def available_threads() -> tuple[int, str]:
    """The number of threads this process may run, and why."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted), "OMP_NUM_THREADS says so"
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    if quota is not None and quota < allowed:
        return max(1, int(quota)), f"the CPU quota is {quota:g} of {allowed} cores"
    return allowed, f"{allowed} cores are free to this process"


def _cgroup_cpus() -> float | None:
    """CPUs granted by cgroup v2's cpu.max; None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)
