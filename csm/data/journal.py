"""The journal of a folder that is being prepared: a line a clip, kept or not, written when the clip's files are there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from csm.data.remote import write_whole
from csm.errors import CsmError

CLIPS, SETTINGS = "clips.jsonl", "prepare.json"


@dataclass(frozen=True)
class Prepared:
    """A clip of a recording: `reason` says why it was dropped, and is empty for one that was kept."""

    name: str
    recording: str
    start: float
    end: float
    text: str
    reason: str = ""
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Journal:
    """The clips of an output folder so far.

    Args:
        folder: the output folder.
        settings: what shapes the clips; they are held against what the folder was begun with.

    Raises:
        CsmError: the folder was begun with other settings, or holds something else.
    """

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None):
        self.folder, self.path = folder, folder / CLIPS
        if settings is not None:
            self._begin(settings)
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            with open(self.path, "ab") as file:  # a kill cut the last line off
                file.write(b"\n")
        self.clips = {clip.name: clip for clip in read_clips(folder)}

    def _begin(self, settings: dict[str, Any]) -> None:
        file = self.folder / SETTINGS
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            changed = [
                f"{key} was {before.get(key)}, now {settings[key]}"
                for key in settings
                if before.get(key) != settings[key]
            ]
            if changed:
                raise CsmError(f"{self.folder} was begun otherwise: {'; '.join(changed)}.", "Give another --output.")
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            raise CsmError(f"{self.folder} is not empty, and was not made by prepare.", "Give another --output.")
        write_text(file, json.dumps(settings, indent=2))

    def add(self, clip: Prepared) -> None:
        """Keep a clip, whose files are written already."""
        with open(self.path, "ab") as file:
            file.write(json.dumps(asdict(clip), ensure_ascii=False).encode() + b"\n")
        self.clips[clip.name] = clip


def read_clips(folder: Path) -> list[Prepared]:
    """The clips that a prepared folder's journal names, each as it was said last."""
    path = folder / CLIPS
    clips: dict[str, Prepared] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            clip = Prepared(**json.loads(line))
        except (ValueError, TypeError):  # the one line that a kill may have cut off: its clip is made again
            continue
        clips[clip.name] = clip
    return list(clips.values())


def read_language(folder: Path) -> str:
    """The language that a prepared folder was begun with."""
    return str(json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["language"])


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 beside, then swap it in."""
    write_whole(path, [text.encode()])
