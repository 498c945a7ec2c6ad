"""Where each word of a clip lies in its sound, as an aligner wrote it: JSON of words, or Praat's TextGrid.

JSON is `{"words": [{"word", "start", "end"}]}`; of a TextGrid, in the long or the short text format, the interval tier
`words` is read, as Montreal Forced Aligner writes it. Times are seconds from the beginning of the sound file.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm.data.faults import Fault, printable
from csm.data.json_file import Lines, elements
from csm.data.row import Row, clean_text

SUFFIXES = (".json", ".TextGrid", ".textgrid")
UNKNOWN = ("<unk>", "spn", "[unk]")  # what aligners write for a word outside their dictionary
_SILENCE = ("", "sil", "sp", "<eps>", "<sil>", "silence")
_SLACK_SECONDS = 0.05  # times are rounded


@dataclass(frozen=True)
class Word:
    """A word and where it is spoken, in seconds of the sound file; `line` is where its file says so."""

    text: str
    start: float
    end: float
    line: int | None = None


def find_alignment(row: Row, folder: Path) -> Path | None:
    """The alignment of a row's sound file by its relative name, in NFC or NFD; None where the folder has none."""
    for form in ("NFC", "NFD"):
        for suffix in SUFFIXES:
            path = folder / (unicodedata.normalize(form, row.name) + suffix)
            if path.is_file():
                return path
    return None


def read_alignment(path: Path) -> list[Word] | Fault:
    """The spoken words of an alignment file in order, without its silences, or what is wrong with the file."""
    try:
        text = _decode(path.read_bytes())
    except UnicodeDecodeError as error:
        return Fault(path, f"is neither UTF-8 nor UTF-16 text (byte {error.start + 1})")
    except OSError as error:
        return Fault(path, f"cannot be read ({error.strerror})")
    words = _read_json(path, text) if path.suffix.lower() == ".json" else _read_text_grid(path, text)
    if isinstance(words, Fault):
        return words
    spoken = [word for word in words if word.text.strip().lower() not in _SILENCE]
    return _disorder(path, spoken) or spoken or Fault(path, "holds no words")


def align_text(row: Row, words: Sequence[Word], path: Path, seconds: float) -> list[Word] | Fault:
    """The row's text in pieces that begin and end where words do, each with its time; or why the two do not match.

    Letters and digits are compared, whatever their case and the marks around them. A piece is one word, or as many as
    the two spellings need to meet: `o'clock` with `o`, `clock`. A mark that stands alone goes with the word before it.
    Words of the file that lie outside the row's part of the sound are passed over.

    Args:
        row: what is said.
        words: as `read_alignment` gives them.
        path: the file they are from.
        seconds: how long the sound file lasts.
    """
    late = next((word for word in words if word.end > seconds + _SLACK_SECONDS), None)
    if late:
        problem = f'has "{printable(late.text)}" end at {late.end:g} s, and {row.audio} lasts {seconds:.2f} s'
        return Fault(path, problem, late.line)
    start, end = row.start or 0.0, seconds if row.end is None else row.end
    inside = [word for word in words if start <= (word.start + word.end) / 2 <= end and letters(word.text)]
    return _match(row, inside, path)


def letters(text: str) -> str:
    """The letters and digits of a word, by which two spellings of it are compared."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LNM")


def _match(row: Row, words: Sequence[Word], path: Path) -> list[Word] | Fault:
    tokens, found, at, i = _tokens(row.text), list[Word](), 0, 0
    while i < len(tokens) or at < len(words):
        begin, first = i, at
        said = heard = ""
        while not said or said != heard:
            behind = i < len(tokens) and (not said or len(said) <= len(heard))
            if behind and said == heard and at < len(words) and words[at].text.lower() in UNKNOWN:
                i, at, said, heard = i + 1, at + 1, "?", "?"
            elif behind:
                said, i = said + letters(tokens[i]), i + 1
            elif at < len(words) and len(heard) < len(said):
                heard, at = heard + letters(words[at].text), at + 1
            else:
                return _mismatch(row, tokens[begin:i], words[first : at + 1], path)
            shorter = min(len(said), len(heard))
            if said[:shorter] != heard[:shorter]:
                return _mismatch(row, tokens[begin:i], words[first:at], path)
        found.append(Word(" ".join(tokens[begin:i]), words[first].start, words[at - 1].end, words[first].line))
    return found


def _tokens(text: str) -> list[str]:
    """The text's words with their marks; what has no letters goes with the word before, at the beginning the one after."""
    tokens: list[str] = []
    for token in text.split():
        if tokens and (not letters(token) or not letters(tokens[-1])):
            tokens[-1] += f" {token}"
        else:
            tokens.append(token)
    return tokens


def _mismatch(row: Row, said: Sequence[str], heard: Sequence[Word], path: Path) -> Fault:
    place = f"{row.source}" if row.line is None else f"{row.source}, line {row.line},"
    transcript = f'"{printable(" ".join(said))}"' if said else "nothing more"
    aligned = f'"{printable(" ".join(word.text for word in heard))}"' if heard else "nothing more"
    line = heard[0].line if heard else None
    return Fault(path, f"has {aligned} where {place} has {transcript}", line)


def _disorder(path: Path, words: Sequence[Word]) -> Fault | None:
    before = 0.0
    for word in words:
        name = f'"{printable(word.text)}"'
        if not (math.isfinite(word.start) and math.isfinite(word.end)):
            return Fault(path, f"has {name} at a time that is no number", word.line)
        if word.start < 0 or word.end < word.start:
            return Fault(path, f"has {name} from {word.start:g} to {word.end:g} s", word.line)
        if word.start < before - _SLACK_SECONDS:
            problem = f"has {name} begin at {word.start:g} s, before the word before it ends at {before:g} s"
            return Fault(path, problem, word.line)
        before = word.end
    return None


def _decode(data: bytes) -> str:
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if wide else "utf-8-sig")


def _read_json(path: Path, text: str) -> list[Word] | Fault:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        return Fault(path, f"column {error.colno}, is not valid JSON: {error.msg}", error.lineno)
    except (RecursionError, ValueError) as error:
        return Fault(path, f"cannot be read as JSON ({error})")
    listed = document.get("words") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        return Fault(path, 'is not of the form {"words": [{"word", "start", "end"}]}')
    words = []
    for entry, line in zip(listed, _lines(text, len(listed)), strict=True):
        word = _json_word(entry, line)
        if word is None:
            return Fault(path, 'holds a word that is not {"word", "start", "end"} with times in seconds', line)
        words.append(word)
    return words


def _json_word(entry: Any, line: int) -> Word | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("word"), str):
        return None
    times = [entry.get("start"), entry.get("end")]
    if not all(isinstance(time, int | float) and not isinstance(time, bool) for time in times):
        return None
    return Word(clean_text(entry["word"]), float(times[0]), float(times[1]), line)  # type: ignore[arg-type]


def _lines(text: str, count: int) -> list[int]:
    """The lines on which the elements of `"words": [...]` begin."""
    lines = Lines(text)
    starts = next(
        (
            found
            for match in re.finditer(r'"words"\s*:\s*(?=\[)', text)
            if len(found := elements(text, match.end())) == count
        ),
        [0] * count,
    )
    return [lines[start] for start in starts]


_NUMBER_OR_TEXT = re.compile(
    r'"((?:[^"]|"")*)"|<(exists|absent)>|(?<![\w.])([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.\]])'
)


def _read_text_grid(path: Path, text: str) -> list[Word] | Fault:
    """Both formats hold the same values in the same order; the long one has names beside them, which are passed over."""
    values = _values(text)
    try:
        kind, grid = next(values)[0], next(values)[0]
        if kind != "ooTextFile" or grid != "TextGrid":
            return Fault(path, "is not a TextGrid in Praat's text format")
        next(values), next(values), next(values)  # from, to, whether there are tiers
        names = []
        for _ in range(int(next(values)[0])):
            (tier, _), (name, _), _, _, (count, _) = (next(values) for _ in range(5))
            names.append(str(name))
            words = [_entry(values, str(tier)) for _ in range(int(count))]
            if tier == "IntervalTier" and str(name).lower().endswith("words"):
                return words
    except (StopIteration, RuntimeError):
        return Fault(path, "ends before its tiers do")
    except ValueError:
        return Fault(path, "is not a TextGrid in Praat's text format")
    return Fault(path, f"has no interval tier named words (it has {', '.join(names) or 'none'})")


def _entry(values: Iterator[tuple[Any, int]], tier: str) -> Word:
    start, line = next(values)
    end = next(values)[0] if tier == "IntervalTier" else start
    return Word(clean_text(str(next(values)[0])), float(start), float(end), line)


def _values(text: str) -> Iterator[tuple[Any, int]]:
    """Every string, flag and free-standing number, with its line; numbers inside [ ] count items and are no values."""
    lines = Lines(text)
    for match in _NUMBER_OR_TEXT.finditer(text):
        quoted, flag, number = match.groups()
        line = lines[match.start()]
        if quoted is not None:
            yield quoted.replace('""', '"'), line
        else:
            yield flag or float(number), line
