"""Terms: the words that a domain's run is about. Clips that say one are shown more often, and are validated apart.

A term is found as whole words, whatever their case: "ulna" is in "the Ulna, here" and not in "ulnar". Inflections are terms
of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csm.data.draws import rng_for
from csm.data.row import clean_text
from csm.data.sources import Source, Sources
from csm.errors import CsmError
from csm.recipe import Recipe


def read_terms(path: Path) -> tuple[str, ...]:
    """The terms of a file, one a line, each once, in their order; empty lines are passed over.

    Raises:
        CsmError: the file is missing, is not UTF-8, or holds no term.
    """
    if not path.is_file():
        raise CsmError(f"the file of terms {path} is not there.")
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CsmError(f"{path} is not UTF-8 text (byte {error.start + 1}).", "Save it as UTF-8.") from None
    terms = tuple(dict.fromkeys(term for line in lines if (term := clean_text(line))))
    if not terms:
        raise CsmError(f"{path} holds no term.", "Write one term a line.")
    return terms


@dataclass(frozen=True)
class TermClips:
    """Which of a split's clips hold a term, `(n,)` bool, and which terms none of them holds."""

    holds: np.ndarray
    absent: tuple[str, ...]

    @classmethod
    def of(cls, sources: Sequence[Source], terms: Sequence[str]) -> TermClips:
        says, texts = cls.finder(terms), list[str]()
        holds = np.zeros(len(sources), bool)
        for i, text in enumerate(Sources.of(sources).texts):
            if says(text):
                holds[i] = True
                texts.append(_folded(text))
        joined = "\n".join(texts)
        return cls(holds, tuple(term for term in terms if not _pattern([term]).search(joined)))

    @staticmethod
    def finder(terms: Sequence[str]) -> Callable[[str], bool]:
        """A function that says whether a clip's text holds any of the terms."""
        wanted = _pattern(terms)
        return lambda text: bool(wanted.search(_folded(text)))


def _folded(text: str) -> str:
    return clean_text(text).casefold()


def _pattern(terms: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(clean_text(term).casefold()) for term in terms)})(?!\w)")


def repeated(id_of: Callable[[int], str], often: Sequence[float], seed: int, epoch: int) -> list[int]:
    """Indices of the examples that an epoch shows, each `often` times: whole times first, then what is drawn.

    Of a factor like 2.5 every epoch shows twice all and a third time half of those with that factor, drawn by
    (seed, epoch, id): another half each time, and equally many.
    """
    shown = [i for i, times in enumerate(often) for _ in range(int(times))]
    for factor in sorted({times for times in often if times % 1}):
        share = [i for i, times in enumerate(often) if times == factor]
        draws = {i: rng_for(seed, epoch, id_of(i), "terms").random() for i in share}
        shown += sorted(sorted(share, key=draws.__getitem__)[: round((factor % 1) * len(share))])
    return shown


def term_shares(
    training: Sequence[Source], validation: Sequence[Source], recipe: Recipe
) -> tuple[list[float] | None, np.ndarray | None]:
    """How often an epoch shows each clip to learn from, and which held-out clips hold a term; None without terms."""
    if not recipe.terms:
        return None, None
    learned, held = (TermClips.of(part, recipe.terms).holds for part in (training, validation))
    return [recipe.term_factor if holds else 1.0 for holds in learned.tolist()], held


def describe_terms(training: Sequence[Source], validation: Sequence[Source], recipe: Recipe) -> str:
    """One sentence: how many terms occur, in how many clips of each side, and which do not."""
    learned, held = (TermClips.of(part, recipe.terms) for part in (training, validation))
    absent = f"; not found: {', '.join(learned.absent[:8])}" if learned.absent else ""
    apart = f"{held.holds.sum()} of {len(validation)} held-out clips, validated apart"
    return (
        f"terms: {len(recipe.terms) - len(learned.absent)} of {len(recipe.terms)} occur, in {learned.holds.sum()} of "
        f"{len(training)} clips, each shown {recipe.term_factor:g} times an epoch, and in "
        f"{apart if held.holds.any() else 'no held-out clip, so none can be validated apart'}{absent}"
    )
