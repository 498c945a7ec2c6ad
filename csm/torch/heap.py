"""What glibc does with freed memory."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Have glibc keep what a training step frees: the first touch of memory fresh from the system is a fault each page."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap too
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: and the heap does not shrink
