"""Alignments: both forms of two writers, and what is said of a file that contradicts its clip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csm.data.alignment import Word, align_text, find_alignment, read_alignment
from csm.data.faults import Fault
from csm.data.row import Row

LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2.5
            text = "EY1"
    item [2]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "say ""hi"""
        intervals [3]:
            xmin = 1.25
            xmax = 2.5
            text = "12 o'clock"
'''
SHORT = '''File type = "ooTextFile"
Object class = "TextGrid"

0
2.5
<exists>
1
"IntervalTier"
"speaker - words"
0
2.5
3
0
0.5
""
0.5
1.25
"say ""hi"""
1.25
2.5
"12 o'clock"
'''
SAID = [('say "hi"', 0.5, 1.25), ("12 o'clock", 1.25, 2.5)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def bare(words: list[Word] | Fault) -> list[tuple[str, float, float]]:
    assert not isinstance(words, Fault), words.text
    return [(word.text, word.start, word.end) for word in words]


def row(text: str, start: float | None = None, end: float | None = None) -> Row:
    return Row("a", Path("a.wav"), text, 0, Path("a.txt"), None, start, end)


@pytest.mark.parametrize("text", [LONG, SHORT, SHORT.replace("\n", "\r\n")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_text_grids_of_either_format_say_the_same(text: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    if encoding == "utf-16-le-bom":
        path.write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    else:
        write(path, text, encoding)
    assert bare(read_alignment(path)) == SAID


def test_json_says_the_same_and_knows_its_lines(tmp_path: Path) -> None:
    words = [{"word": text, "start": start, "end": end} for text, start, end in [("", 0, 0.5), *SAID]]
    path = write(tmp_path / "a.json", json.dumps({"model": "x", "words": words}, indent=1))
    found = read_alignment(path)
    assert bare(found) == SAID
    lines = path.read_text().splitlines()
    named = [lines[word.line] for word in found if isinstance(word, Word) and word.line]  # the line after the brace
    assert [json.loads(f"{{{line.rstrip(',')}}}")["word"] for line in named] == [text for text, _, _ in SAID]


BROKEN = {
    "not JSON": ("a.json", '{"words": [', "is not valid JSON", 1),
    "no words": ("a.json", '{"word": []}', "is not of the form", None),
    "a list": ("a.json", "[]", "is not of the form", None),
    "silences alone": ("a.json", '{"words": [{"word": "", "start": 0, "end": 1}]}', "holds no words", None),
    "no time": ("a.json", '{"words": [\n{"word": "a", "start": 0}]}', "with times in seconds", 2),
    "out of order": (
        "a.json",
        '{"words": [\n{"word": "a", "start": 1, "end": 2},\n{"word": "b", "start": 0.5, "end": 3}]}',
        'has "b" begin at 0.5 s, before the word before it ends at 2 s',
        3,
    ),
    "ends first": ("a.json", '{"words": [{"word": "a", "start": 2, "end": 1}]}', 'has "a" from 2 to 1 s', 1),
    "not a number": ("a.json", '{"words": [{"word": "a", "start": NaN, "end": 1}]}', "a time that is no number", 1),
    "cut off": ("a.TextGrid", SHORT[:-20], "ends before its tiers do", None),
    "other text": ("a.TextGrid", "hello", "ends before its tiers do", None),
    "another tier": ("a.TextGrid", SHORT.replace("speaker - words", "phones"), "it has phones", None),
    "times swapped": ("a.TextGrid", SHORT.replace("0.5\n1.25", "1.5\n1.25"), "from 1.5 to 1.25 s", 16),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_with_its_line(case: str, tmp_path: Path) -> None:
    name, text, says, line = BROKEN[case]
    found = read_alignment(write(tmp_path / name, text))
    assert isinstance(found, Fault)
    assert says in found.message
    assert found.line == line


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    found = read_alignment(write(tmp_path / "a.json", '{"words": "é"}', "latin-1"))
    assert isinstance(found, Fault)
    assert "neither UTF-8 nor UTF-16" in found.message


MATCHES = {
    "marks and case": ("Hello, WORLD!", ["hello", "world"], ["Hello,", "WORLD!"]),
    "split at the apostrophe": ("Five o'clock.", ["five", "o", "clock"], ["Five", "o'clock."]),
    "split at the hyphen": ("well-known facts", ["well", "known", "facts"], ["well-known", "facts"]),
    "joined": ("can not go", ["cannot", "go"], ["can not", "go"]),
    "crossing": ("ab cd ef", ["abc", "def"], ["ab cd ef"]),
    "unknown": ("dear Zbyszek Nowak,", ["dear", "<unk>", "nowak"], ["dear", "Zbyszek", "Nowak,"]),
    "a dash alone": ("- yes - no", ["yes", "no"], ["- yes -", "no"]),
    "composed otherwise": ("caf\u00e9 noir", ["cafe\u0301", "noir"], ["caf\u00e9", "noir"]),
    "marks among the words": ("so, yes", ["so", ",", "yes"], ["so,", "yes"]),
}


@pytest.mark.parametrize("case", MATCHES)
def test_texts_and_words_meet_where_both_end(case: str) -> None:
    text, aligned, expected = MATCHES[case]
    words = [Word(word, i, i + 1) for i, word in enumerate(aligned)]
    found = align_text(row(text), words, Path("a.json"), 60)
    assert [word for word, _, _ in bare(found)] == expected
    assert " ".join(word for word, _, _ in bare(found)) == text
    assert bare(found)[0][1] == 0
    assert bare(found)[-1][2] == len(aligned)


@pytest.mark.parametrize(
    ("text", "aligned", "says"),
    [
        ("one two three", ["one", "too", "three"], 'has "too" where a.txt has "two"'),
        ("one two three", ["one", "two"], 'has nothing more where a.txt has "three"'),
        ("one", ["one", "two"], 'has "two" where a.txt has nothing more'),
        ("5 apples", ["five", "apples"], 'has "five" where a.txt has "5"'),
    ],
)
def test_other_words_are_a_fault(text: str, aligned: list[str], says: str) -> None:
    words = [Word(word, i, i + 1, i + 7) for i, word in enumerate(aligned)]
    found = align_text(row(text), words, Path("a.json"), 60)
    assert isinstance(found, Fault)
    assert found.message == says


def test_words_beyond_the_sound_are_a_fault() -> None:
    found = align_text(row("a b"), [Word("a", 0, 1), Word("b", 1, 9, 4)], Path("a.json"), 5.0)
    assert isinstance(found, Fault)
    assert (found.message, found.line) == ('has "b" end at 9 s, and a.wav lasts 5.00 s', 4)


def test_a_part_of_a_file_takes_its_own_words() -> None:
    words = [Word(word, i, i + 1) for i, word in enumerate(["a", "b", "c", "d"])]
    assert [w for w, _, _ in bare(align_text(row("b c", 1.0, 3.0), words, Path("a.json"), 4))] == ["b", "c"]


@pytest.mark.parametrize("suffix", [".json", ".TextGrid"])
def test_names_pair_in_subfolders_and_in_either_composition(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = write(tmp_path / "deep" / f"cafe\u0301.v2{suffix}", "")
    assert find_alignment(Row("deep/caf\u00e9.v2", Path("x.wav"), "x", 0, Path("x.txt")), tmp_path) == path
    assert find_alignment(Row("caf\u00e9.v2", Path("x.wav"), "x", 0, Path("x.txt")), tmp_path) is None
