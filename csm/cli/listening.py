"""Listener: what a run's model says on the way, kept as samples and compared with recordings of the voice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from csm.backend import Backend
    from csm.data.row import Row
    from csm.samples import SpokenSample
    from evaluation.reference import Reference

RECORDINGS = 40  # of the data's own, where no reference is named: enough for a mean voice
SEED = 0


def name_of(step: int) -> str:
    """What the samples of a step are called."""
    return f"step-{step:06d}" if step else "base"


class Listener:
    """Speaks fixed prompts with one seed, and says how like the voice they are.

    Args:
        backend: where the run trains; samples are spoken there too, threads and dtype being the run's.
        run: the run folder; samples go to `samples/step-000200`, the base's to `samples/base`.
        rows: the data, of which the speaker with the most clips among `speakers` is spoken as.
        prompts: what is said; the built-in sentences where there are none.
        reference: a folder of recordings; the data's own clips of that speaker where it is None.
        speakers: whose turns are learned; None for all.
    """

    seeds: Sequence[int] = (SEED,)

    def __init__(
        self,
        backend: Backend,
        run: Path,
        rows: Sequence[Row],
        prompts: Sequence[str] = (),
        reference: Path | None = None,
        speakers: set[int] | None = None,
    ):
        from csm.samples import DEFAULT_TEXTS

        self.backend, self.run, self.prompts, self.reference = backend, run, prompts or DEFAULT_TEXTS, reference
        learned = [row for row in rows if speakers is None or row.speaker in speakers]
        self.speaker = Counter(row.speaker for row in learned).most_common(1)[0][0]
        self.recordings = [row for row in learned if row.speaker == self.speaker][:RECORDINGS]

    def __call__(self, folder: Path, step: int) -> dict[str, float]:
        """`speaker_similarity`, the mean over the prompts, 0 for one that was not spoken; and how many were."""
        spoken = self.speak(folder, step)
        likeness = [self._likeness(sample) for sample in spoken]
        known = [value for value in likeness if value is not None]
        return {"speaker_similarity": sum(known) / len(spoken), "samples_spoken": float(len(known))}

    def speak(self, folder: Path, step: int) -> list[SpokenSample]:
        """What the model in `folder` says to the prompts, kept under the name of its step."""
        from csm.generator import Generator
        from csm.model_folder import open_folder
        from csm.samples import speak_samples

        generator = Generator(open_folder(folder), self.backend)
        return speak_samples(generator, self.prompts, self.speaker, self.seeds, self.run / "samples" / name_of(step))

    def _likeness(self, sample: SpokenSample) -> float | None:
        from csm.audio import read_audio
        from evaluation.speaker import embed, similarity, unusable

        if sample.path is None:
            return None
        wave, rate = read_audio(sample.path)
        return None if unusable(wave, rate) else similarity(embed(wave, rate), self.voice)

    @property
    def voice(self) -> np.ndarray:
        """The mean voice of the recordings, `(256,)`."""
        return self.target.embedding

    @cached_property
    def target(self) -> Reference:
        """The recordings that samples are compared with."""
        from csm.audio import read_audio
        from evaluation.reference import Reference
        from evaluation.sample import Sample

        if self.reference:
            return Reference.from_folder(self.reference)
        recordings = [
            Sample(row.audio.name, None, 0, *read_audio(row.audio, row.start, row.end)) for row in self.recordings
        ]
        return Reference.from_recordings("the data's recordings", recordings)
