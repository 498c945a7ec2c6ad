"""How much memory there is to train in, and giving back what a probe took."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int:
    """Bytes that this process may hold: on a GPU what it holds and what is free, else the same of main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return _resident() + free_memory()


def release_memory(device: torch.device) -> None:
    """Give back what is no longer used, and measure peaks anew where the device can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def free_memory() -> int:
    """Bytes of main memory that are free, or soon are, to this process: the system's, and its cgroup's."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    try:
        limit, used = (CGROUP / "memory.max").read_text().strip(), int((CGROUP / "memory.current").read_text())
        cached = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())["file"]
        if limit != "max":
            free.append(int(limit) - used + int(cached))
    except (OSError, KeyError, ValueError):
        pass  # no cgroup of version 2
    return min(free)


def _resident() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0
