"""From a command's data flags to rows: read in any layout, speakers told, recordings denoised and cut as asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from csm.cli.console import say

if TYPE_CHECKING:
    from csm.data.faults import Fault
    from csm.data.row import Row

Rows = tuple["list[list[Row]]", "list[Fault]"]


def read_rows(flags: Mapping[str, Any], paths: Any = None) -> Rows:
    """The rows that the flags of `csm.cli.options.names_data` name, and the faults of what is left out.

    Args:
        flags: a command's.
        paths: data in place of the flags': the folders of sounds, transcripts and alignments are not theirs.

    Raises:
        CsmError: as `csm.data.manifest.read_data` and `csm.cli.cutting.shape_rows`.
    """
    from csm.cli.cutting import shape_rows
    from csm.data.manifest import read_data
    from csm.data.speaker_names import named_speakers

    if paths is not None:
        flags = {**flags, "data_paths": paths, "audio_dir": None, "transcript_dir": None, "alignment_dir": None}
    rows, faults = read_data(
        flags["data_paths"], flags["audio_dir"], flags["transcript_dir"], flags["speaker_id"],
        format=flags.get("data_format"), language=flags.get("language") or "en",
    )  # fmt: skip
    if named := named_speakers(rows):
        say("speakers: " + ", ".join(f"{name} is {number}" for name, number in named.items()))
    return shape_rows(rows, faults, flags)
