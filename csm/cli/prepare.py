"""`csm-finetune prepare`: long recordings without a transcript become clips with texts, and a page to correct them on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from csm.cli.console import answer, say, warn
from csm.cli.lists import ListCommand
from csm.cli.options import PATH
from csm.cli.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from csm.data.prepare import Ears


@click.command("prepare", cls=ListCommand)
@click.argument("recordings", type=PATH, nargs=-1, required=True, metavar="RECORDING...")
@click.option(
    "--output", "--output-dir", type=PATH, help="gets audio/, transcripts/ and review.html; stopped work goes on"
)
@click.option("--asr-model", metavar="PATH|NAME", help="the recogniser; default: tiny.en, from the extra [asr]")
@click.option("--language", default="en", show_default=True, help="what is spoken")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; by default what the CPU quota grants")
@click.option(
    "--strict",
    is_flag=True,
    help="exit 1 where a recording is unreadable or without speech, rather than skip it",
)
@click.option("--apply", "corrections", type=PATH, help="write this file of corrections into the folder RECORDING")
@click.pass_context
def prepare(
    context: click.Context, recordings: tuple[Path, ...], output: Path | None, asr_model: str | None, language: str,
    threads: int | None, strict: bool, corrections: Path | None,
) -> None:  # fmt: skip
    """Cut long RECORDINGs at their pauses, write down what is said, and keep the clips that are clear.

    Clips of 2 to 15 s; music, several speakers and doubtful texts are dropped and counted. Correct the texts on
    OUTPUT/review.html, save the corrections there, and write them back: prepare --apply corrections.json OUTPUT
    """
    if corrections:
        given = [p for p in context.params if context.get_parameter_source(p) == ParameterSource.COMMANDLINE]
        if len(recordings) != 1 or set(given) - {"recordings", "corrections"}:
            raise click.UsageError("--apply takes one folder, the one that prepare wrote, and no other option.")
        _apply(corrections, recordings[0])
    elif output is None:
        raise click.UsageError("Missing option '--output'.")
    else:
        _prepare(recordings, output, asr_model, language, threads, strict)


def _prepare(
    recordings: tuple[Path, ...], output: Path, model: str | None, language: str, threads: int | None, strict: bool
) -> None:
    from csm.data.faults import render, require_usable
    from csm.data.prepare import prepare as prepare_recordings
    from csm.data.review import write_page

    ears = _ears(model, language, threads)
    with Progress("hearing") as bar:
        outcome = prepare_recordings(recordings, output, ears, language, bar.update)
    require_usable(1, outcome.faults, strict)
    if outcome.faults:
        warn(f"skipped:\n{render(outcome.faults)}")
    say(outcome.describe())
    say(f"correct the texts on {write_page(output, language)}")
    answer(str(output))


def _ears(model: str | None, language: str, threads: int | None) -> Ears:
    from csm.data.prepare import Ears
    from csm.threads import available_threads
    from evaluation.recogniser import Recogniser
    from evaluation.speaker import embed, similarity
    from evaluation.voice_activity import STEP_SECONDS, speech_probabilities

    def likeness(one: np.ndarray, other: np.ndarray, rate: int) -> float:
        return similarity(embed(one, rate), embed(other, rate))

    recogniser = Recogniser(model, language, threads or available_threads()[0])
    return Ears(speech_probabilities, STEP_SECONDS, recogniser, likeness, recogniser.name)


def _apply(corrections: Path, folder: Path) -> None:
    from csm.data.journal import read_language
    from csm.data.review import apply_corrections, write_page

    texts, drops = apply_corrections(corrections, folder)
    write_page(folder, read_language(folder))
    say(f"{texts} texts corrected, {drops} clips dropped")
    answer(str(folder))
