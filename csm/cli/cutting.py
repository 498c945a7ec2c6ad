"""What happens to rows between reading and tokenising: long clips are cut, recordings are denoised; always told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm.cli.console import say, warn
from csm.cli.progress import Progress

if TYPE_CHECKING:
    from csm.data.cutting import Aligner
    from csm.data.faults import Fault
    from csm.data.row import Row


def shape_rows(
    rows: list[list[Row]], faults: list[Fault], flags: Mapping[str, Any], longest_seconds: float | None = None
) -> tuple[list[list[Row]], list[Fault]]:
    """Denoise and cut rows as the flags `denoise`, `alignment_dir`, `align` and `piece_seconds` say.

    Args:
        rows, faults: as `csm.data.manifest.read_data` gives them.
        flags: a command's; those that it lacks are off.
        longest_seconds: of a clip that cannot be cut; None is `csm.data.clips.LONGEST_SECONDS`.

    Raises:
        CsmError: nothing is left, a folder is missing, or what the work needs is not installed.
    """
    from csm.data.cutting import PIECE_SECONDS, Cutting, cut
    from csm.data.faults import render, require_usable

    if flags.get("denoise"):
        rows, faults = _denoise(rows, faults, flags.get("cache_dir"))
    seconds = PIECE_SECONDS if (asked := flags.get("piece_seconds")) is None else asked
    cutting = Cutting(seconds, alignments=flags.get("alignment_dir"))
    if longest_seconds:
        cutting = replace(cutting, longest_seconds=min(longest_seconds, cutting.longest_seconds))
    with _aligner(bool(flags.get("align")), rows) as align, Progress("cutting") as bar:
        done = cut(rows, replace(cutting, align=align), bar.update)
    if text := done.describe():
        say(f"cutting: {text}")
    if done.whole and (cutting.alignments or align):
        warn(f"not cut:\n{render(done.whole)}")
    found = [*faults, *done.faults]
    require_usable(len(done.conversations), found)
    return done.conversations, found


@contextmanager
def _aligner(wanted: bool, rows: list[list[Row]]) -> Iterator[Aligner | None]:
    """The aligner where one is asked for; languages that it does not know are refused before any work."""
    if not wanted:
        yield None
        return
    from evaluation.aligner import PhoneAligner, require_language

    for language in sorted({row.language for conversation in rows for row in conversation}):
        require_language(language)
    with PhoneAligner() as aligner:
        yield aligner


def _denoise(rows: list[list[Row]], faults: list[Fault], cache: Path | None) -> tuple[list[list[Row]], list[Fault]]:
    from csm.data.codes import default_cache_folder
    from csm.data.denoise import denoise

    folder = (cache or default_cache_folder()) / "denoised"
    with Progress("denoising") as bar:
        done = denoise(rows, folder, bar.update)
    say(f"denoise: {done.describe()}")
    return done.conversations, [*faults, *done.faults]
