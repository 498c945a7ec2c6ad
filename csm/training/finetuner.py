"""CSMFineTuner: from a recipe and data to a run folder. The documented Python API, and what the command line calls.

fine_tuner = CSMFineTuner(model_path="csm-tiny", output_dir="my_voice", learning_rate=5e-4)
fine_tuner.prepare_optimizer(freeze_backbone=True)
fine_tuner.train(train_dataset=[Segment("hello there.", 5, "hello.wav"), ...], batch_size=1, epochs=5)
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from csm.adapters.origin import write_base
from csm.adapters.plan import plan_adapters
from csm.backend import Backend, choose_backend
from csm.data.ahead import spare_threads
from csm.data.batches import EpochBatches, validation_batches
from csm.data.codes import CodeCache, Tokenised, data_fingerprint, default_cache_folder, tokenise
from csm.data.codes_folder import read_turns
from csm.data.cutting import Cutting, cut
from csm.data.examples import ExampleSet
from csm.data.faults import Fault, render
from csm.data.order import check_budget
from csm.data.row import Row
from csm.data.sources import Sources, make_sources
from csm.data.speakers import learned_speakers
from csm.data.split import split
from csm.data.terms import TermClips, describe_terms, term_shares
from csm.errors import CsmError
from csm.model_folder import ModelFolder, open_folder, pointed_to
from csm.presets import EPOCHS, PRESETS
from csm.recipe import BY_SOUND, CHANGEABLE, Recipe, Resolved, nearest, resolve
from csm.segment import Conversation, Segment
from csm.tokenizer import TextTokenizer
from csm.training.batch_fit import find_batch
from csm.training.dataset import tokenise_segments
from csm.training.lengths import describe_limits, fit_turns, longest_rows
from csm.training.lineage import parent_run
from csm.training.loop import Parts, train
from csm.training.run_folder import TRAINER, Position, RunFolder, now
from csm.training.watchers import Report, Watchers
from csm.weights import parameter_shapes

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
        if not isinstance(output_dir, str | Path):
            raise CsmError(f"output_dir is {output_dir!r:.60}; it is a path.")
        self.preset = preset
        self.base: ModelFolder = open_folder(model_path, base)
        self.run = RunFolder(Path(output_dir).expanduser())
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
        plan = plan_adapters(config, recipe.lora, recipe.frozen).describe(config)
        shapes = parameter_shapes(config)
        whole = sum(prod(shapes[name]) for name in recipe.lora.whole)
        return f"{plan}; and {whole:,} of the embeddings, as they are" if whole else plan

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
        cutting: Cutting | None = None,
    ) -> Tokenised:
        """Codes of rows that were read from files, through the cache; `cutting` first cuts the long ones.

        Raises as `csm.data.cutting.cut` and `csm.data.codes.tokenise`, and where the model has no symbol for a speaker.
        """
        if cutting:
            pieces = cut(conversations, cutting)
            conversations, faults = pieces.conversations, [*faults, *pieces.faults]
        speakers = (row.speaker for conversation in conversations for row in conversation)
        TextTokenizer(self.base.beside).require_speakers(speakers)
        cache = CodeCache(self.cache_folder, self.backend.codec(self.base))
        found = tokenise(conversations, cache, progress, faults=faults, strict=strict, threads=spare_threads())
        return fit_turns(found, self.base, self.resolved.recipe, strict)

    def read_codes(self, folder: Path, strict: bool = False) -> Tokenised:
        """What `csm-finetune tokenize` left in a folder; no sound file is needed. Raises as `read_turns`."""
        turns, frame_rate = read_turns(folder, self.backend.codec(self.base).fingerprint)
        return fit_turns(Tokenised(turns, [], frame_rate, folder), self.base, self.resolved.recipe, strict)

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
        validation_dataset: Sequence[Segment | Conversation] | Tokenised | None = None,
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
            validation_dataset: what to validate on, in place of a share of `train_dataset`: the recipe's val_split is 0.
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
        data = self._tokenised(train_dataset)
        held = None if validation_dataset is None else self._tokenised(validation_dataset)
        watch = watch or (Watchers(report) if report else Watchers())
        self._follow(data, watch)
        training, validation = self._split(data, held, watch)
        if self.resolved.recipe.terms:
            watch.notice(describe_terms(training.sources, validation.sources, self.resolved.recipe))
        if budget := self.resolved.recipe.max_batch_frames:
            for part in (training, validation):
                check_budget(part.most_rows, budget)
        if self.resolved.recipe.batch_size == 0:
            self._find_batch(training, fresh, watch)
        identity = self._identity(data, held)
        self._refuse_own_inputs(data, held)
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
        found = fit_turns(found, self.base, self.resolved.recipe)
        if found.faults:
            warnings.warn(f"skipped:\n{render(found.faults)}", stacklevel=3)
        return found

    def _tokenised(self, data: Sequence[Segment | Conversation] | Tokenised) -> Tokenised:
        if isinstance(data, Tokenised):
            return fit_turns(data, self.base, self.resolved.recipe)
        return self._from_segments(data)

    def _refuse_own_inputs(self, *data: Tokenised | None) -> None:
        """A run folder must not hold its own base or recordings: --fresh would move them away."""
        out = self.run.path.resolve()
        bases, below = [self.base.path], self.base.base
        while below is not None:
            bases, below = [*bases, below.path], below.base
        sounds = (path for one in data if one is not None for path in _inputs(one))
        for path in itertools.chain(bases, sounds):
            if path.resolve().is_relative_to(out):
                raise CsmError(
                    f"the output folder {self.run.path} holds what it is made from: {path}.", "Give another."
                )

    def _follow(self, data: Tokenised, watch: Watchers) -> None:
        """Let epochs follow from the minutes to learn, and say what the user should know before the work."""
        if (by := self.resolved.recipe.select_by) in BY_SOUND and watch.listen is None:
            raise CsmError(f"select_by {by} needs someone who listens.", "Pass `watch` with `listen`.")
        if reason := self._set_epochs(data):
            watch.notice(f"epochs: {self.resolved.recipe.epochs}, from {reason}")
        for sentence in describe_limits(data, self.base, self.resolved.recipe):
            watch.notice(sentence)

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
        return learned_speakers(data.speakers, recipe.mask_speaker_ids, recipe.only_speaker_ids)

    def _minutes(self, data: Tokenised) -> float:
        """Minutes of the turns that carry loss."""
        turns, learned = data.turns, list(self._learned(data))
        learns = np.isin(turns.speakers, learned)
        return data.minutes(learns if turns.weights is None else learns & (turns.weights > 0))

    def _sources(self, data: Tokenised, learned: set[int]) -> tuple[Sources, Sources]:
        """The conversations that have a turn to learn, and the clips that stand alone and are context only.

        Raises:
            CsmError: no turn carries loss.
        """
        codebooks = len(data.turns.codes(0))  # the model's, or one where a run is only planned
        sources = make_sources(data.turns, TextTokenizer(self.base.beside), codebooks)
        mine, counts = np.isin(sources.speakers, list(learned)), sources.carrying_loss(learned)
        if mine.any() and not counts.any():
            raise CsmError(
                "every turn to learn has the weight 0: nothing would be learned.", "Give some a weight of 1."
            )
        kept = np.isin(sources.conversations, sources.conversations[counts])
        return sources.take(kept), sources.take(sources.alone & mine & ~counts)

    def _split(
        self, data: Tokenised, held: Tokenised | None = None, watch: Watchers | None = None
    ) -> tuple[ExampleSet, ExampleSet]:
        recipe, learned = self.resolved.recipe, self._learned(data)
        of_note = TermClips.finder(recipe.terms) if recipe.terms else None
        sources, aside = self._sources(data, learned)
        parts = split(sources, recipe.val_split, recipe.seed, of_note)
        if held is not None:
            parts = parts[0], self._held(parts[0], held, learned, watch or Watchers())
        training, validation = (part.take(part.carrying_loss(learned)) for part in parts)
        if not len(validation) and recipe.early_stop and recipe.select_by == "validation_loss":
            raise CsmError(
                "early_stop has nothing to go by: nothing is held out.", "Hold out a tenth: --val-split 0.1."
            )
        if recipe.terms and not TermClips.of(training, recipe.terms).holds.any():
            raise CsmError(
                f"no clip to learn from holds any of the {len(recipe.terms)} terms.",
                "Terms are found as whole words in the transcripts; inflections are terms of their own.",
            )
        turns, longest, lone = recipe.context_turns, longest_rows(self.base, recipe), recipe.clip_context
        aside = aside.take(~np.isin(aside.sounds, validation.sounds))
        return (
            ExampleSet(training, turns, longest, recipe.seed, recipe.context_dropout, lone, aside),
            ExampleSet(validation, turns, longest, recipe.seed, clip_context=lone),
        )

    def _held(self, training: Sources, held: Tokenised, learned: set[int], watch: Watchers) -> Sources:
        """The turns of data that was given to validate on."""
        if share := self.resolved.recipe.val_split:
            raise CsmError(
                f"val_split is {share:g}, and data to validate on is given as well.",
                "Give --val-split 0, or leave it out.",
            )
        found = self._sources(held, learned)[0]
        if not found.carrying_loss(learned).any():
            raise CsmError("the data to validate on have no turn of a speaker that is learned.")
        if both := int(np.isin(found.sounds, training.sounds).sum()):
            watch.notice(f"{both} of {len(found)} turns to validate on are learned from too: their loss says little")
        return found

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
            write_base(self.base.origin, unchanged)
        elif not unchanged.is_dir():
            self.backend.write_unchanged(self.base, trainer.trained_names, unchanged)
        batches, held_terms = _batches(training, validation, recipe)
        most = recipe.max_batch_frames
        held_out = validation_batches(validation, recipe.val_batch_size or recipe.batch_size, most)
        return Parts(trainer, batches, held_out, self.run, unchanged, recipe, term_clips=held_terms)

    def _identity(self, data: Tokenised, held: Tokenised | None) -> dict[str, Any]:
        """What makes a run this run: written as recipe.json, and held against it on resume."""
        return {
            "schema_version": RUN_SCHEMA,
            "preset": self.preset,
            "base": self.base.hash,
            "data": data_fingerprint(data.turns),
            **({} if held is None else {"validation": data_fingerprint(held.turns)}),
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


def _inputs(data: Tokenised) -> Iterator[Path]:
    """The folder of codes, or the sound files, that data was read from."""
    if data.folder:
        yield data.folder
        return
    for number in range(len(data.turns.frames)):
        yield data.turns.row(number).audio


def _batches(training: ExampleSet, validation: ExampleSet, recipe: Recipe) -> tuple[EpochBatches, np.ndarray | None]:
    """The updates of a run, and which of the held-out clips hold a term."""
    often, held_terms = term_shares(training.sources, validation.sources, recipe)
    size, most = recipe.batch_size, recipe.max_batch_frames
    fraction, seed = recipe.decoder_fraction, recipe.seed
    return EpochBatches(training, size, recipe.accumulate, fraction, seed, often, most), held_terms


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes two runs differ, one phrase each."""
    phrases = {
        "base": "the base model differs", "data": "the data differ", "validation": "the data to validate on differ",
        "schema_version": "its format differs",
    }  # fmt: skip
    found = [phrase for key, phrase in phrases.items() if old.get(key) != new.get(key)]
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
