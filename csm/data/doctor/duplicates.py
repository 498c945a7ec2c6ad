"""Recordings that are one sound under several names: equal samples, or nearly equal after coding, gain or another cut.

Nearly equal is found by Haitsma and Kalker's fingerprint (A Highly Robust Audio Fingerprinting System, ISMIR 2002): 32 bits
every 23 ms, each the sign of a difference of energies across time and frequency. Clips that share whole words of it at
one offset are compared bit by bit. It costs 170 bytes a second of sound. Limit: a part of a clip is no duplicate of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csm.audio import resample

RATE = 5512
WINDOW, HOP, BANDS = 2048, 128, 33  # 0.37 s every 23 ms
LOWEST_HZ, HIGHEST_HZ = 300.0, 2000.0
NEIGHBOURS = 8  # entries of equal bits that are looked at: common words of silence make no pairs
SHARED_WORDS = 3
BIT_ERRORS = 0.25  # share at which two clips are one; the paper takes 0.35 for three seconds, chance is 0.5
OVERLAP = 0.85  # of the longer of two


def fingerprint(wave: np.ndarray, rate: int) -> np.ndarray:
    """The words `(frames - 1,)` uint32 of a wave; empty below 0.4 s."""
    wave = resample(np.asarray(wave, np.float32), rate, RATE)
    if len(wave) < WINDOW + HOP:
        return np.zeros(0, np.uint32)
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32), axis=1)) ** 2
    edges = np.geomspace(LOWEST_HZ, HIGHEST_HZ, BANDS + 1) * WINDOW / RATE
    energy = np.add.reduceat(power, np.round(edges).astype(int), axis=1)[:, :BANDS]
    slope = energy[:, :-1] - energy[:, 1:]
    bits = slope[1:] > slope[:-1]
    return (bits.astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)


def same_sounds(digests: Sequence[bytes], prints: Sequence[np.ndarray]) -> list[tuple[list[int], bool]]:
    """Groups of clips that are one recording.

    Args:
        digests: a hash of each clip's samples.
        prints: each clip's fingerprint.

    Returns:
        groups of two or more numbers of clips, ascending, and whether the samples of all are equal.
    """
    parent = list(range(len(digests)))
    first: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        _join(parent, first.setdefault(digest, number), number)
    originals = sorted(first.values())
    for a, b, offset in _candidates([prints[i] for i in originals]):
        one, other = originals[a], originals[b]
        if _root(parent, one) != _root(parent, other) and _alike(prints[one], prints[other], offset):
            _join(parent, one, other)
    groups: dict[int, list[int]] = {}
    for number in range(len(digests)):
        groups.setdefault(_root(parent, number), []).append(number)
    return [(group, len({digests[i] for i in group}) == 1) for group in groups.values() if len(group) > 1]


def _candidates(prints: Sequence[np.ndarray]) -> list[tuple[int, int, int]]:
    """(a, b, offset): clips that share at least three words at one offset, frame t of a with frame t - offset of b."""
    if not prints:
        return []
    words = np.concatenate(prints)
    clips = np.repeat(np.arange(len(prints), dtype=np.int32), [len(p) for p in prints])
    times = np.concatenate([np.arange(len(p), dtype=np.int32) for p in prints])
    order = np.argsort(words, kind="stable")
    words, clips, times = words[order], clips[order], times[order]
    found = []
    for shift in range(1, NEIGHBOURS):
        equal = (words[shift:] == words[:-shift]) & (clips[shift:] != clips[:-shift])
        at = np.flatnonzero(equal)
        found.append(np.stack([clips[at], clips[at + shift], times[at] - times[at + shift]], axis=1))
    pairs, counts = np.unique(np.concatenate(found), axis=0, return_counts=True)
    return [(int(a), int(b), int(o)) for a, b, o in pairs[counts >= SHARED_WORDS]]


def _alike(a: np.ndarray, b: np.ndarray, offset: int) -> bool:
    start, stop = max(0, offset), min(len(a), len(b) + offset)
    if stop - start < OVERLAP * max(len(a), len(b)):
        return False
    wrong = a[start:stop] ^ b[start - offset : stop - offset]
    return np.unpackbits(wrong.view(np.uint8)).mean() < BIT_ERRORS


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = number = parent[parent[number]]
    return number


def _join(parent: list[int], a: int, b: int) -> None:
    one, other = sorted((_root(parent, a), _root(parent, b)))
    parent[other] = one
