"""The process behind `evaluation.aligner`: questions on stdin (a line of JSON, then 16-bit samples), answers on stdout."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from typing import Any

from evaluation.spelling import spell_numbers

FRAME_SECONDS = 0.01
_SOUNDS = (  # letters of words outside the dictionary, longest first, as the phones of CMU's dictionary
    ("tch", "CH"), ("sch", "SH"), ("igh", "AY"), ("eau", "OW"), ("ch", "CH"), ("sh", "SH"), ("th", "TH"), ("ph", "F"),
    ("ck", "K"), ("ng", "NG"), ("qu", "K W"), ("wh", "W"), ("ee", "IY"), ("ea", "IY"), ("oo", "UW"), ("ou", "AW"),
    ("ow", "OW"), ("oi", "OY"), ("oy", "OY"), ("ai", "EY"), ("ay", "EY"), ("au", "AO"), ("aw", "AO"), ("ie", "IY"),
    ("er", "ER"), ("ir", "ER"), ("ur", "ER"), ("a", "AE"), ("b", "B"), ("c", "K"), ("d", "D"), ("e", "EH"), ("f", "F"),
    ("g", "G"), ("h", "HH"), ("i", "IH"), ("j", "JH"), ("k", "K"), ("l", "L"), ("m", "M"), ("n", "N"), ("o", "AA"),
    ("p", "P"), ("q", "K"), ("r", "R"), ("s", "S"), ("t", "T"), ("u", "AH"), ("v", "V"), ("w", "W"), ("x", "K S"),
    ("y", "IY"), ("z", "Z"),
)  # fmt: skip
_NAMES = dict(zip("abcdefghijklmnopqrstuvwxyz", (
    "EY", "B IY", "S IY", "D IY", "IY", "EH F", "JH IY", "EY CH", "AY", "JH EY", "K EY", "EH L", "EH M", "EH N", "OW",
    "P IY", "K Y UW", "AA R", "EH S", "T IY", "Y UW", "V IY", "D AH B AH L Y UW", "EH K S", "W AY", "Z IY",
), strict=True))  # fmt: skip


def spoken_words(token: str) -> list[str]:
    """What is said for one written word, in the dictionary's letters: `5,` is `five`, `well-known` two words."""
    plain = unicodedata.normalize("NFKD", spell_numbers(token.replace("’", "'")))
    bare = "".join(c for c in plain if not unicodedata.combining(c))
    if re.fullmatch(r"\W*[B-DF-HJ-NP-TV-XZ]{2,5}\W*", bare):
        return [letter.lower() for letter in bare if letter.isalpha()]
    return [word.strip("'") for word in re.findall(r"[a-z']+", bare.lower()) if word.strip("'")]


def phones_of(word: str) -> str:
    """The phones of a word outside the dictionary, letter by letter; names of letters where there is no vowel."""
    letters = word.replace("'", "")
    if not re.search("[aeiouy]", letters):
        return " ".join(_NAMES[letter] for letter in letters)
    phones = []
    while letters:
        written, sound = next(pair for pair in _SOUNDS if letters.startswith(pair[0]))
        phones.append(sound)
        letters = letters[len(written) :]
    return " ".join(phones)


def align(decoder: Any, tokens: list[str], samples: bytes) -> dict[str, Any]:
    """The start and end of every token in seconds; a token with nothing to say has its neighbour's end."""
    spoken = [spoken_words(token) for token in tokens]
    words = [word for said in spoken for word in said]
    if not words:
        return {"problem": "its text has no word that can be spoken"}
    for word in dict.fromkeys(words):
        if decoder.lookup_word(word) is None:
            decoder.add_word(word, phones_of(word), True)
    times = _times(decoder, words, samples)
    if times is None:
        return {"problem": "its text could not be found in its sound"}
    spans: list[tuple[float, float]] = []
    at = 0
    for said in spoken:
        before = spans[-1][1] if spans else times[0][0]
        spans.append((times[at][0], times[at + len(said) - 1][1]) if said else (before, before))
        at += len(said)
    return {"spans": spans}


def _times(decoder: Any, words: list[str], samples: bytes) -> list[tuple[float, float]] | None:
    """Where the words are; None where the search lost them, as it does over a word that is not said."""
    decoder.set_align_text(" ".join(words))
    _run(decoder, samples)
    if [name for name in (_bare(segment.word) for segment in decoder.seg() or ()) if name] != words:
        return None
    decoder.set_alignment()
    _run(decoder, samples)
    found = [word for word in decoder.get_alignment() or () if _bare(word.name)]
    if [_bare(word.name) for word in found] != words:
        return None
    return [(word.start * FRAME_SECONDS, (word.start + word.duration) * FRAME_SECONDS) for word in found]


def _bare(name: str) -> str:
    """A word without the number of its pronunciation; nothing for silence and noise."""
    return "" if name[0] in "<[+" else re.sub(r"\(\d+\)$", "", name)


def _run(decoder: Any, samples: bytes) -> None:
    decoder.reinit_feat()
    decoder.start_utt()
    decoder.process_raw(samples, full_utt=True)
    decoder.end_utt()


def main() -> None:
    import pocketsphinx

    decoder = pocketsphinx.Decoder(lm=None, bestpath=False, loglevel="FATAL")
    while line := sys.stdin.buffer.readline():
        question = json.loads(line)
        samples = sys.stdin.buffer.read(2 * question["samples"])
        try:
            answer = align(decoder, question["words"], samples)
        except RuntimeError as error:
            answer = {"problem": f"the aligner gave up on it ({error})"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
