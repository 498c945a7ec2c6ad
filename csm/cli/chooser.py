"""Chooser: a listener that holds a checkpoint against its base, by the rule that `csm evaluate` chooses with."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from csm.cli.listening import Listener, name_of
from csm.cli.scoring import make_judges, read_sample
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.samples import SpokenSample
    from evaluation.judges import Judges
    from evaluation.score import SystemScores

FEWEST_PROMPTS = 5  # over fewer texts there is no interval


class Chooser(Listener):
    """Gives `score`, besides what a listener gives: the mean similarity, less 1 for what lost words, endings or naturalness.

    A sample without a usable voice counts 0. What is lost is significantly worse than the base beyond the rule's margin, on the
    same prompts and seeds; so any checkpoint that lost nothing is before any that did.
    """

    seeds = (0, 1)

    def __call__(self, folder: Path, step: int) -> dict[str, float]:
        """`score`, `speaker_similarity` and the means of the words, endings and opinions that there are."""
        from evaluation.choice import GUARDS, lost, mean_with_failures

        if step:
            _ = self.base  # before the work: without it nothing can be held against it
        scores = self._score(self.speak(folder, step), step)
        if step == 0:
            self.base = scores
        similarity = mean_with_failures(scores.samples)
        figures = {key: scores.summary[key] for key in GUARDS if scores.summary[key] is not None}
        spoken = float(scores.summary["scored"])
        score = similarity - (1.0 if step and lost(self.base, scores) else 0.0)
        return {"score": score, "speaker_similarity": similarity, "samples_spoken": spoken, **figures}

    def _score(self, spoken: list[SpokenSample], step: int) -> SystemScores:
        from evaluation.score import score_system

        name = name_of(step)
        samples = [read_sample(sample, self.run / "samples", name) for sample in spoken]
        return score_system(name, samples, self.target, "checkpoint" if step else "base", self.judges)

    @cached_property
    def base(self) -> SystemScores:
        """The base's scores: those of the run's first step, or of the samples that it left then.

        Raises:
            CsmError: samples of the base are gone.
        """
        from csm.samples import spoken_before

        folder = self.run / "samples" / name_of(0)
        found = spoken_before(folder, self.prompts, self.seeds, self.speaker)
        if found is None:
            raise CsmError(
                f"the base's samples in {folder} are gone: without them select_by score has nothing to compare with.",
                "Put them back, or begin anew with --fresh.",
            )
        return self._score(found, 0)

    @cached_property
    def judges(self) -> Judges:
        """The recogniser and the predictor that are installed."""
        return make_judges(None)
