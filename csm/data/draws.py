"""Random draws: every choice that shapes data is a function of (seed, epoch, name, purpose)."""

from __future__ import annotations

import hashlib

import numpy as np


def rng_for(seed: int, epoch: int, name: str, purpose: str) -> np.random.Generator:
    """The generator of one choice: the same on every machine and backend."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{purpose}/{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
