"""Which phones of English the texts hold, and how often: a voice that never heard one has to guess it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

ARPABET = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K", "L",
    "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
"""The 39 phones of the CMU dictionary."""

Pronounce = Callable[[str], Sequence[str] | None]
"""A word in lower case -> its phones, with or without digits of stress; None where it is not known."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Coverage:
    """How often each phone occurs (every key of `ARPABET`), and the words that the dictionary lacks, how often each."""

    counts: dict[str, int]
    unknown: dict[str, int]
    words: int

    @property
    def missing(self) -> list[str]:
        return [phone for phone in ARPABET if not self.counts[phone]]


def phone_coverage(texts: Iterable[str], pronounce: Pronounce) -> Coverage:
    """Count the phones of English texts; digits are read by nobody here, so spell numbers first."""
    words = Counter(word.lower().replace("’", "'") for text in texts for word in _WORD.findall(text))
    counts, unknown = Counter[str](), Counter[str]()
    for word, often in words.items():
        phones = pronounce(word)
        if phones is None:
            unknown[word] = often
        for phone in phones or ():
            counts[phone.rstrip("012")] += often
    return Coverage({phone: counts[phone] for phone in ARPABET}, dict(unknown.most_common()), words.total())
