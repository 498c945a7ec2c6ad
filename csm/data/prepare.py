"""Long recordings without a transcript become clips with texts, `audio/` and `transcripts/`, that a person then corrects.

A recording is cut at its pauses, each clip is heard by a recogniser, and what is doubtful is dropped and counted. The work
goes on where it was stopped, be it by kill -9: a clip's files are there before the journal names it.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from csm import audio
from csm.data.doubt import SETTINGS, Hearing, Likeness, sound_doubt, text_doubt
from csm.data.faults import Fault, require_usable
from csm.data.folders import files_in
from csm.data.journal import Journal, Prepared, write_text
from csm.data.pauses import Span, find_spans
from csm.data.row import clean_text, natural_key
from csm.errors import CsmError

BLOCK_SECONDS = 600.0  # of a recording in memory at once


@dataclass(frozen=True)
class Ears:
    """Who listens: functions, so that this module needs no model.

    Args:
        speech: (wave `(samples,)`, rate) -> the probability of speech in each step, `(steps,)`.
        step_seconds: how long such a step is.
        hear: (wave, rate) -> what is said.
        likeness: of two voices; None where nobody can tell.
        name: of the recogniser, kept with the clips.
    """

    speech: Callable[[np.ndarray, int], np.ndarray]
    step_seconds: float
    hear: Callable[[np.ndarray, int], Hearing]
    likeness: Likeness | None
    name: str


@dataclass(frozen=True)
class Outcome:
    """All clips of the output folder, those of earlier runs too, and the recordings that cannot be read or hold no speech."""

    clips: list[Prepared]
    faults: list[Fault]

    @property
    def kept(self) -> list[Prepared]:
        return [clip for clip in self.clips if not clip.reason]

    def describe(self) -> str:
        """What was kept and what was dropped for which reason, in one line."""
        minutes = sum(clip.seconds for clip in self.kept) / 60
        dropped = Counter(clip.reason for clip in self.clips if clip.reason)
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        return f"{len(self.kept)} clips kept, {minutes:.1f} minutes; {dropped.total()} dropped" + (
            f" ({reasons})" if reasons else ""
        )


def prepare(
    recordings: Sequence[Path],
    output: Path,
    ears: Ears,
    language: str = "en",
    progress: Callable[[int, int, str], None] | None = None,
) -> Outcome:
    """Cut, hear and judge recordings; write what is kept into `output`.

    Args:
        recordings: sound files, and folders of them.
        output: gets `audio/NAME/0001.wav`, `transcripts/NAME/0001.txt`, and the journal.
        ears: who listens.
        language: what is spoken, kept with the clips.
        progress: called with (clips done, clips in all, the recording) after each clip of a recording.

    Raises:
        CsmError: a path is missing, two recordings have one name, `output` was begun with other settings, or no
            recording can be used.
    """
    named = name_recordings(recordings)
    settings = {"schema_version": 1, "language": language, "recogniser": ears.name, "rules": SETTINGS}
    journal, faults = Journal(output, settings), []
    for name, path in named.items():
        try:
            _prepare_one(name, path, output, ears, journal, progress)
        except CsmError as error:
            faults.append(Fault(path, error.message.removeprefix(f"{path} ").rstrip(".")))
    require_usable(len(named) - len(faults), faults)
    clips = sorted(journal.clips.values(), key=lambda clip: natural_key(clip.name))
    return Outcome(clips, faults)


def name_recordings(paths: Sequence[Path]) -> dict[str, Path]:
    """The sound files by the name that their clips' folder gets, in natural order.

    Raises:
        CsmError: a path is missing, a folder holds no sound file, or two files would share a name.
    """
    named: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = [file for file in files_in(path) if file.suffix.lower() in audio.SUFFIXES]
            if not files:
                raise CsmError(f"{path} holds no sound files.", f"Looked for {', '.join(audio.SUFFIXES)}.")
            found = [(file.relative_to(path).with_suffix("").as_posix(), file) for file in files]
        elif path.is_file():
            found = [(path.stem, path)]
        else:
            raise CsmError(f"{path} is not there.", "Name sound files, or folders of them.")
        for name, file in found:
            name = unicodedata.normalize("NFC", name)
            if name in named and not os.path.samefile(named[name], file):
                raise CsmError(f"{named[name]} and {file} would both be called {name}.", "Rename one of them.")
            named[name] = file
    return {name: named[name] for name in sorted(named, key=natural_key)}


def _prepare_one(
    name: str, path: Path, output: Path, ears: Ears, journal: Journal, progress: Callable[[int, int, str], None] | None
) -> None:
    spans = _spans(path, ears)
    if not spans:
        raise CsmError(f"{path} holds no speech.")
    for number, span in enumerate(spans, 1):
        clip = Prepared(f"{name}/{number:04d}", str(path.resolve()), span.start, span.end, "")
        known = journal.clips.get(clip.name)
        if known and (known.start, known.end) != (clip.start, clip.end):
            raise CsmError(f"{path} is not the recording that {output} was begun with.", "Give another --output.")
        if known is None:
            journal.add(_clip(clip, path, span, output, ears))
        if progress:
            progress(number, len(spans), name)


def _spans(path: Path, ears: Ears) -> list[Span]:
    seconds = audio.seconds_of(path)
    if seconds is None:
        audio.read_audio(path)  # says what is wrong with it
        raise CsmError(f"{path} does not say how long it is.")
    probabilities = []
    steps = round(BLOCK_SECONDS / ears.step_seconds)
    for number in range(int(seconds // (steps * ears.step_seconds)) + 1):
        start = number * steps * ears.step_seconds
        if seconds - start < 1e-3:
            break
        last = seconds - start <= steps * ears.step_seconds
        wave, rate = audio.read_audio(path, start or None, None if last else start + steps * ears.step_seconds)
        probabilities.append(ears.speech(wave, rate)[: None if last else steps])
    return find_spans(np.concatenate(probabilities), ears.step_seconds, seconds)


def _clip(clip: Prepared, path: Path, span: Span, output: Path, ears: Ears) -> Prepared:
    """The clip as it goes into the journal; its files are written where it is kept."""
    wave, rate = audio.read_audio(path, span.start, span.end)
    clip = replace(clip, measures={"speech": round(span.speech, 3)})
    if reason := sound_doubt(span, wave, rate, ears.likeness):
        return replace(clip, reason=reason)
    heard = ears.hear(wave, rate)
    text = clean_text(heard.text)
    figures = {"log_probability": heard.log_probability, "no_speech": heard.no_speech, "compression": heard.compression}
    clip = replace(
        clip, text=text, measures={**clip.measures, **{key: round(value, 3) for key, value in figures.items()}}
    )
    if reason := text_doubt(heard, text, span.seconds):
        return replace(clip, reason=reason)
    audio.write_wave(output / "audio" / f"{clip.name}.wav", wave, rate)
    write_text(output / "transcripts" / f"{clip.name}.txt", text + "\n")
    return clip
