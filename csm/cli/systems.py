"""Which models `csm evaluate` lets speak: a run's base and checkpoints, a run's best, or a voice of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm.cli.console import warn
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.generator import Generator
    from csm.model_folder import ModelFolder
    from csm.training.run_folder import RunFolder
    from evaluation.score import Kind
    from profiles.voice import Voice


@dataclass(frozen=True)
class System:
    """One model that is to speak.

    Args:
        name: what the scores call it.
        kind: `base` for the one that the others are compared with, else `checkpoint`.
        model: where it is.
        speaker: as whom it speaks.
        root: the folder of samples.
        folder: its own folder below that.
        base: what its weights need beside them, where they stand alone.
        parent: what a lineage says of it, if it must still be that model.
        sampling: temperature and top-k of its own.
    """

    name: str
    kind: Kind
    model: Path | str
    speaker: int
    root: Path
    folder: str
    base: Path | str | None = None
    parent: Mapping[str, Any] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def load(self, device: str, dtype: str, threads: int | None) -> Generator:
        """The generator.

        Raises:
            CsmError: the model is broken, or another than the lineage names.
        """
        from csm.generator import load_generator

        generator = load_generator(self.model, device, dtype, threads, self.base, self.sampling)
        if self.parent:
            _refuse_changed(generator.folder, self.parent)
        return generator


def of_run(run: RunFolder, speaker: int | None) -> list[System]:
    """Every checkpoint of a run, in order.

    Raises:
        CsmError: there is none, or the run learned several speakers and none is chosen.
    """
    if not run.steps():
        raise CsmError(f"{run.path} has no checkpoint yet.")
    who, root = _speaker(run.lineage(), speaker), run.path / "samples"
    paths = map(run.checkpoint, run.steps())
    return [System(path.name, "checkpoint", path, who, root, path.name) for path in paths]


def base_of(run: RunFolder, speaker: int | None) -> System:
    """What a run began from.

    Raises:
        CsmError: it is gone.
    """
    lineage = run.lineage()
    return _parent(lineage["parent"], _speaker(lineage, speaker), run.path / "samples")


def best_of(run: RunFolder, speaker: int | None) -> System:
    """A run's best checkpoint, to be compared with in a base's place.

    Raises:
        CsmError: it has none.
    """
    from csm.model_folder import pointed_to

    best = pointed_to(run.path, "best")
    if best is None:
        raise CsmError(f"{run.path} has no checkpoint yet.")
    name = f"{run.path.resolve().name}/{best.name}"
    return System(name, "base", best, _speaker(run.lineage(), speaker), run.path / "samples", best.name)


def of_voice(voice: Voice, speaker: int | None) -> tuple[System, System | None]:
    """A voice of the registry, and what it was trained from, None where the registry does not know.

    The samples of a voice that is a run's stand in the run, those of another in the user's cache folder.

    Raises:
        CsmError: its model is gone.
    """
    from platformdirs import user_cache_path

    from csm.model_folder import resolve

    if Path(voice.model_path).is_absolute() and not Path(voice.model_path).exists():
        raise CsmError(f"The model of {voice.name!r} is gone: {voice.model_path}.", "Put it back.")
    model = resolve(voice.model_path)
    in_run = (model.parent.parent / "recipe.json").is_file() and model.parent.name == "checkpoints"
    root = model.parent.parent / "samples" if in_run else user_cache_path("csm") / "spoken" / voice.id
    folder = model.name if in_run and not voice.sampling else f"voice-{voice.id}"
    who = voice.speaker_id if speaker is None else speaker
    spoken = System(voice.name, "checkpoint", model, who, root, folder, voice.base, sampling=voice.sampling)
    parent = voice.lineage.get("parent")
    return spoken, _parent(parent, who, root) if parent else None


def _parent(parent: Mapping[str, Any], speaker: int, root: Path) -> System:
    return System("base", "base", _standing(parent["path"]), speaker, root, "base", _lender(parent), parent)


def _lender(parent: Mapping[str, Any]) -> Path | None:
    """The folder that lent the parent's weights their config, tokenizer and codec, where it is another than theirs."""
    if not Path(parent["path"]).is_absolute():  # an embedded model is whole
        return None
    path, beside = _standing(parent["path"]), _standing(parent.get("beside", parent["path"]))
    return None if beside in (path, path.parent) else beside


def _standing(kept: str) -> Path:
    """Where a base stands that a lineage names: an embedded model moves with the installation."""
    from csm.model_folder import EMBEDDED

    path = Path(kept)
    if path.is_absolute() and path.exists():
        return path
    if path.name in EMBEDDED:
        return Path(str(files("csm"))) / "assets" / path.name
    raise CsmError(f"the base of this run is gone: {kept}.", "Put it back where it was: the base is scored as well.")


def _refuse_changed(folder: ModelFolder, parent: Mapping[str, Any]) -> None:
    if folder.hash != parent.get("hash"):
        raise CsmError(
            f"the base of this run has changed since: {folder.path} is another model now.",
            "Put back what the run was trained from, or train anew.",
        )


def _speaker(lineage: Mapping[str, Any], given: int | None) -> int:
    speakers = lineage["data"]["speakers"]
    if given is not None:
        if given not in speakers:
            warn(f"the run was trained on speaker {' and '.join(map(str, speakers))}; {given} may be no voice of it.")
        return given
    if len(speakers) > 1:
        raise CsmError(f"the run was trained on speakers {', '.join(map(str, speakers))}.", "Choose one: --speaker N.")
    return int(speakers[0])
