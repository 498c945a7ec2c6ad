"""The split into training and validation: by conversation or file, those that share a recording together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from csm.data.draws import rng_for
from csm.data.sources import Source, Sources
from csm.errors import CsmError


def split(
    conversations: Sources | Sequence[Sequence[Source]],
    share: float,
    seed: int,
    of_note: Callable[[str], bool] | None = None,
) -> tuple[Sources, Sources]:
    """Train and validation sources; whole conversations (or files) go to one side, at least one to each.

    Conversations that share a recording, or are parts of one sound file, stay together, so that nothing validated on was
    trained on. Those with a text `of_note` are divided by themselves, so that both sides have some where there are two.

    Raises:
        CsmError: a validation share is wanted and there is nothing to divide.
    """
    sources = Sources.of(conversations)
    if share == 0:
        return sources, sources.take(np.zeros(0, np.int64))
    group_of = _sharing_sound(sources)
    groups = np.unique(group_of)
    if len(groups) < 2:
        raise CsmError(
            "one clip or conversation cannot be split into training and validation.", "Give more, or --val-split 0."
        )
    noted = np.zeros(0, groups.dtype)
    if of_note:
        noted = np.unique(group_of[np.fromiter(map(of_note, sources.texts), bool, len(sources))])
    strata = [part for part in (noted, np.setdiff1d(groups, noted)) if len(part) > 1] or [groups]
    held = np.isin(group_of, np.concatenate([_drawn(part, share, seed) for part in strata]))
    return sources.take(~held), sources.take(held)


def _drawn(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    return groups[rng_for(seed, 0, "", "split").permutation(len(groups))[:count]]


def _sharing_sound(sources: Sources) -> np.ndarray:
    """(N,) the group of each source: the first of all conversations that share sound, directly or by others."""
    group_of = sources.conversations
    parent: dict[int, int] = {}

    def root(number: int) -> int:
        while parent.setdefault(number, number) != number:
            parent[number] = number = parent[parent[number]]
        return number

    for column in (sources.sounds, sources.files):
        _, recording, times = np.unique(column, return_inverse=True, return_counts=True)
        shared = np.flatnonzero(times[recording] > 1)
        first: dict[int, int] = {}
        for sound, number in zip(recording[shared].tolist(), group_of[shared].tolist(), strict=True):
            one, other = sorted((root(first.setdefault(sound, number)), root(number)))
            parent[other] = one
    if not parent:
        return group_of
    roots = np.arange(int(group_of.max(initial=-1)) + 1, dtype=group_of.dtype)
    roots[list(parent)] = [root(number) for number in list(parent)]
    return roots[group_of]
