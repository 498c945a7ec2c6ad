"""The figures of a survey: how much there is, of whom, how it was recorded; and what the data as a whole lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from csm.data.doctor.coverage import Coverage
from csm.data.doctor.findings import Finding
from csm.data.doctor.survey import Record, Survey

PERCENTILES = (5, 50, 95)
COMMON_WORDS = 0.02  # share of words that the dictionary may lack before it is said


@dataclass(frozen=True)
class Spread:
    """Smallest, 5th, 50th and 95th percentile and largest of a measure."""

    low: float
    p5: float
    median: float
    p95: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """The spread of the values that there are; None where there are none."""
        known = [value for value in values if value is not None]
        return cls(*map(float, np.percentile(known, (0, *PERCENTILES, 100)))) if known else None


@dataclass(frozen=True)
class Summary:
    """Figures of the clips that training would use; `clips_named` counts all that the data name.

    Minutes are of sound with its silent ends cut, as training takes it. `spreads` are by measure, its unit in the key.
    """

    clips: int
    clips_named: int
    conversations: int
    minutes: float
    speakers: dict[int, tuple[int, float]]
    rates: dict[int, int]
    languages: dict[str, int]
    spreads: dict[str, Spread | None]
    characters: int

    @property
    def hours(self) -> float:
        return self.minutes / 60


def summarise(survey: Survey) -> Summary:
    """The figures of a survey."""
    used = [record for record in survey.records if not record.fault]
    minutes, clips = Counter[int](), Counter[int]()
    for record in used:
        clips[record.row.speaker] += 1
        minutes[record.row.speaker] += record.frames / survey.grid.frame_rate / 60  # type: ignore[assignment]
    return Summary(
        clips=len(used),
        clips_named=len(survey.records),
        conversations=sum(any(not r.fault for r in records) for records in survey.conversations),
        minutes=float(sum(minutes.values())),
        speakers={speaker: (clips[speaker], float(minutes[speaker])) for speaker in sorted(clips)},
        rates=dict(sorted(Counter(r.sound.rate for r in used if r.sound).items())),
        languages=dict(Counter(r.row.language for r in used).most_common()),
        spreads=_spreads(used),
        characters=sum(len(r.row.text) for r in used),
    )


def _spreads(used: Sequence[Record]) -> dict[str, Spread | None]:
    measures: dict[str, Callable[[Record], float | None]] = {
        "duration_seconds": lambda r: r.sound.seconds if r.sound else r.speech,
        "characters_per_second": lambda r: len(r.row.text) / max(r.speech, 0.1),
        "loudness_lufs": lambda r: r.level,
        "peak_dbfs": lambda r: r.sound.peak if r.sound else None,
        "clipped_percent": lambda r: 100 * r.sound.clipped if r.sound else None,
        "snr_db": lambda r: r.sound.snr if r.sound else None,
        "leading_silence_seconds": lambda r: r.sound.leading if r.sound else None,
        "trailing_silence_seconds": lambda r: r.sound.trailing if r.sound else None,
        "bandwidth_hz": lambda r: r.sound.bandwidth if r.sound else None,
    }
    return {name: Spread.of([measure(record) for record in used]) for name, measure in measures.items()}


def too_little(
    speakers: dict[int, tuple[int, float]], preset: str, asked: tuple[float, float | None] | None
) -> list[Finding]:
    """Speakers with fewer minutes than the preset asks for; a domain counts all together.

    Args:
        speakers: clips and minutes by speaker.
        preset: its name.
        asked: the fewest minutes, and the most that help or None; None where the preset asks for nothing.
    """
    if asked is None:
        return []
    fewest, most = asked
    wanted = f"{preset} asks for {fewest:g}{f'-{most:g}' if most else ' or more'}"
    if most is None:
        minutes = sum(each for _, each in speakers.values())
        return [Finding("minutes", f"the data have {minutes:.1f} minutes; {wanted}.")] if minutes < fewest else []
    return [
        Finding("minutes", f"speaker {speaker} has {minutes:.1f} minutes; {wanted}.")
        for speaker, (_, minutes) in speakers.items()
        if minutes < fewest
    ]


def lacking(coverage: Coverage) -> list[Finding]:
    """Phones that no text holds, and words that the dictionary cannot read where they are many."""
    found = []
    if coverage.missing:
        phones = ", ".join(coverage.missing)
        found.append(Finding("phones", f"no text holds the phone{'s' * (len(coverage.missing) > 1)} {phones}."))
    unknown = sum(coverage.unknown.values())
    if unknown > COMMON_WORDS * coverage.words:
        words = ", ".join(list(coverage.unknown)[:8])
        found.append(Finding("words", f"{unknown} of {coverage.words} words are not in the dictionary: {words} ..."))
    return found
