"""CSMFineTuner: from a recipe and data to a run folder. The documented Python API, and what the command line calls.

fine_tuner = CSMFineTuner(model_path="csm-tiny", output_dir="my_voice", learning_rate=5e-4)
fine_tuner.prepare_optimizer(freeze_backbone=True)
fine_tuner.train(train_dataset=[Segment("hello there.", 5, "hello.wav"), ...], batch_size=1, epochs=5)
"""

from __future__ import annotations

import itertools
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
from csm.data.ahead import spare_threads
from csm.data.batches import EpochBatches, validation_batches
from csm.data.codes import CodeCache, Tokenised, data_fingerprint, default_cache_folder, tokenise
from csm.data.codes_folder import read_turns
from csm.data.examples import ExampleSet
from csm.data.faults import Fault, render, require_usable
from csm.data.order import check_budget
from csm.data.row import Row
from csm.data.sources import make_sources, text_rows
from csm.data.speakers import learned_speakers
from csm.data.split import split
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
from csm.training.probe import find_batch
from csm.training.run_folder import TRAINER, Position, RunFolder, now
from csm.training.watchers import Report, Watchers

UNCHANGED = "unchanged"
RUN_SCHEMA = 1
AUTO = ("batch_size", "auto")


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
        self._found_batch: list[tuple[str, Mapping[str, Any]]] = []

    @property
    def resolved(self) -> Resolved:
        """The recipe as it stands: preset, what follows from the data, recommendation, further layers, with sources."""
        return resolve(self.preset, PRESETS[self.preset], [*self._by_data, *self.layers, *self._found_batch])

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
        found = tokenise(conversations, cache, progress, faults=faults, strict=strict, threads=spare_threads())
        return without_long_turns(found, self.base, strict)

    def read_codes(self, folder: Path, strict: bool = False) -> Tokenised:
        """What `csm-finetune tokenize` left in a folder; no sound file is needed. Raises as `read_turns`."""
        turns, frame_rate = read_turns(folder, self.backend.codec(self.base).fingerprint)
        return without_long_turns(Tokenised(turns, [], frame_rate, folder), self.base, strict)

    def unread_characters(self, data: Tokenised) -> str:
        """Characters of the transcripts that the model's tokenizer does not know, each once."""
        characters = set[str]()
        for text in data.turns.texts:
            characters.update(text)
        return TextTokenizer(self.base.beside).unknown_characters("".join(sorted(characters)))

    def train(
        self,
        train_dataset: Sequence[Segment | Conversation] | Tokenised,
        batch_size: int | str | None = None,
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
            batch_size: examples in a micro-batch; None keeps the recipe's, "auto" finds what fits.
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
        self._found_batch = []
        data = train_dataset if isinstance(train_dataset, Tokenised) else self._from_segments(train_dataset)
        watch = watch or (Watchers(report) if report else Watchers())
        self._follow(data, watch)
        training, validation = self._split(data)
        if self.resolved.recipe.terms:
            watch.notice(describe_terms(training.sources, validation.sources, self.resolved.recipe))
        if budget := self.resolved.recipe.max_batch_frames:
            for part in (training, validation):
                check_budget(part.most_rows, budget)
        if self.resolved.recipe.batch_size == 0:
            self._find_batch(training, fresh, watch)
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
        turns = data.turns
        sounds = (turns.row(number).audio for number in range(len(turns.frames)))
        for path in itertools.chain(bases, [data.folder] if data.folder else sounds):
            if path.resolve().is_relative_to(out):
                raise CsmError(
                    f"the output folder {self.run.path} holds what it is made from: {path}.", "Give another."
                )

    def _follow(self, data: Tokenised, watch: Watchers) -> None:
        """Let epochs follow from the minutes to learn, and say what the user should know before the work."""
        recipe, span = self.resolved.recipe, EPOCHS.get(self.preset)
        if recipe.select_by == "speaker_similarity" and watch.listen is None:
            raise CsmError("select_by speaker_similarity needs someone who listens.", "Pass `watch` with `listen`.")
        self._by_data = []
        if span and recipe.max_steps == 0:
            minutes = self._minutes(data)
            reason = span.reason(minutes)
            self._by_data = [(reason, {"epochs": span.epochs(minutes)})]
            if self.resolved.sources["epochs"] == reason:
                watch.notice(f"epochs: {self.resolved.recipe.epochs}, from {reason}")

    def _learned(self, data: Tokenised) -> set[int]:
        recipe = self.resolved.recipe
        return learned_speakers(data.speakers, recipe.mask_speaker_ids, recipe.only_speaker_ids)

    def _minutes(self, data: Tokenised) -> float:
        """Minutes of the turns that carry loss."""
        learns = np.isin(data.turns.speakers, list(self._learned(data)))
        return data.minutes(learns)

    def _split(self, data: Tokenised) -> tuple[ExampleSet, ExampleSet]:
        recipe, config = self.resolved.recipe, self.base.config
        sources = make_sources(data.turns, TextTokenizer(self.base.beside), config.num_codebooks)
        learned = list(self._learned(data))
        heard = sources.conversations[np.isin(sources.speakers, learned)]
        sources = sources.take(np.isin(sources.conversations, heard))
        of_note = TermClips.finder(recipe.terms) if recipe.terms else None
        parts = split(sources, recipe.val_split, recipe.seed, of_note)
        training, validation = (part.take(np.isin(part.speakers, learned)) for part in parts)
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

    def _find_batch(self, training: ExampleSet, fresh: bool, watch: Watchers) -> None:
        """Replace batch_size 0 by what fits, or by what an unfinished run found, so that it goes on alike."""
        if self.run.exists and not fresh:
            old = {**Recipe().to_dict(), **self.run.recipe().get("recipe", {})}
            values = {key: old[key] for key in ("batch_size", "accumulate")}
            self._found_batch = [("auto: what the run began with", values)]
            return
        asked = self.resolved.recipe
        stated: list[tuple[str, Mapping[str, Any]]] = [
            (source, {key: value for key, value in layer.items() if (key, value) != AUTO})
            for source, layer in self.layers
        ]
        update = resolve(self.preset, PRESETS[self.preset], stated).recipe.batch_size * asked.accumulate
        trainer = self.backend.trainer(self.base, replace(asked, batch_size=1))
        fit = find_batch(trainer, training, asked, update, self.backend.available_memory())
        del trainer
        self.backend.release_memory()
        self._found_batch = [(fit.reason, dict(batch_size=fit.batch_size, accumulate=fit.accumulate))]
        watch.notice(f"batch size: {fit.batch_size}, {fit.accumulate} to an update of {update} ({fit.reason})")

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
        often, held_terms = term_shares(training.sources, validation.sources, recipe)
        batches = EpochBatches(
            training,
            recipe.batch_size,
            recipe.accumulate,
            recipe.decoder_fraction,
            recipe.seed,
            often,
            recipe.max_batch_frames,
        )
        held_out = validation_batches(validation, recipe.batch_size, recipe.max_batch_frames)
        return Parts(trainer, batches, held_out, self.run, unchanged, recipe, term_clips=held_terms)

    def _identity(self, data: Tokenised) -> dict[str, Any]:
        """What makes a run this run: written as recipe.json, and held against it on resume."""
        return {
            "schema_version": RUN_SCHEMA,
            "preset": self.preset,
            "base": self.base.hash,
            "data": data_fingerprint(data.turns),
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
        return {
            "schema_version": RUN_SCHEMA,
            "parent": {
                "path": self.base.name,
                "beside": str(self.base.beside.resolve()),
                "hash": self.base.hash,
                "run": parent_run(self.base.path),
            },
            "data": {
                "fingerprint": data_fingerprint(data.turns),
                "clips": len(data.turns.frames),
                "minutes": round(data.minutes(), 2),
                "speakers": data.speakers,
                "skipped": [fault.text for fault in data.faults],
                "training": [source.id for source in training.sources],
                "validation": [source.id for source in validation.sources],
            },
            "recipe_sources": dict(self.resolved.sources),
            "backend": self.backend.reason,
            "program": f"csm-finetune {_version()}",
            "started": now(),
        }


def without_long_turns(data: Tokenised, base: ModelFolder, strict: bool = False) -> Tokenised:
    """The data without turns that are longer than the model takes; they become faults.

    Raises:
        CsmError: nothing is left, or `strict` and there is one.
    """
    turns, longest = data.turns, base.config.backbone.max_position_embeddings
    rows = text_rows(turns, TextTokenizer(base.beside)) + turns.frames + 1
    faults = list(data.faults)
    for number in np.flatnonzero(rows > longest).tolist():
        needs = f"needs {rows[number]} rows and the model takes {longest}; cut it into clips"
        faults.append(Fault(turns.row(number).audio, needs))
    kept = turns.take(rows <= longest)
    require_usable(len(kept), faults, strict)
    return replace(data, conversations=kept, faults=faults)


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
