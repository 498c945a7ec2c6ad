"""The one pass over the sound files: each is read once, measured, prepared as for training, and let go again.

What is kept of a clip is under 2 kB and its fingerprint (170 bytes a second), so 100 hours of short clips fit 400 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from csm.audio import loudness, read_audio, sounding_span
from csm.data.clips import LONGEST_RECORDING_SECONDS, TRIM_BELOW_PEAK_DB, prepare_sound, text_fault
from csm.data.codes import Tokenised
from csm.data.doctor.duplicates import fingerprint
from csm.data.doctor.sound import Sound, measure_sound
from csm.data.faults import Fault
from csm.data.row import Row, is_copy
from csm.data.turns import CodedTurn
from csm.errors import CsmError

Recogniser = Callable[[np.ndarray, int], str]
"""A wave `(samples,)` and its rate -> the words heard in it."""

Embedder = Callable[[np.ndarray, int], np.ndarray | None]
"""A wave `(samples,)` and its rate -> its voice `(d,)` of length 1; None where it holds too little."""


@dataclass(frozen=True)
class Grid:
    """How the codec will see the sound: its sample rate, and code frames a second."""

    sample_rate: int
    frame_rate: float

    def frames(self, samples: int) -> int:
        """Frames of so many samples, the last one begun counted."""
        return -int(-samples * self.frame_rate // self.sample_rate)


@dataclass(frozen=True)
class Record:
    """What is known of one clip.

    Args:
        row: the clip.
        sound: its measures as it lies on disk; None where it cannot be read.
        fault: why training leaves it out; None where it takes it.
        frames: code frames; 0 with a fault.
        speech: seconds from its first sound to its last.
        digest: hash of the prepared samples.
        level: in LUFS, before training sets it to its own.
        words: fingerprint.
        voice: embedding; None without an embedder, or where the clip is too short for it.
        heard: what the recogniser heard; None without one.
    """

    row: Row
    sound: Sound | None = None
    fault: Fault | None = None
    frames: int = 0
    speech: float = 0.0
    digest: bytes = b""
    level: float | None = None
    words: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    voice: np.ndarray | None = None
    heard: str | None = None


@dataclass(frozen=True)
class Survey:
    """Records in the data's order, by conversation; faults that were found before any sound was read."""

    conversations: list[list[Record]]
    faults: list[Fault]
    grid: Grid

    @property
    def records(self) -> list[Record]:
        return [record for conversation in self.conversations for record in conversation]

    def stand_in(self) -> Tokenised:
        """The data as training will have them, one number a frame in place of the codes.

        Clips share those numbers where their prepared samples are equal, which is where their codes are: so split,
        order and number of updates are the run's.
        """
        kept = [[CodedTurn(r.row, _numbers(r)) for r in records if not r.fault] for records in self.conversations]
        faults = [*self.faults, *(record.fault for record in self.records if record.fault)]
        return Tokenised([turns for turns in kept if turns], faults, self.grid.frame_rate)


def survey(
    conversations: Sequence[Sequence[Row]],
    faults: Sequence[Fault],
    grid: Grid,
    embed: Embedder | None = None,
    recognise: Mapping[str, Recogniser] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Read every clip once.

    Args:
        conversations, faults: as `csm.data.manifest.read_data` gives them.
        grid: of the model's codec.
        embed: hears every usable clip; None leaves out what needs it.
        recognise: by language ("en", whatever the region); clips of other languages are not recognised.
        progress: called with (clips done, clips in all) after each.
    """
    total, done = sum(map(len, conversations)), 0
    found = []
    for conversation in conversations:
        records = []
        for row in conversation:
            records.append(examine(row, grid, embed, recognise))
            done += 1
            if progress:
                progress(done, total)
        found.append(records)
    return Survey(found, list(faults), grid)


def examine(
    row: Row, grid: Grid, embed: Embedder | None = None, recognise: Mapping[str, Recogniser] | None = None
) -> Record:
    """Everything about one clip; its verdict is that of `csm.data.codes.CodeCache.codes_of`."""
    try:
        wave, rate = read_audio(row.audio, row.start, row.end, LONGEST_RECORDING_SECONDS)
    except CsmError as error:
        problem = error.message.removeprefix(f"{row.audio} ").rstrip(".")
        return Record(row, fault=Fault(row.audio, problem))
    except OSError as error:
        return Record(row, fault=Fault(row.audio, f"cannot be read ({error.strerror})"))
    prepared = prepare_sound(wave, rate, grid.sample_rate)
    if isinstance(prepared, str):
        return Record(row, fault=Fault(row.audio, prepared))
    sound, frames = measure_sound(wave, rate), grid.frames(len(prepared))
    first, last = sounding_span(prepared, grid.sample_rate, TRIM_BELOW_PEAK_DB)
    speech = (last - first) / grid.sample_rate
    if fault := text_fault(row, frames / grid.frame_rate):
        return Record(row, sound, fault, speech=speech)
    ear = (recognise or {}).get(language_of(row))
    return Record(
        row, sound, None, frames, speech,
        hashlib.sha256(prepared.tobytes()).digest(),
        sound.loudness,
        fingerprint(prepared, grid.sample_rate),
        embed(wave, rate) if embed else None,
        ear(prepared, grid.sample_rate) if ear else None,
    )  # fmt: skip


def quick_survey(data: Tokenised, levels: int = 200) -> Survey:
    """What can be said of tokenised data at little cost: lengths, texts, equal codes, the loudness of some clips.

    Codes are not read: what is equal is told by the hashes that lie beside them.

    Args:
        data: what a run will learn from.
        levels: how many sound files are read for their loudness, spread over the data.
    """
    turns, records = data.turns, []
    heard = {round(place) for place in np.linspace(0, len(turns.frames) - 1, min(levels, len(turns.frames)))}
    for number, (frames, sound) in enumerate(zip(turns.frames.tolist(), turns.sounds.tolist(), strict=True)):
        row, digest = turns.row(number), sound.to_bytes(8, "little")
        level = _level(row) if number in heard else None
        records.append(Record(row, None, None, frames, frames / data.frame_rate, digest, level))
    return Survey([[record] for record in records], [], Grid(0, data.frame_rate))


def _level(row: Row) -> float | None:
    """The loudness of a clip; None where its file is gone since it was tokenised."""
    if not row.audio.is_file():
        return None
    return loudness(*read_audio(row.audio, row.start, row.end))


def language_of(row: Row) -> str:
    """The row's language without its region, in lower case."""
    return row.language.replace("_", "-").split("-")[0].lower()


def place(row: Row) -> str:
    """The clip's file, and where in it the clip lies; of a copy in the cache, what names it in the data."""
    file = str(row.audio)
    if is_copy(row.audio):
        listed = row.source if row.line is None else f"{row.source}, line {row.line}"
        file = f"the sound of {listed}" if is_copy(row.name) else f"{row.name} in {listed}"
    if row.start is None and row.end is None:
        return file
    return f"{file} ({row.start or 0:.2f} s to {'its end' if row.end is None else f'{row.end:.2f} s'})"


def _numbers(record: Record) -> np.ndarray:
    """`(1, frames)` numbers that are equal where the prepared sounds are."""
    drawn = np.random.default_rng(int.from_bytes(record.digest[:16], "little"))
    return drawn.integers(1, 2**31 - 1, (1, record.frames), dtype=np.int64)
