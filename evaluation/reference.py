"""Reference: recordings of the target, their mean voice, and how well they resemble each other: the ceiling.

A real voice does not score 1 against itself. Three figures say what is possible: `speaker_similarity` (each recording
against the mean of the others: what one more short sample of the same person would get), `speaker_similarity_pooled`
(the same for pieces of 3 s and more) and `self_similarity` (the means of two halves: what a perfect system would reach
with many samples).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from csm.audio import SUFFIXES, read_audio
from csm.errors import CsmError
from evaluation.judges import KEYS, Judges
from evaluation.likeness import Contour, contour
from evaluation.sample import POOLED_SECONDS, Sample, measure, pooled_voices, row, summarise
from evaluation.speaker import mean_embedding, similarity
from evaluation.style import Style, measure_style, own_distance

ONE_RECORDING = "The reference has one usable recording; a ceiling needs two."


@dataclass(frozen=True)
class Reference:
    """What the samples are compared with.

    Args:
        name: where the recordings come from, as the report says it.
        embedding: the voice, `(256,)` float32 of length 1.
        rows: one flat object per recording, as `score_sample` gives them.
        summary: means over the recordings, with the three similarities of this file's head.
        reasons: a sentence for every None in the summary.
        skipped: files that could not be used, with the reason.
        contours: of each text one recording's contour, where it has one.
        other_style: the way of speaking to be reached, where it is not that of the recordings.
    """

    name: str
    embedding: np.ndarray
    rows: list[dict[str, Any]]
    summary: dict[str, float | None]
    reasons: dict[str, str]
    skipped: dict[str, str]
    contours: dict[str, Contour] = field(default_factory=dict)
    other_style: Style | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, judges: Judges | None = None) -> Reference:
        """Read every sound file below the folder, with its text where there is one.

        The text of `a/b.wav` is `a/b.txt`, or the file of the same relative path in a folder `transcripts` beside
        `a` or beside a folder above it, up to the one that is given. Files that cannot be read are skipped and named.

        Raises:
            CsmError: the folder is missing, holds no sound file, or none of them holds half a second of speech.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CsmError(f"{folder} is not a folder.", "Give the folder that holds recordings of the target voice.")
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not paths:
            raise CsmError(f"{folder} holds no sound file.", f"Readable are {', '.join(SUFFIXES)}.")
        recordings, skipped, language = [], {}, (judges or Judges()).language
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                recordings.append(Sample(name, transcript(path, folder), 0, *read_audio(path), language=language))
            except CsmError as error:
                skipped[name] = error.message
        return cls.from_recordings(str(folder), recordings, skipped, judges)

    @classmethod
    def from_recordings(
        cls,
        name: str,
        recordings: Iterable[Sample],
        skipped: dict[str, str] | None = None,
        judges: Judges | None = None,
    ) -> Reference:
        """The reference that these recordings make; those without a usable voice are skipped and named.

        Raises:
            CsmError: none of them has one.
        """
        used, measured, voices, rows, skipped = [], [], [], [], dict(skipped or {})
        for recording in recordings:
            measures, voice = measure(recording)
            if voice is None:
                skipped[recording.name] = measures.reasons["speaker_similarity"]
                continue
            used.append(recording)
            measured.append(measures)
            voices.append(voice)
        if not voices:
            raise _no_voice(name, skipped)
        judges = judges or Judges()
        for recording, measures, value in zip(used, measured, _against_the_others(voices), strict=True):
            measures.put("speaker_similarity", value, ONE_RECORDING)
            told, heard = judges.ask(recording)
            measures.update(told)
            rows.append(row(recording, measures, heard))
        summary = summarise(rows, KEYS)
        pooled = _against_the_others(pooled_voices(used))
        summary.put("speaker_similarity_pooled", _mean(pooled), "The recordings make less than two pieces of 3 s.")
        halves = similarity(mean_embedding(voices[::2]), mean_embedding(voices[1::2])) if len(voices) > 1 else None
        summary.put("self_similarity", halves, ONE_RECORDING)
        summary.put("style_distance", own_distance(rows), "A yardstick of style takes eight recordings.")
        contours = {
            (r.text or "").strip(): found for r in reversed(used) if r.text and (found := contour(r.wave, r.rate))
        }
        return cls(name, mean_embedding(voices), rows, summary.values, summary.reasons, skipped, contours)

    @property
    def texts(self) -> list[str]:
        """What the recordings say, where it is known, each text once and in order: what samples should say too."""
        return list(dict.fromkeys(found["text"] for found in self.rows if found["text"] is not None))

    @property
    def style(self) -> Style:
        """The way of speaking that samples are held against."""
        return self.other_style or Style(self.name, self.rows)

    def with_style(self, other: Reference) -> Reference:
        """The same voice with another target of style: its `style_distance` is the recordings' own from that target."""
        target = Style(other.name, other.rows)
        own = measure_style(self.rows, target.rows)
        reasons = {key: text for key, text in self.reasons.items() if key != "style_distance"} | {
            key: text for key, text in own.reasons.items() if key == "style_distance"
        }
        summary = self.summary | {"style_distance": own.values["style_distance"]}
        return replace(self, summary=summary, reasons=reasons, other_style=target)

    @property
    def notes(self) -> list[str]:
        """What whoever reads the scores should know of the recordings."""
        seconds = sum(found["duration_seconds"] for found in self.rows)
        if seconds >= POOLED_SECONDS:
            return []
        return [
            f"The reference holds {seconds:.1f} s of sound: under {POOLED_SECONDS:.0f} s a similarity says little, and it has "
            "no ceiling in longer pieces."
        ]

    def to_json(self) -> dict[str, Any]:
        """The `reference` part of `scores.json`: no wave and no embedding, which is personal data."""
        return {
            "name": self.name,
            "recordings": len(self.rows),
            "texts": len(self.texts),
            "seconds": sum(found["duration_seconds"] for found in self.rows),
            "summary": self.summary,
            "reasons": self.reasons,
            "skipped": self.skipped,
            "style": self.style.to_json(),
            "notes": self.notes,
            "samples": self.rows,
        }


def transcript(path: Path, folder: Path) -> str | None:
    """What is said in a sound file below `folder`, or None where no text file says so.

    Raises:
        CsmError: the text file is not UTF-8.
    """
    places = [path.with_suffix(".txt")]
    for above in path.parents:
        places.append(above.parent / "transcripts" / path.relative_to(above).with_suffix(".txt"))
        if above == folder:
            break
    for place in places:
        if place.is_file():
            try:
                return place.read_text(encoding="utf-8-sig").strip() or None
            except UnicodeDecodeError as error:
                raise CsmError(f"{place} is not UTF-8 text.", "Save it as UTF-8.") from error
    return None


def _no_voice(name: str, skipped: dict[str, str]) -> CsmError:
    which = "; ".join(f"{file}: {reason.rstrip('.')}" for file, reason in list(skipped.items())[:3])
    return CsmError(
        f"{name} holds no recording with a usable voice ({which or 'it is empty'}).",
        "Give recordings of the target voice, of half a second or more of speech each.",
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _against_the_others(voices: Sequence[np.ndarray]) -> list[float | None]:
    """Each voice's similarity to the mean of all the others; None where there are no others."""
    if len(voices) < 2:
        return [None] * len(voices)
    total = np.sum(voices, axis=0, dtype=np.float64)
    return [similarity(voice, mean_embedding([total - voice])) for voice in voices]
