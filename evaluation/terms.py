"""Are a domain's terms said right: how often each was heard where it stands in the text, and what was heard instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evaluation.words import align, normalise


@dataclass
class TermScore:
    """One term over all samples.

    Args:
        term: as the user wrote it.
        said: how often it stands in the texts.
        heard: how often the recogniser heard it there, and it as a whole.
        instead: what was heard in its place, with counts; the empty string where nothing was.
    """

    term: str
    said: int = 0
    heard: int = 0
    instead: Counter[str] = field(default_factory=Counter)

    @property
    def hit_rate(self) -> float | None:
        """The share heard; None for a term that no text holds."""
        return self.heard / self.said if self.said else None


def score_terms(terms: Sequence[str], pairs: Iterable[tuple[str, str]], language: str = "en") -> list[TermScore]:
    """Score terms over samples.

    Args:
        terms: words or phrases; inflections are terms of their own.
        pairs: of each sample the text and what was heard.
        language: as for `measure_words`.
    """
    wanted = {term: normalise(term, language).split() for term in terms}
    scores = {term: TermScore(term) for term in terms}
    for text, heard in pairs:
        chunks = align(normalise(text, language), normalise(heard, language))
        said, places = _laid_out(chunks)
        for term, words in wanted.items():
            for at in range(len(said) - len(words) + 1) if words else ():
                if said[at : at + len(words)] == words:
                    _count(scores[term], words, places, at)
    return list(scores.values())


def _laid_out(chunks: list[tuple[list[str], list[str]]]) -> tuple[list[str], list[list[str]]]:
    """The words said, and for each the words heard in its place; what a longer stretch became goes to its first words."""
    said: list[str] = []
    places: list[list[str]] = []
    for ours, theirs in chunks:
        if not ours:
            if places:
                places[-1] = places[-1] + theirs
            continue
        shares = [theirs[i : i + 1] for i in range(len(ours))]
        shares[-1] = theirs[len(ours) - 1 :]
        said += ours
        places += shares
    return said, places


def _count(score: TermScore, words: list[str], places: list[list[str]], at: int) -> None:
    found = [word for place in places[at : at + len(words)] for word in place]
    score.said += 1
    if found[: len(words)] == words:
        score.heard += 1
    else:
        score.instead[" ".join(found)] += 1
