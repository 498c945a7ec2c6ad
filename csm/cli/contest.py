"""Who is scored against whom in `csm evaluate`: a run, a voice or a folder of samples, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm.cli.console import say
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.cli.systems import System
    from csm.training.run_folder import RunFolder
    from evaluation.judges import Judges
    from evaluation.reference import Reference
    from evaluation.score import SystemScores
    from profiles.voice import Voice


@dataclass(frozen=True)
class Contest:
    """What one evaluation scores.

    Args:
        target: what was named: a run, a voice, a folder.
        run: the run, where it is one.
        speakers: the models that speak, the one to compare with first.
        folders: folders of samples by the name that the scores have for them.
        compared: which of the folders stands in the base's place.
    """

    target: str
    run: RunFolder | None
    speakers: tuple[System, ...]
    folders: dict[str, Path]
    compared: str | None = None

    @property
    def sounds(self) -> dict[str, Path]:
        """By system the folder that its samples' names are relative to; the codec's stand with the first speaker's."""
        found = {system.name: system.root for system in self.speakers} | self.folders
        return found | ({"codec": self.speakers[0].root} if self.speakers else {})

    @property
    def samples(self) -> Path:
        """Where the samples are that a report lists."""
        own = [system.root for system in self.speakers if system.kind == "checkpoint"]
        return own[0] if own else next(path for name, path in self.folders.items() if name != self.compared)

    def score(
        self, reference: Reference, recordings: Path, judges: Judges, flags: dict[str, Any]
    ) -> tuple[list[SystemScores], list[dict[str, Any]]]:
        """The scores of all, and what was forgotten where `flags["forgetting"]` asks.

        Raises:
            CsmError: a model or a sound cannot be had, or nobody is there whose forgetting could be measured.
        """
        from csm.cli.scoring import Speaking, score_folder, texts_of

        found, forgetting = [], []
        for name, path in self.folders.items():
            found.append(score_folder(path, reference, judges, "base" if name == self.compared else "folder", name))
        if self.speakers:
            others, base = flags["forgetting"], next((one for one in self.speakers if one.kind == "base"), None)
            if others is not None and (base is None or len(self.speakers) < 2):
                raise CsmError("--forgetting needs a base that speaks too.", "Leave out --against FOLDER.")
            seeds = range(flags["seed"], flags["seed"] + flags["samples_per_text"])
            placement = {key: flags[key] for key in ("device", "dtype", "threads")}
            speaking = Speaking(texts_of(flags["texts"], reference), seeds, reference, judges, placement, others)
            has_checkpoint = any(system.kind == "checkpoint" for system in self.speakers)
            found += speaking.score(self.speakers, recordings if has_checkpoint else None)
            if others is not None and base is not None:
                forgetting = speaking.forgetting(base)
        return sorted(found, key=lambda system: system.kind not in ("base", "codec")), forgetting


def contest(target: str, against: str | None, speaker: int | None, registry: Path | None) -> Contest:
    """What the words of the command line mean.

    Args:
        target: a run, a folder of sound files, or a voice's name, id or speaker id.
        against: a run, a folder of sound files, or `base`; None is the base where there is one.
        speaker: as whom models speak; None is whom they were trained on.
        registry: the file of voices; None is the user's own.

    Raises:
        CsmError: it means nothing, or a model is gone.
    """
    from csm.cli.systems import base_of, of_run, of_voice
    from csm.training.run_folder import RunFolder

    path = Path(target).expanduser()
    if path.is_dir() and RunFolder(path).exists:
        run = RunFolder(path)
        own = of_run(run, speaker)
        return _complete(target, run, own, {}, against, speaker, lambda: base_of(run, speaker))
    if path.is_dir():
        return _complete(target, None, [], {path.resolve().name: path}, against, speaker, None)
    spoken, parent = of_voice(_voice(target, registry), speaker)
    return _complete(target, None, [spoken], {}, against, speaker, (lambda: parent) if parent else None)


def _complete(
    target: str, run: RunFolder | None, own: list[System], folders: dict[str, Path], against: str | None,
    speaker: int | None, base: Any,
) -> Contest:  # fmt: skip
    """With what it is compared with."""
    from csm.cli.systems import best_of
    from csm.training.run_folder import RunFolder

    if against in (None, "base"):
        if base is None and (against or own):
            message = f"{target} has no base that is known, so nothing is compared with one"
            if against:
                raise CsmError(f"{message}.", "Name a run or a folder of samples: --against RUN.")
            say(f"{message}; --against RUN compares with another")
        return Contest(target, run, tuple(([base()] if base else []) + own), folders)
    other = Path(str(against)).expanduser()
    if not other.is_dir():
        raise CsmError(f"--against {against} is neither a run nor a folder of sound files.", "Or write base.")
    if RunFolder(other).exists:
        return Contest(target, run, (best_of(RunFolder(other), speaker), *own), folders)
    name = other.resolve().name
    if name in folders:
        name = f"{other.resolve().parent.name}/{name}"
    return Contest(target, run, tuple(own), folders | {name: other}, name)


def _voice(key: str, registry: Path | None) -> Voice:
    """The voice of that name.

    Raises:
        CsmError: there is none, and no folder of that name either.
    """
    from profiles.registry import Registry, default_path

    known = Registry(registry.expanduser() if registry else default_path())
    try:
        return known.find(key)
    except CsmError as error:
        raise CsmError(
            f"{key} is neither a run nor a folder of sound files, nor a voice of {known.path}: {error.message}",
            error.hint,
        ) from error
