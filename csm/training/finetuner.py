"""CSMFineTuner: from a recipe and data to a run folder. The documented Python API, and what the command line calls.

fine_tuner = CSMFineTuner(model_path="csm-tiny", output_dir="my_voice", learning_rate=5e-4)
fine_tuner.prepare_optimizer(freeze_backbone=True)
fine_tuner.train(train_dataset=[Segment("hello there.", 5, "hello.wav"), ...], batch_size=1, epochs=5)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from csm.adapter import plan_adapters
from csm.adapter_folder import BaseName, write_base
from csm.backend import Backend, choose_backend
from csm.data.batches import EpochBatches, validation_batches
from csm.data.codes import CodeCache, Tokenised, data_fingerprint, default_cache_folder, tokenise
from csm.data.examples import ExampleSet, make_sources, split
from csm.data.faults import Fault, render, require_usable
from csm.data.row import Row
from csm.data.speakers import learned_speakers
from csm.data.terms import TermClips, describe_terms, term_shares
from csm.errors import CsmError
from csm.model_folder import ModelFolder, open_folder, pointed_to
from csm.presets import EPOCHS, PRESETS
from csm.recipe import CHANGEABLE, Recipe, Resolved, nearest, resolve
from csm.segment import Conversation, Segment
from csm.tokenizer import TextTokenizer
from csm.training.dataset import tokenise_segments
from csm.training.lineage import parent_run
from csm.training.loop import Parts, train
from csm.training.run_folder import TRAINER, Position, RunFolder, now
from csm.training.watchers import Report, Watchers

UNCHANGED = "unchanged"
RUN_SCHEMA = 1


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its best checkpoint's folder, where it began and ended, and where an older run was moved."""

    best: Path
    from_step: int
    step: int
    moved_aside: Path | None


class CSMFineTuner:
    """One fine-tune of a model folder into a run folder.

    Args:
        model_path: a model folder, a run, a hub id or `csm-tiny`.
        output_dir: the run folder; an unfinished run of the same recipe and data is gone on with.
        learning_rate: None takes the model folder's recommendation, else the preset's.
        preset: one of `csm.presets.PRESETS`.
        backend: where to train; None chooses by `device`, `dtype` and `threads`.
        cache: where audio codes are kept; None is the user's cache folder.
        base: a model folder that lends config, tokenizer and codec where `model_path` is weights alone.

    Raises:
        CsmError: the model cannot be used, or the preset is unknown.
    """

    def __init__(
        self,
        model_path: str | Path,
        output_dir: str | Path,
        learning_rate: float | None = None,
        *,
        preset: str = "voice-adapt",
        backend: Backend | None = None,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        cache: Path | None = None,
        base: str | Path | None = None,
    ):
        if preset not in PRESETS:
            raise CsmError(f"there is no preset {preset!r}.", nearest(preset, tuple(PRESETS)))
        self.preset = preset
        self.base: ModelFolder = open_folder(model_path, base)
        self.run = RunFolder(Path(output_dir))
        self.backend = backend or choose_backend(self.base, device, dtype, threads, training=True)
        self.cache_folder = cache or default_cache_folder()
        self.layers: list[tuple[str, Mapping[str, Any]]] = [
            (f"{self.base.beside.name}/recommended.json", self.base.preset_values(preset)),
            ("arguments", {"learning_rate": learning_rate}),
        ]
        self._by_data: list[tuple[str, Mapping[str, Any]]] = []

    @property
    def resolved(self) -> Resolved:
        """The recipe as it stands: preset, what follows from the data, recommendation, further layers, with sources."""
        return resolve(self.preset, PRESETS[self.preset], [*self._by_data, *self.layers])

    @property
    def adapters(self) -> str | None:
        """What the method lora will adapt, in one line; None where the method is full. Raises as `plan_adapters`."""
        recipe, config = self.resolved.recipe, self.base.config
        if recipe.method == "full":
            return None
        return plan_adapters(config, recipe.lora, recipe.frozen).describe(config)

    def prepare_optimizer(
        self,
        freeze_backbone: bool | None = None,
        freeze_decoder: bool | None = None,
        freeze_embeddings: bool | None = None,
    ) -> None:
        """Say which groups stay as they are; None keeps what the recipe says."""
        frozen = dict(
            freeze_backbone=freeze_backbone, freeze_decoder=freeze_decoder, freeze_embeddings=freeze_embeddings
        )
        self.layers.append(("arguments", frozen))

    def tokenise(
        self,
        conversations: Sequence[Sequence[Row]],
        faults: Sequence[Fault] = (),
        progress: Callable[[int, int], None] | None = None,
        strict: bool = False,
    ) -> Tokenised:
        """Codes of rows that were read from files, through the cache. Raises as `csm.data.codes.tokenise`."""
        cache = CodeCache(self.cache_folder, self.backend.codec(self.base))
        found = tokenise(conversations, cache, progress, faults=faults, strict=strict)
        return without_long_turns(found, self.base, strict)

    def unread_characters(self, data: Tokenised) -> str:
        """Characters of the transcripts that the model's tokenizer does not know, each once."""
        characters = {c for conversation in data.conversations for turn in conversation for c in turn.row.text}
        return TextTokenizer(self.base.beside).unknown_characters("".join(sorted(characters)))

    def train(
        self,
        train_dataset: Sequence[Segment | Conversation] | Tokenised,
        batch_size: int | None = None,
        epochs: int | None = None,
        *,
        resume: bool = False,
        fresh: bool = False,
        report: Report | None = None,
        watch: Watchers | None = None,
    ) -> Outcome:
        """Train, or go on with the same run.

        Args:
            train_dataset: Segments, Conversations, or what `tokenise` made of files.
            batch_size: examples in a micro-batch; None keeps the recipe's.
            epochs: None keeps the recipe's, or what follows from the minutes of the data where only the preset speaks.
            resume: insist on going on with a run that is there.
            fresh: move what is there aside and begin anew.
            report: told (step, steps, values) after every update.
            watch: all that a caller may be told and asked, in place of `report`.

        Raises:
            CsmError: bad data, another run's folder, a loss that is not finite.
            Interrupted: SIGINT or SIGTERM came; the state was saved.
        """
        self.layers.append(("arguments", dict(batch_size=batch_size, epochs=epochs)))
        data = train_dataset if isinstance(train_dataset, Tokenised) else self._from_segments(train_dataset)
        watch = watch or (Watchers(report) if report else Watchers())
        self._follow(data, watch)
        training, validation = self._split(data)
        if self.resolved.recipe.terms:
            watch.notice(describe_terms(training.sources, validation.sources, self.resolved.recipe))
        identity = self._identity(data)
        self._refuse_own_inputs(data)
        aside = self.run.set_aside() if fresh and self.run.path.exists() else None
        is_new = not self.run.exists
        if is_new and resume:
            raise CsmError(f"{self.run.path} holds no run to resume.", "Leave out --resume to begin one.")
        if is_new:
            self.run.begin(identity, self._lineage(data, training, validation))
        with self.run.locked():
            found = None if is_new else self._find(identity, resume)
            parts = replace(self._parts(training, validation, found[0] if found else None), watch=watch)
            start = found[1] if found else Position()
            if start.step < parts.steps:
                watch.begun(start.step, aside)
            end = train(parts, start)
        best = pointed_to(self.run.path, "best")
        assert best is not None, "a run that ended has a checkpoint"
        return Outcome(best, start.step, end.step, aside)

    def plan(self, data: Tokenised) -> tuple[EpochBatches, ExampleSet]:
        """The updates that a run on this data would make, and what it would hold out; nothing is trained or written.

        Epochs follow from the data, as in `train`: see `resolved` afterwards. Codes may have any number of codebooks.

        Raises:
            CsmError: as `train`, where the data cannot be split or do not fit the recipe.
        """
        self._set_epochs(data)
        training, validation = self._split(data)
        return _batches(training, validation, self.resolved.recipe)[0], validation

    def _from_segments(self, data: Sequence[Segment | Conversation]) -> Tokenised:
        codec = self.backend.codec(self.base)
        found = tokenise_segments(data, codec, CodeCache(self.cache_folder, codec), self.base.config)
        found = without_long_turns(found, self.base)
        if found.faults:
            warnings.warn(f"skipped:\n{render(found.faults)}", stacklevel=3)
        return found

    def _refuse_own_inputs(self, data: Tokenised) -> None:
        """A run folder must not hold its own base or recordings: --fresh would move them away."""
        out = self.run.path.resolve()
        bases, below = [self.base.path], self.base.base
        while below is not None:
            bases, below = [*bases, below.path], below.base
        inputs = [*bases, *(turn.row.audio for conversation in data.conversations for turn in conversation)]
        for path in inputs:
            if path.resolve().is_relative_to(out):
                raise CsmError(
                    f"the output folder {self.run.path} holds what it is made from: {path}.", "Give another."
                )

    def _follow(self, data: Tokenised, watch: Watchers) -> None:
        """Let epochs follow from the minutes to learn, and say what the user should know before the work."""
        if self.resolved.recipe.select_by == "speaker_similarity" and watch.listen is None:
            raise CsmError("select_by speaker_similarity needs someone who listens.", "Pass `watch` with `listen`.")
        if reason := self._set_epochs(data):
            watch.notice(f"epochs: {self.resolved.recipe.epochs}, from {reason}")

    def _set_epochs(self, data: Tokenised) -> str | None:
        """Let the minutes to learn say the epochs where the preset alone has; the reason, None where others said."""
        recipe, span = self.resolved.recipe, EPOCHS.get(self.preset)
        self._by_data = []
        if span is None or recipe.max_steps:
            return None
        minutes = self._minutes(data)
        reason = span.reason(minutes)
        self._by_data = [(reason, {"epochs": span.epochs(minutes)})]
        return reason if self.resolved.sources["epochs"] == reason else None

    def _learned(self, data: Tokenised) -> set[int]:
        recipe = self.resolved.recipe
        present = {turn.row.speaker for conversation in data.conversations for turn in conversation}
        return learned_speakers(present, recipe.mask_speaker_ids, recipe.only_speaker_ids)

    def _minutes(self, data: Tokenised) -> float:
        """Minutes of the turns that carry loss."""
        learned, turns = self._learned(data), (turn for c in data.conversations for turn in c)
        frames = sum(turn.codes.shape[1] for turn in turns if turn.row.speaker in learned)
        return frames / data.frame_rate / 60

    def _split(self, data: Tokenised) -> tuple[ExampleSet, ExampleSet]:
        recipe, config = self.resolved.recipe, self.base.config
        codebooks = len(data.conversations[0][0].codes)  # the model's, or one where a run is only planned
        sources = make_sources(data.conversations, TextTokenizer(self.base.beside), codebooks)
        learned = self._learned(data)
        sources = [c for c in sources if any(source.speaker in learned for source in c)]
        of_note = TermClips.finder(recipe.terms) if recipe.terms else None
        parts = split(sources, recipe.val_split, recipe.seed, of_note)
        training, validation = ([source for source in part if source.speaker in learned] for part in parts)
        if recipe.terms and not TermClips.of(training, recipe.terms).holds.any():
            raise CsmError(
                f"no clip to learn from holds any of the {len(recipe.terms)} terms.",
                "Terms are found as whole words in the transcripts; inflections are terms of their own.",
            )
        longest = config.backbone.max_position_embeddings
        return (
            ExampleSet(training, recipe.context_turns, longest, recipe.seed, recipe.context_dropout),
            ExampleSet(validation, recipe.context_turns, longest, recipe.seed),
        )

    def _parts(self, training: ExampleSet, validation: ExampleSet, checkpoint: Path | None) -> Parts:
        recipe = self.resolved.recipe
        trainer = self.backend.trainer(self.base, recipe, checkpoint)
        if checkpoint:
            trainer.load(checkpoint / TRAINER)
        unchanged = self.run.path / UNCHANGED
        if recipe.method == "lora":
            write_base(_base_name(self.base), unchanged)
        elif not unchanged.is_dir():
            self.backend.write_unchanged(self.base, trainer.trained_names, unchanged)
        batches, held_terms = _batches(training, validation, recipe)
        held_out = validation_batches(validation, recipe.batch_size)
        return Parts(trainer, batches, held_out, self.run, unchanged, recipe, term_clips=held_terms)

    def _identity(self, data: Tokenised) -> dict[str, Any]:
        """What makes a run this run: written as recipe.json, and held against it on resume."""
        return {
            "schema_version": RUN_SCHEMA,
            "preset": self.preset,
            "base": self.base.hash,
            "data": data_fingerprint(data.conversations),
            "recipe": self.resolved.recipe.to_dict(),
        }

    def _find(self, identity: dict[str, Any], resume: bool) -> tuple[Path, Position] | None:
        """The checkpoint to go on from; None for a run that had saved nothing yet."""
        differences = _differences(self.run.recipe(), identity)
        if differences:
            raise CsmError(
                f"{self.run.path} holds another run: {'; '.join(differences)}.",
                "Give another --output-dir, the same settings and data, or --fresh to move the old run aside.",
            )
        found = self.run.latest()
        if resume and found is None:
            raise CsmError(
                f"the run {self.run.path} has saved no state to resume.", "Leave out --resume to begin it anew."
            )
        return found

    def _lineage(self, data: Tokenised, training: ExampleSet, validation: ExampleSet) -> dict[str, Any]:
        turns = [turn for conversation in data.conversations for turn in conversation]
        minutes = sum(turn.codes.shape[1] for turn in turns) / data.frame_rate / 60
        return {
            "schema_version": RUN_SCHEMA,
            "parent": {
                "path": self.base.name,
                "beside": str(self.base.beside.resolve()),
                "hash": self.base.hash,
                "run": parent_run(self.base.path),
            },
            "data": {
                "fingerprint": data_fingerprint(data.conversations),
                "clips": len(turns),
                "minutes": round(minutes, 2),
                "speakers": sorted({turn.row.speaker for turn in turns}),
                "skipped": [fault.text for fault in data.faults],
                "training": [source.id for source in training.sources],
                "validation": [source.id for source in validation.sources],
            },
            "recipe_sources": dict(self.resolved.sources),
            "backend": self.backend.reason,
            "program": f"csm-finetune {_version()}",
            "started": now(),
        }


def _batches(training: ExampleSet, validation: ExampleSet, recipe: Recipe) -> tuple[EpochBatches, np.ndarray | None]:
    """The updates of a run, and which of the held-out clips hold a term."""
    often, held_terms = term_shares(training.sources, validation.sources, recipe)
    fraction, seed = recipe.decoder_fraction, recipe.seed
    return EpochBatches(training, recipe.batch_size, recipe.accumulate, fraction, seed, often), held_terms


def without_long_turns(data: Tokenised, base: ModelFolder, strict: bool = False) -> Tokenised:
    """The data without turns that are longer than the model takes; they become faults.

    Raises:
        CsmError: nothing is left, or `strict` and there is one.
    """
    tokenizer, longest = TextTokenizer(base.beside), base.config.backbone.max_position_embeddings
    faults, kept = list(data.faults), []
    for conversation in data.conversations:
        turns = []
        for turn in conversation:
            rows = len(tokenizer.encode(turn.row.text, turn.row.speaker)) + turn.codes.shape[1] + 1
            if rows <= longest:
                turns.append(turn)
            else:
                faults.append(
                    Fault(turn.row.audio, f"needs {rows} rows and the model takes {longest}; cut it into clips")
                )
        if turns:
            kept.append(turns)
    require_usable(len(kept), faults, strict)
    return Tokenised(kept, faults, data.frame_rate)


def _base_name(base: ModelFolder) -> BaseName:
    """What base.json says of a base; where its companions are is said where that is not beside the weights."""
    alone = base.base is None and base.beside not in (base.path, base.path.parent)
    return BaseName(base.name, base.path.name, base.hash, str(base.beside.resolve()) if alone else None)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes two runs differ, one phrase each."""
    phrases = {"base": "the base model differs", "data": "the data differ", "schema_version": "its format differs"}
    found = [phrase for key, phrase in phrases.items() if old.get(key) != new[key]]
    if old.get("preset") != new["preset"]:
        found.append(f"its preset is {old.get('preset')}, now {new['preset']}")
    before, after = {**Recipe().to_dict(), **old.get("recipe", {})}, new["recipe"]  # older runs lack newer keys
    return found + [
        f"{key} was {before.get(key)}, now {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and key not in CHANGEABLE
    ]


def _version() -> str:
    try:
        return version("csm-finetune")
    except PackageNotFoundError:
        return "(not installed)"
