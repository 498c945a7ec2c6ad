"""Sample: one sound to be scored, and what can be measured of it without knowing whom it should resemble."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from csm.audio import resample
from evaluation import energy, health, pauses, pitch, rate, speaker
from evaluation.measures import Measures, fault

PROSODY_KEYS = (*rate.KEYS, *pitch.KEYS, *pauses.KEYS, *energy.KEYS)
KEYS = ("duration_seconds", *PROSODY_KEYS, *health.KEYS)
POOLED_SECONDS = 3.0  # under it a similarity says little


@dataclass(frozen=True)
class Sample:
    """One generated or recorded sound.

    Args:
        name: what the report calls it; the path below the samples' folder where it is a file.
        text: what was to be said; None where it is not known.
        seed: the seed it was drawn with; 0 for a recording. Text and seed pair it with another system's sample.
        wave: `(samples,)` mono.
        rate: samples per second.
        stop_reason: why the generation ended; None for a recording.
        language: of the text, as BCP 47 writes it.
    """

    name: str
    text: str | None
    seed: int
    wave: np.ndarray
    rate: int
    stop_reason: str | None = None
    language: str = "en"


def sounds(sample: Sample) -> Measures:
    """Duration, rate, pitch, pauses, energy and health; torch is not needed."""
    measures = Measures()
    seconds = len(sample.wave) / sample.rate if sample.rate > 0 else None
    measures.put("duration_seconds", seconds, "The sample rate is unknown.")
    for part in (
        rate.measure_rate(sample.wave, sample.rate, sample.text, sample.language),
        pitch.measure_pitch(sample.wave, sample.rate),
        pauses.measure_pauses(sample.wave, sample.rate),
        energy.measure_energy(sample.wave, sample.rate),
        health.measure_health(sample.wave, sample.rate, sample.text, sample.stop_reason, sample.language),
    ):
        measures.update(part)
    return measures


def measure(sample: Sample) -> tuple[Measures, np.ndarray | None]:
    """Everything but the similarity, and the voice `(256,)`; None with a reason under `speaker_similarity`."""
    measures, voice = sounds(sample), None
    if reason := speaker.unusable(sample.wave, sample.rate):
        measures.put("speaker_similarity", None, reason)
    else:
        voice = speaker.embed(sample.wave, sample.rate)
    return measures, voice


def row(sample: Sample, measures: Measures, heard: str | None = None) -> dict[str, Any]:
    """The sample as one flat JSON object: who it is, what was heard, the values, `reasons` for those that are None."""
    notes = []
    if 0 < sample.rate < speaker.RATE:
        notes.append(f"Recorded at {sample.rate} Hz: without the upper band the similarity reads about 0.03 too low.")
    return {
        "name": sample.name,
        "text": sample.text,
        "heard": heard,
        "seed": sample.seed,
        "stop_reason": sample.stop_reason,
        **measures.values,
        "reasons": measures.reasons,
        "notes": notes,
    }


def summarise(rows: Iterable[dict[str, Any]], more: tuple[str, ...] = ()) -> Measures:
    """The mean of every value, and of those under `more`, over the rows that have it."""
    rows = list(rows)
    means = Measures()
    for key in ("speaker_similarity", *KEYS, *more):
        present = [found[key] for found in rows if found[key] is not None]
        means.put(key, float(np.mean(present)) if present else None, "No sample has a value.")
    return means


def pooled_voices(samples: Iterable[Sample]) -> list[np.ndarray]:
    """Voices of longer pieces, each `(256,)`: samples of one seed, joined in order until a piece holds 3 s of sound.

    What is left of a seed's samples joins its last piece; a seed that does not fill one piece gives none.
    """
    by_seed: dict[int, list[np.ndarray]] = {}
    for sample in samples:
        if fault(sample.wave, sample.rate) is None:
            wave = resample(np.asarray(sample.wave, dtype=np.float32), sample.rate, speaker.RATE)
            by_seed.setdefault(sample.seed, []).append(speaker.without_silences(wave))
    return [speaker.embed(piece, speaker.RATE) for waves in by_seed.values() for piece in _joined(waves)]


def _joined(waves: list[np.ndarray]) -> Iterator[np.ndarray]:
    pieces: list[list[np.ndarray]] = [[]]
    for wave in waves:
        if _seconds(pieces[-1]) >= POOLED_SECONDS:
            pieces.append([])
        pieces[-1].append(wave)
    if len(pieces) > 1 and _seconds(pieces[-1]) < POOLED_SECONDS:
        pieces[-2].extend(pieces.pop())
    return (np.concatenate(piece) for piece in pieces if _seconds(piece) >= POOLED_SECONDS)


def _seconds(waves: list[np.ndarray]) -> float:
    return sum(len(wave) for wave in waves) / speaker.RATE
