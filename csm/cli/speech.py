"""Hand out what was spoken: warnings first, then the file, then its path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from csm.cli.console import answer, say, warn
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.generator import Speech


def check_target(path: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if path.suffix.lower() not in (".wav", ".flac"):
        raise CsmError(f"{path} has a suffix that cannot be written.", "Use .wav or .flac.")
    if path.is_dir():
        raise CsmError(f"{path} is a folder.", "Name a .wav or .flac file.")


def hand_out(speech: Speech, path: Path) -> None:
    """Write the sound to `path`, say how it ended, and answer with the path."""
    from csm.audio import write_wave

    if speech.unread:
        warn(f"this model cannot read {' '.join(speech.unread)!r}; write the text without, numbers as words.")
    if speech.stop_reason == "length":
        warn("the model did not end by itself; the sound was cut at its length budget.")
    write_wave(path, speech.wave, speech.sample_rate)
    say(f"{speech.seconds:.2f} s, seed {speech.seed}, ended by {speech.stop_reason}")
    answer(str(path))
