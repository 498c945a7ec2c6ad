"""`csm generate`: text to a sound file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from csm.cli.console import say
from csm.cli.options import PATH, SEED, runs_model, samples_speech, takes_base
from csm.cli.speech import check_target, hand_out
from csm.cli.target import writable

if TYPE_CHECKING:
    import numpy as np


@click.command()
@click.option(
    "--model-path",
    default="csm-tiny",
    show_default=True,
    help="csm-tiny, a model folder, a run, a weights file or a hub id",
)
@takes_base
@click.option("--text", required=True)
@click.option("--speaker", type=click.IntRange(0), default=0, show_default=True)
@click.option("--output", type=PATH, required=True, help="a .wav or .flac file")
@samples_speech
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--max-audio-length-ms", type=float, help="default: a budget from the text's length; at most 90000")
@click.option("--context", type=PATH, help="JSON of one conversation: the turns before the text")
@click.option("--codes", type=PATH, help="save the codes (K, T) as .npy too")
@runs_model
def generate(
    model_path: str,
    base: Path | None,
    text: str,
    speaker: int,
    output: Path,
    temperature: float | None,
    top_k: int | None,
    seed: int,
    max_audio_length_ms: float | None,
    context: Path | None,
    codes: Path | None,
    device: str,
    dtype: str,
    threads: int | None,
) -> None:
    """Speak TEXT into a sound file.

    The same seed on the same device gives the same sound.
    """
    from csm.data.conversations import read_context
    from csm.errors import CsmError
    from csm.generator import load_generator
    from csm.segment import Segment

    if not text.strip():
        raise CsmError("the text is empty.", "Say what to speak with --text.")
    if codes and writable(codes) == check_target(output):
        raise click.UsageError("--codes and --output name the same file.")
    check_target(output)
    turns = [Segment(row.text, row.speaker, row.audio) for row in read_context(context)] if context else []
    generator = load_generator(model_path, device, dtype, threads, base)
    say(f"backend: {generator.backend.reason}")
    speech = generator.speak(
        text, speaker, context=turns, temperature=temperature, top_k=top_k, seed=seed,
        max_audio_length_ms=max_audio_length_ms,
    )  # fmt: skip
    if codes:
        _save(writable(codes), speech.codes)
    hand_out(speech, output)


def _save(path: Path, codes: np.ndarray) -> None:
    """Write .npy beside the target, then swap it in."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as file:
            np.save(file, codes)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
