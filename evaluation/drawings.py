"""Small drawings for a page, as text: waveform, pitch over the reference's, mel spectrogram, a score over checkpoints."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from csm.audio import resample
from evaluation.measures import fault
from evaluation.pitch import SHORTEST_SECONDS, track
from evaluation.speaker import RATE, mel_power

WIDTH, WAVE_HEIGHT, PITCH_HEIGHT = 320, 40, 60
CURVE_WIDTH, CURVE_HEIGHT = 420, 170


@dataclass(frozen=True)
class Point:
    """One system's score: where it stands, its value, and the ends of its interval or None."""

    name: str
    value: float
    interval: tuple[float, float] | None


def waveform(wave: np.ndarray) -> str:
    """The wave's outline as SVG, louder is taller; `wave` is `(samples,)`."""
    if len(wave) == 0:
        return ""
    columns = np.array_split(np.nan_to_num(wave), min(WIDTH, len(wave)))
    middle = WAVE_HEIGHT / 2
    tops = [(x, middle - middle * float(np.clip(part.max(), 0, 1))) for x, part in enumerate(columns)]
    bottoms = [(x, middle - middle * float(np.clip(part.min(), -1, 0))) for x, part in enumerate(columns)]
    points = " ".join(f"{x},{y:.1f}" for x, y in [*tops, *reversed(bottoms)])
    return _svg(WIDTH, WAVE_HEIGHT, f'<polygon class="wave" points="{points}"/>', "waveform")


def spectrogram(wave: np.ndarray, rate: int) -> str:
    """The mel spectrogram as a canvas with its bytes, 40 bands by 20 ms, drawn by the page; 60 dB from black to white."""
    if fault(wave, rate):
        return ""
    power = mel_power(resample(np.asarray(wave, dtype=np.float32), rate, RATE))[::2]
    decibels = 10 * np.log10(power / max(float(power.max()), 1e-12) + 1e-9)
    pixels = np.clip((decibels + 60) / 60 * 255, 0, 255).astype(np.uint8)
    data = base64.b64encode(pixels.tobytes()).decode()
    frames, bands = pixels.shape
    return f'<canvas class="mel" width="{frames}" height="{bands}" data-mel="{data}" aria-label="mel spectrogram"></canvas>'


def pitch_contour(wave: np.ndarray, rate: int, reference: tuple[np.ndarray, int] | None) -> str:
    """Pitch in semitones over the sound's share of time, the reference's behind it where there is one."""
    sounds = [found for found in ((wave, rate), reference) if found is not None]
    lines = [_melody(*sound) for sound in sounds]
    heights = np.concatenate([line[1] for line in lines]) if lines else np.array([])
    if len(heights) < 2:
        return ""
    low, high = float(heights.min()) - 1, float(heights.max()) + 1
    marks = []
    for kind, (places, semitones) in zip(("own", "reference"), lines, strict=False):
        dots = "".join(
            f'<circle cx="{x * WIDTH:.1f}" cy="{PITCH_HEIGHT * (high - y) / (high - low):.1f}" r="1.4"/>'
            for x, y in zip(places[::2], semitones[::2], strict=True)
        )
        marks.append(f'<g class="{kind}">{dots}</g>')
    return _svg(WIDTH, PITCH_HEIGHT, "".join(reversed(marks)), "pitch")


def curve(title: str, points: Sequence[Point], lines: Sequence[tuple[str, float]] = ()) -> str:
    """A score by system, in order, with its intervals; `lines` are levels to compare with, such as base and ceiling."""
    ends = [end for point in points for end in (point.interval or (point.value,))]
    levels = [*(point.value for point in points), *ends, *(level for _, level in lines)]
    low, high = min(levels), max(levels)
    spare = 0.08 * (high - low) or 0.05
    low, high = low - spare, high + spare
    left, right, bottom, top = 52, CURVE_WIDTH - 96, CURVE_HEIGHT - 26, 10

    def x(number: int) -> float:
        return left + (right - left) * (number + 0.5) / len(points)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = [f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>']
    for level in (low + spare, high - spare):
        parts.append(f'<text class="tick" x="{left - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.3g}</text>')
    for (name, level), place in zip(lines, _apart([y(level) for _, level in lines]), strict=True):
        parts.append(f'<line class="level" x1="{left}" y1="{y(level):.1f}" x2="{right}" y2="{y(level):.1f}"/>')
        parts.append(f'<text class="tick" x="{right + 6}" y="{place + 4:.1f}">{html.escape(name)}</text>')
    for number, point in enumerate(points):
        told = f"{point.name}: {point.value:.4g}"
        if point.interval:
            parts.append(
                f'<line class="interval" x1="{x(number):.1f}" y1="{y(point.interval[0]):.1f}" '
                f'x2="{x(number):.1f}" y2="{y(point.interval[1]):.1f}"/>'
            )
            told += f" ({point.interval[0]:.4g} to {point.interval[1]:.4g})"
        parts.append(
            f'<circle class="point" cx="{x(number):.1f}" cy="{y(point.value):.1f}" r="4"><title>{html.escape(told)}'
            "</title></circle>"
        )
        if number in (0, len(points) - 1):
            parts.append(
                f'<text class="tick" x="{x(number):.1f}" y="{bottom + 16}" text-anchor="middle">'
                f"{html.escape(point.name)}</text>"
            )
    drawing = _svg(CURVE_WIDTH, CURVE_HEIGHT, "".join(parts), title)
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{drawing}</figure>"


def _melody(wave: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Where in the sound (0..1) there is voice, and its pitch in semitones over 100 Hz."""
    if fault(wave, rate) or len(wave) < SHORTEST_SECONDS * rate:
        return np.array([]), np.array([])
    times, hertz = track(wave, rate)
    voiced = hertz > 0
    return times[voiced] * rate / len(wave), 12 * np.log2(hertz[voiced] / 100)


def _apart(places: list[float], least: float = 13) -> list[float]:
    """The places, moved down where two labels would lie on each other."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for one, other in pairwise(order):
        moved[other] = max(moved[other], moved[one] + least)
    return moved


def _svg(width: int, height: int, content: str, label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">{content}</svg>'
