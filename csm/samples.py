"""Fixed texts x seeds, spoken into a folder: what checkpoints are compared by. A sample that is there is not made again.

All that is missing is spoken side by side, and each sample is kept as soon as it ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from csm.audio import write_wave
from csm.generator import Generator, NothingSpokenError, Request, Speech
from csm.training.run_folder import write_json

DEFAULT_TEXTS = (
    "good morning, how are you today?",
    "please leave a message after the tone.",
    "the train to the city leaves in ten minutes.",
    "i would like a cup of tea, thank you.",
    "can you open the window for me?",
    "my phone number is five two nine four.",
)


@dataclass(frozen=True)
class SpokenSample:
    """A sample on disk and how it came about; `path` is None where nothing was spoken, and `stop_reason` says why.

    `speaker` is None where the note is an old one, which does not say.
    """

    text: str
    seed: int
    path: Path | None
    stop_reason: str
    speaker: int | None = None


def speak_samples(
    generator: Generator,
    texts: Sequence[str],
    speaker: int,
    seeds: Sequence[int],
    folder: Path,
    progress: Callable[[], None] | None = None,
) -> list[SpokenSample]:
    """Speak every text with every seed into `folder`; what was made with the same model and settings is reused.

    Args:
        generator: the model.
        texts: what to say.
        speaker: as whom.
        seeds: one sample of each text for each.
        folder: gets `NN-sS-KEY.wav` and a `.json` beside it.
        progress: called after each sample.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        (text, seed, _note_path(generator, folder, number, text, speaker, seed))
        for number, text in enumerate(texts)
        for seed in seeds
    ]
    samples = {path: sample for _, _, path in wanted if (sample := _made_before(path)) is not None}
    missing = [each for each in wanted if each[-1] not in samples]
    for _ in range(len(wanted) - len(missing)):
        if progress:
            progress()
    for number, spoken in generator.speak_each([Request(text, speaker, seed=seed) for text, seed, _ in missing]):
        samples[missing[number][-1]] = _keep(spoken, *missing[number], speaker)
        if progress:
            progress()
    return [samples[path] for _, _, path in wanted]


def _note_path(generator: Generator, folder: Path, number: int, text: str, speaker: int, seed: int) -> Path:
    settings = [generator.folder.hash, generator.backend.dtype, text, speaker, seed, asdict(generator.sampling())]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return folder / f"{number:02d}-s{seed}-{key}.json"


def _keep(spoken: Speech | NothingSpokenError, text: str, seed: int, note_path: Path, speaker: int) -> SpokenSample:
    """Write what was spoken, then the note that says so."""
    path = note_path.with_suffix(".wav") if isinstance(spoken, Speech) else None
    if isinstance(spoken, Speech):
        write_wave(note_path.with_suffix(".wav"), spoken.wave, spoken.sample_rate)
    stop_reason = spoken.stop_reason if isinstance(spoken, Speech) else spoken.message
    note = {"text": text, "seed": seed, "speaker": speaker, "spoken": path is not None, "stop_reason": stop_reason}
    write_json(note_path, note)
    return SpokenSample(text, seed, path, stop_reason, speaker)


def noted(wave_path: Path) -> SpokenSample | None:
    """What the note beside a sound says of it, where `speak_samples` made both; None for any other sound."""
    return _made_before(wave_path.with_suffix(".json"))


def spoken_before(folder: Path, texts: Sequence[str], seeds: Sequence[int], speaker: int) -> list[SpokenSample] | None:
    """What stands in a folder of `speak_samples`, of these texts and seeds in order; None where one is missing.

    Others may have spoken there too: `csm evaluate RUN --speaker N` does.
    """
    notes = [note for path in sorted(folder.glob("*.json")) if (note := _made_before(path)) is not None]
    notes.sort(
        key=lambda note: note.speaker is not None
    )  # the last of a text and seed counts: one that says whose it is
    known = {(note.text, note.seed): note for note in notes if note.speaker in (None, speaker)}
    wanted = [(text, seed) for text in texts for seed in seeds]
    return [known[key] for key in wanted] if all(key in known for key in wanted) else None


def _made_before(note_path: Path) -> SpokenSample | None:
    """What a note says of a sample that is whole; None where note or sound are missing or damaged."""
    wave_path = note_path.with_suffix(".wav")
    try:
        note = json.loads(note_path.read_text())
        path = wave_path if note["spoken"] else None
        read = SpokenSample(note["text"], note["seed"], path, note["stop_reason"], note.get("speaker"))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return None if read.path is not None and not read.path.is_file() else read
