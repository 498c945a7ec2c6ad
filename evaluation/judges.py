"""Judges: whoever is asked about a sample besides its own sound: a recogniser, a predictor of opinions, other voices.

All are optional. What no judge could be asked is absent with a sentence, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation import naturalness, words
from evaluation.measures import Measures, fault
from evaluation.memory import Memory
from evaluation.naturalness import PREDICTOR, measure_naturalness
from evaluation.pauses import timing
from evaluation.sample import Sample
from evaluation.speaker import mean_embedding, similarity
from evaluation.terms import score_terms
from evaluation.words import Recogniser, measure_words

TERM_KEY = "term_hit_rate"
KEYS = (*words.KEYS, *naturalness.KEYS, TERM_KEY)
SAME_VOICE = 0.825
"""Similarity of 3 s to a mean voice above which the two are called one.

Where both errors were equal, .8 %, on 132 pieces of 3 s against their own voice and 1862 against another: Debian's four
speakers (one in English and Spanish, both of which her mean voice held) and four bends of hibari, a synthetic one. Limits:
a voice in another language than all of its reference comes out at .72 to .88, and is often called another.
"""


@dataclass(frozen=True)
class Judges:
    """Who is asked.

    Args:
        recogniser: from a wave and its rate to the words heard; None where there is none.
        language: of the texts, as BCP 47 writes it.
        predicts_mos: whether opinions are predicted (evaluation/naturalness.py).
        others: voices `(256,)` by name, that the samples should resemble less than the target.
        memory: what was said of sounds before; None asks anew.
        hearer: the recogniser's name, under which the memory keeps what it hears.
        terms: what is looked for in what was heard.
    """

    recogniser: Recogniser | None = None
    language: str = "en"
    predicts_mos: bool = False
    others: Mapping[str, np.ndarray] = field(default_factory=dict)
    memory: Memory | None = None
    hearer: str = ""
    terms: tuple[str, ...] = ()

    def ask(self, sample: Sample) -> tuple[Measures, str | None]:
        """The values under `KEYS`, and the words heard, None without a recogniser."""
        heard = None
        if self.recogniser is not None:
            audible = fault(sample.wave, sample.rate) is None and timing(sample.wave, sample.rate) is not None
            hear, question = self.recogniser, f"words in {self.language} by {self.hearer}"
            heard = self._recall(question, sample, lambda: hear(sample.wave, sample.rate)) if audible else ""
        measures = measure_words(sample.text, heard, self.language)
        if self.predicts_mos:
            told = self._recall(
                f"opinion by {PREDICTOR}", sample, lambda: vars(measure_naturalness(sample.wave, sample.rate))
            )
            measures.update(Measures(**told))
        else:
            measures.update(Measures.absent(naturalness.KEYS, "No opinions were predicted."))
        measures.update(self._terms_heard(sample.text, heard))
        return measures, heard

    def _terms_heard(self, text: str | None, heard: str | None) -> Measures:
        """The share of the text's terms that were heard."""
        if not self.terms or heard is None or not text:
            return Measures.absent((TERM_KEY,), "No terms were given." if not self.terms else "No words are known.")
        found, measures = score_terms(self.terms, [(text, heard)], self.language), Measures()
        said = sum(one.said for one in found)
        hits = sum(one.heard for one in found)
        measures.put(TERM_KEY, hits / said if said else None, "The text holds none of the terms.")
        return measures

    def _recall(self, question: str, sample: Sample, ask: Callable[[], Any]) -> Any:
        return ask() if self.memory is None else self.memory.recall(question, sample.wave, sample.rate, ask)

    def keep(self) -> None:
        """Let the memory write what is new, where there is one."""
        if self.memory is not None:
            self.memory.keep()

    def compare(self, pieces: Sequence[np.ndarray], target: np.ndarray) -> Measures:
        """Verification of a system's voice.

        Args:
            pieces: voices of pieces of 3 s and more, each `(256,)`.
            target: the reference's mean voice.

        Returns:
            `same_voice_share`, the share of pieces above `SAME_VOICE`, and `nearest_other_similarity`, of their mean to the
            nearest of `others`.
        """
        measures = Measures()
        share = float(np.mean([similarity(piece, target) > SAME_VOICE for piece in pieces])) if pieces else None
        measures.put("same_voice_share", share, "The samples make no piece of 3 s.")
        nearest = None
        if pieces and self.others:
            voice = mean_embedding(pieces)
            nearest = max(similarity(voice, other) for other in self.others.values())
        reason = "No other voice was given." if not self.others else "The samples make no piece of 3 s."
        measures.put("nearest_other_similarity", nearest, reason)
        return measures
