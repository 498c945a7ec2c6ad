"""Whose turns are learned: an allow-list or a deny-list over the speakers of the data, and no turn of weight 0. All others
are context only."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from csm.errors import CsmError


def learned_speakers(present: Iterable[int], masked: Collection[int], only: Collection[int]) -> set[int]:
    """The speakers whose turns carry loss: those `only` names, else all that `masked` does not.

    Raises:
        CsmError: a list names a speaker that the data have not, or nobody is left.
    """
    there = set(present)
    named = ", ".join(map(str, sorted(there)))
    for flag, ids in (("mask_speaker_ids", masked), ("only_speaker_ids", only)):
        strangers = sorted(set(ids) - there)
        if strangers:
            raise CsmError(f"{flag} names {', '.join(map(str, strangers))}; the data have speakers {named}.")
    left = there & set(only) if only else there - set(masked)
    if not left:
        raise CsmError(f"every speaker of the data ({named}) is masked: nothing would be learned.")
    return left
