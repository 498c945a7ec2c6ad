"""Which of the processes that torchrun started this one is, read from the environment that it sets."""

from __future__ import annotations

import os
from dataclasses import dataclass

from csm.errors import CsmError


@dataclass(frozen=True)
class Place:
    """`rank` of `size` processes, and of those on this machine `local_rank` of `local_size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def own_place() -> Place:
    """This process's place; the only one where torchrun did not start it.

    Raises:
        CsmError: torchrun's variables contradict each other or are no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = [os.environ.get(name) for name in names]
    if found[1] is None or "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    if not all(value is not None and value.isdecimal() for value in found):
        raise CsmError(f"torchrun's variables {', '.join(names)} are not all numbers.", "Start with torchrun anew.")
    place = Place(*(int(value or 0) for value in found))
    if place.rank >= place.size or place.local_rank >= place.local_size:
        raise CsmError(f"torchrun's variables make this process {place.rank} of {place.size}.", "Start anew.")
    return place
