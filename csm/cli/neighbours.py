"""The registry's other voices as `csm evaluate` compares with them: what their runs said when they were scored.

A voice counts where its model is a run whose best checkpoint has been scored: its samples are still there. Nothing is
spoken anew, so a registry of models alone costs nothing and gives nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from csm.cli.console import say

if TYPE_CHECKING:
    import numpy as np

    from evaluation.judges import Judges

MOST = 50  # voices; each takes a tenth of a second
SECONDS = 12.0  # of speech of each


def with_neighbours(judges: Judges, database: Path | None, target: str | Path) -> Judges:
    """Judges that compare with the registry's other voices too; as for `registered_voices`."""
    return replace(judges, others={**registered_voices(database, target), **judges.others})


def registered_voices(database: Path | None, target: str | Path) -> dict[str, np.ndarray]:
    """The voices `(256,)` of a registry by name, `target`'s own aside, the latest changed first.

    Args:
        database: the registry's file; None is the user's own. One that is not there holds none.
        target: the run, folder or voice (its name, id or speaker id) that is scored.

    Raises:
        CsmError: the registry is broken, or a run's `best` names no checkpoint.
    """
    from evaluation.speaker import embed, unusable
    from profiles.registry import Registry, default_path

    path = database.expanduser() if database else default_path()
    if not path.is_file():
        return {}
    registry = Registry(path)
    kept = sorted(registry.list(), key=lambda voice: voice.changed, reverse=True)
    place = Path(target).expanduser()
    mine = (place if place.is_dir() else Path(registry.find(str(target)).model_path)).resolve()
    runs = {voice.name: Path(voice.model_path) for voice in kept}
    heard: dict[str, np.ndarray] = {}
    for name, run in runs.items():
        if len(heard) == MOST:
            say(f"the registry's {MOST} latest voices are compared with, no others")
            break
        own = name == str(target) or run.resolve() in (mine, mine.parent.parent)  # or a checkpoint of it
        if not own and (sound := _speech(run)) and not unusable(*sound):
            heard[name] = embed(*sound)
    return heard


def _speech(run: Path) -> tuple[np.ndarray, int] | None:
    """The first seconds of what the run's best checkpoint said, and their rate; None where nothing is kept."""
    import numpy as np

    from csm.audio import SAMPLE_RATE, load_wave
    from csm.model_folder import pointed_to

    best = pointed_to(run, "best")
    if best is None:
        return None
    waves, count = [], 0
    for path in sorted((run / "samples" / best.name).glob("*.wav")):
        waves.append(load_wave(path, SAMPLE_RATE))
        count += len(waves[-1])
        if count >= SECONDS * SAMPLE_RATE:
            break
    return (np.concatenate(waves), SAMPLE_RATE) if waves else None
