"""From the probability of speech along a recording to clips of 2 to 15 s that begin and end in pauses."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from csm.data.alignment import Word
from csm.data.pieces import divide, edges

SHORTEST_SECONDS, LONGEST_SECONDS = 2.0, 15.0
SPEECH, STILL_SPEECH = 0.5, 0.35  # probability at which speech begins, and below which it ends
SHORTEST_SOUND_SECONDS = 0.1
SHORTEST_PAUSE_SECONDS = 0.1
APART_SECONDS = 0.7  # a pause that parts clips even where they would fit together
FARTHEST_SECONDS = 1.5  # a pause across which a clip that is too short is joined to its neighbour


@dataclass(frozen=True)
class Span:
    """A part of a recording in seconds, and the share of it in which somebody speaks."""

    start: float
    end: float
    speech: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def find_spans(probabilities: np.ndarray, step_seconds: float, seconds: float) -> list[Span]:
    """The clips of a recording in order; some may still be shorter or longer than asked, where there is no pause.

    Args:
        probabilities: `(steps,)` that somebody speaks.
        step_seconds: how long a step is.
        seconds: how long the recording is.
    """
    sounds = _sounds(probabilities, step_seconds)
    if not sounds:
        return []
    begins, ends = edges(sounds, (0.0, seconds))
    groups: list[list[int]] = [[0]]
    for number in range(1, len(sounds)):
        if sounds[number].start - sounds[number - 1].end > APART_SECONDS:
            groups.append([])
        groups[-1].append(number)
    runs = []
    for group in groups:
        first, after = group[0], group[-1] + 1
        parts = divide(sounds[first:after], begins[first:after], ends[first:after], LONGEST_SECONDS)
        runs += [(first + start, first + stop) for start, stop in parts]
    return [_span(sounds, begins, ends, run) for run in _join_short(sounds, begins, ends, runs)]


def _sounds(probabilities: np.ndarray, step: float) -> list[Word]:
    """Stretches of speech with more than a plosive's closure between them."""
    state, states = False, []
    for value in probabilities.tolist():
        state = value >= (STILL_SPEECH if state else SPEECH)
        states.append(state)
    found: list[Word] = []
    at = 0
    for speaks, same in groupby(states):
        length = len(list(same))
        start, end = at * step, (at + length) * step
        at += length
        if not speaks or end - start < SHORTEST_SOUND_SECONDS:
            continue
        if found and start - found[-1].end < SHORTEST_PAUSE_SECONDS:
            start = found.pop().start
        found.append(Word("", start, end))
    return found


def _join_short(
    sounds: list[Word], begins: list[float], ends: list[float], runs: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Runs that are too short, joined to the nearer neighbour where both fit into one clip."""
    runs = list(runs)
    at = 0
    while at < len(runs):
        start, stop = runs[at]
        options = []
        if ends[stop - 1] - begins[start] < SHORTEST_SECONDS:
            for one, other in ((at - 1, at), (at, at + 1)):
                if one >= 0 and other < len(runs):
                    pause = sounds[runs[other][0]].start - sounds[runs[one][1] - 1].end
                    seconds = ends[runs[other][1] - 1] - begins[runs[one][0]]
                    if pause <= FARTHEST_SECONDS and seconds <= LONGEST_SECONDS:
                        options.append((pause, one))
        if options:
            one = min(options)[1]
            runs[one : one + 2] = [(runs[one][0], runs[one + 1][1])]
            at = one
        else:
            at += 1
    return runs


def _span(sounds: list[Word], begins: list[float], ends: list[float], run: tuple[int, int]) -> Span:
    start, end = begins[run[0]], ends[run[1] - 1]
    spoken = sum(sound.end - sound.start for sound in sounds[run[0] : run[1]])
    return Span(round(start, 3), round(end, 3), spoken / (end - start))
