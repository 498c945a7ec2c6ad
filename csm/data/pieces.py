"""Pieces: runs of neighbouring words, few and cut where speakers pause."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from csm.data.alignment import Word

SHORTEST_SECONDS = 2.0  # a piece below it is avoided where the words allow
PAUSE_SECONDS = 0.3  # a cut in a pause of this length costs nothing
MARGIN_SECONDS = 0.25  # of what lies outside the words, kept at the ends of a piece


def edges(words: Sequence[Word], part: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Where a piece begins that begins with each word, and where one ends that ends with it.

    Neighbours meet in the middle of the pause between them; of a long pause each keeps the margin alone.
    """
    begins, ends = [max(part[0], words[0].start - MARGIN_SECONDS)], list[float]()
    for word, following in pairwise(words):
        middle = (word.end + following.start) / 2
        ends.append(min(middle, word.end + MARGIN_SECONDS))
        begins.append(max(middle, following.start - MARGIN_SECONDS))
    return begins, [*ends, min(part[1], words[-1].end + MARGIN_SECONDS)]


def divide(
    words: Sequence[Word], begins: Sequence[float], ends: Sequence[float], longest: float
) -> list[tuple[int, int]]:
    """The words in runs `(first, after the last)` of at most `longest` seconds: few, cut in pauses, none very short.

    The cheapest division by dynamic programming. A word longer than `longest` is a run of its own.
    """
    costs, origin = [0.0], [0]
    for stop in range(1, len(words) + 1):
        best, at = float("inf"), stop - 1
        for start in range(stop - 1, -1, -1):
            seconds = ends[stop - 1] - begins[start]
            if seconds > longest and start < stop - 1:
                break
            cost = costs[start] + 1 + _short_cost(seconds) + (_cut_cost(words, start) if start else 0)
            if cost < best:
                best, at = cost, start
        costs.append(best)
        origin.append(at)
    spans, stop = list[tuple[int, int]](), len(words)
    while stop:
        spans.insert(0, (origin[stop], stop))
        stop = origin[stop]
    return spans


def _short_cost(seconds: float) -> float:
    return 2 * max(0.0, 1 - seconds / SHORTEST_SECONDS)


def _cut_cost(words: Sequence[Word], at: int) -> float:
    """Nothing in a pause, four pieces' worth where one word runs into the next."""
    pause = max(0.0, words[at].start - words[at - 1].end)
    return 4 * max(0.0, 1 - pause / PAUSE_SECONDS) ** 2
