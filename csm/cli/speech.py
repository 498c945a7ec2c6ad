"""Hand out what was spoken: warnings first, then the file, then its path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from csm.cli.console import answer, say, warn
from csm.cli.target import writable
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.generator import Speech


def check_target(path: Path) -> Path:
    """The sound file that will be written, links followed; what could not be written is refused before the work."""
    target = writable(path)
    for named in (path, target):
        if named.suffix.lower() not in (".wav", ".flac"):
            raise CsmError(f"{named} has a suffix that cannot be written.", "Use .wav or .flac.")
    return target


def hand_out(speech: Speech, path: Path) -> None:
    """Write the sound to `path` or where that leads, say how it ended, and answer with the path."""
    from csm.audio import write_wave

    if speech.unread:
        warn(f"this model cannot read {' '.join(speech.unread)!r}; write the text without, numbers as words.")
    if speech.stop_reason == "length":
        warn("the model did not end by itself; the sound was cut at its length budget.")
    write_wave(check_target(path), speech.wave, speech.sample_rate)
    say(f"{speech.seconds:.2f} s, seed {speech.seed}, ended by {speech.stop_reason}")
    answer(str(path))
