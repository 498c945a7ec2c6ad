"""Cutting: what a piece says is what sounds in it, on recordings whose every word is a tone of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import TOY_CODEBOOKS, spoken
from hypothesis import given
from hypothesis import strategies as st

from csm import audio
from csm.audio import read_audio, write_wave
from csm.cli.finetune import main
from csm.data import cutting
from csm.data.alignment import Word
from csm.data.cutting import Cut, Cutting, cut
from csm.data.examples import ExampleSet
from csm.data.pieces import divide, edges
from csm.data.row import Row
from csm.data.sources import make_sources
from csm.data.split import split
from csm.data.turns import CodedTurn, Turns
from csm.errors import CsmError
from csm.model_folder import open_folder
from csm.tokenizer import TextTokenizer
from csm.training.finetuner import CSMFineTuner

RATE = 16_000
WORD_SECONDS = 0.4
TONES = {f"w{n}": 300 + 90 * n for n in range(60)}
"""Words that are told by their frequency: each must be heard in the piece whose text names it, and in no other."""


def recording(gaps: list[float]) -> tuple[np.ndarray, list[Word]]:
    """A word after each gap, and half a second of silence at the end."""
    words, parts, at = [], [], 0.0
    for name, gap in zip(TONES, gaps, strict=False):
        time = np.arange(int(WORD_SECONDS * RATE)) / RATE
        parts += [np.zeros(int(gap * RATE)), 0.2 * np.sin(2 * np.pi * TONES[name] * time)]
        words.append(Word(name, at + gap, at + gap + WORD_SECONDS))
        at += gap + WORD_SECONDS
    return np.concatenate([*parts, np.zeros(RATE // 2)]).astype(np.float32), words


def heard(row: Row) -> list[str]:
    """The words in a row's sound, by the tones that hold at least a tenth of a word's energy."""
    wave, rate = read_audio(row.audio, row.start, row.end)
    power = np.abs(np.fft.rfft(wave)) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / rate)
    whole = (0.2**2 / 2) * WORD_SECONDS * rate * len(wave) / 2
    return [word for word, tone in TONES.items() if power[np.abs(frequency - tone) < 30].sum() > 0.1 * whole]


def clip(folder: Path, name: str, gaps: list[float]) -> tuple[Row, list[Word]]:
    wave, words = recording(gaps)
    for kind in ("audio", "transcripts", "alignments"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "audio" / f"{name}.wav", wave, RATE)
    text = " ".join(f"{word.text}," for word in words)
    (folder / "transcripts" / f"{name}.txt").write_text(text)
    entries = [{"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in words]
    (folder / "alignments" / f"{name}.json").write_text(json.dumps({"words": entries}))
    return Row(name, folder / "audio" / f"{name}.wav", text, 0, folder / "transcripts" / f"{name}.txt"), words


GAPS = {
    "even": [0.2] * 60,
    "pauses": ([0.1] * 6 + [0.8]) * 8,
    "no gaps": [0.3] + [0.0] * 50,
    "long silences": ([0.05] * 20 + [6.0]) * 2,
    "random": np.random.default_rng(3).exponential(0.15, 50).tolist(),
}


def one(folder: Path, gaps: list[float], **settings: object) -> Cut:
    row, _ = clip(folder, "a", gaps)
    return cut([[row]], Cutting(alignments=folder / "alignments", **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("seconds", [4.0, 10.0])
def test_a_piece_says_what_sounds_in_it(gaps: str, seconds: float, tmp_path: Path) -> None:
    done = one(tmp_path, GAPS[gaps], piece_seconds=seconds)
    assert not done.faults
    (pieces,) = done.conversations
    assert len(pieces) == done.pieces > 1
    for piece in pieces:
        assert [word.rstrip(",") for word in piece.text.split()] == heard(piece)
        assert piece.end - piece.start <= seconds  # type: ignore[operator]
    for before, after in pairwise(pieces):
        assert before.end <= after.start  # type: ignore[operator]
    assert " ".join(piece.text for piece in pieces) == clip(tmp_path, "a", GAPS[gaps])[0].text
    assert len({piece.name for piece in pieces}) == len(pieces)


def test_cuts_are_in_pauses_where_there_are_any(tmp_path: Path) -> None:
    (pieces,) = one(tmp_path, GAPS["pauses"], piece_seconds=8.0).conversations
    first_after_pause = {f"w{n}," for n in range(6, 60, 7)}
    assert {piece.text.split()[0] for piece in pieces[1:]} <= first_after_pause


def test_long_silences_are_in_no_piece(tmp_path: Path) -> None:
    (pieces,) = one(tmp_path, GAPS["long silences"]).conversations
    assert sum(piece.end - piece.start for piece in pieces) < 42 * 0.45 + 3  # type: ignore[operator]


def test_divide_is_the_cheapest_division() -> None:
    """Against all divisions of short rows of words."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        at, words = 0.0, []
        for gap, length in rng.uniform(0.02, 0.6, (9, 2)):
            words.append(Word("x", at + gap, at + gap + length))
            at += gap + length
        begins, ends = edges(words, (0.0, at))
        found = divide(words, begins, ends, 1.8)
        assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
        assert found[-1][1] == len(words)
        options = []
        for mask in range(2**8):
            stops = [i + 1 for i in range(8) if mask >> i & 1] + [9]
            spans = list(zip([0, *stops[:-1]], stops, strict=True))
            if all(ends[j - 1] - begins[i] <= 1.8 or j - i == 1 for i, j in spans):
                options.append((_cost(words, begins, ends, spans), spans))
        assert _cost(words, begins, ends, found) == pytest.approx(min(options)[0])


def _cost(words: list[Word], begins: list[float], ends: list[float], spans: list[tuple[int, int]]) -> float:
    total = 0.0
    for i, j in spans:
        total += 1 + 2 * max(0.0, 1 - (ends[j - 1] - begins[i]) / 2.0)
        if i:
            total += 4 * max(0.0, 1 - max(0.0, words[i].start - words[i - 1].end) / 0.3) ** 2
    return total


def test_without_words_a_clip_stays_whole_or_is_named(tmp_path: Path) -> None:
    row, _ = clip(tmp_path, "a", GAPS["even"])
    done = cut([[row]], Cutting())
    assert done.conversations == [[row]]
    assert [fault.text for fault in done.whole] == [f"{row.audio} is kept whole: no alignment was given."]
    done = cut([[row]], Cutting(longest_seconds=20))
    assert done.conversations == []
    assert "lasts 36.5 s, and 20 s are the limit; nothing says where its words end" in done.faults[0].text


def test_an_aligner_is_asked_only_for_long_clips_without_alignment(tmp_path: Path) -> None:
    rows, asked = {}, []
    for name, gaps in {"long": GAPS["even"], "known": GAPS["even"], "short": [0.2] * 5}.items():
        rows[name] = clip(tmp_path, name, gaps)
    (tmp_path / "alignments" / "long.json").unlink()

    def align(wave: np.ndarray, rate: int, text: str, language: str) -> list[tuple[str, float, float]] | str:
        asked.append((len(wave) / rate, rate, text, language))
        return [(f"{word.text},", round(word.start, 3), round(word.end, 3)) for word in rows["long"][1]]

    given = [[row] for row, _ in rows.values()]
    done = cut(given, Cutting(alignments=tmp_path / "alignments", align=align))
    assert [ask[1:] for ask in asked] == [(RATE, rows["long"][0].text, "en")]
    assert [piece.text for piece in done.conversations[0]] == [piece.text for piece in done.conversations[1]]
    assert done.conversations[2] == given[2]
    assert done.describe() == f"2 long clips cut into {done.pieces} pieces, where words end"

    failed = cut(given[:1], Cutting(align=lambda *_: "it is mumbled"))
    assert failed.conversations == given[:1]
    assert "is kept whole: it is mumbled" in failed.whole[0].text
    other = cut(given[:1], Cutting(align=lambda *_: [("other", 0.0, 1.0)]))
    assert "the aligner's words are not the text's" in other.whole[0].text


def test_an_alignment_that_contradicts_the_text_leaves_the_clip_out(tmp_path: Path) -> None:
    row, _ = clip(tmp_path, "a", [0.2] * 5)
    short = cut([[replace(row, text="w0, w1, w9, w3, w4,")]], Cutting(alignments=tmp_path / "alignments"))
    assert short.conversations == []
    assert '"w2" where' in short.faults[0].message
    assert short.faults[0].line == 1


def test_the_pieces_of_a_turn_take_its_place(tmp_path: Path) -> None:
    long, _ = clip(tmp_path, "b", GAPS["even"])
    short, _ = clip(tmp_path, "a", [0.2] * 5)
    (turns,) = cut(
        [[short, replace(long, speaker=3), short]], Cutting(alignments=tmp_path / "alignments")
    ).conversations
    assert turns[0] == turns[-1] == short
    assert {turn.speaker for turn in turns[1:-1]} == {3}
    assert len(turns) > 4


def test_a_folder_without_alignments_of_these_clips_is_an_error(tmp_path: Path) -> None:
    row, _ = clip(tmp_path, "a", [0.2] * 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CsmError, match="holds no alignment of any clip"):
        cut([[row]], Cutting(alignments=tmp_path / "empty"))
    with pytest.raises(CsmError, match="is not there"):
        cut([[row]], Cutting(alignments=tmp_path / "nowhere"))
    with pytest.raises(CsmError, match="cannot be made"):
        Cutting(piece_seconds=0.5)


def test_a_sound_that_cannot_be_read_is_left_to_who_reads_it(tmp_path: Path) -> None:
    row = Row("a", tmp_path / "a.wav", "hello", 0, tmp_path / "a.txt")
    assert cut([[row]], Cutting()).conversations == [[row]]


def coded(row: Row, seed: int) -> CodedTurn:
    return CodedTurn(row, np.random.default_rng(seed).integers(1, 64, (TOY_CODEBOOKS, 12)))


@cache
def open_tokenizer() -> TextTokenizer:
    return TextTokenizer(open_folder("csm-tiny").beside)


def part(file: str, start: float | None, end: float | None) -> Row:
    return Row(f"{file} {start}", Path(file), "the quick fox", 0, Path("t.txt"), None, start, end)


def test_parts_of_one_file_are_on_one_side_of_the_split(toy_folder: Path) -> None:
    conversations = [[coded(part(f"{n}.wav", 10.0 * k, 10.0 * k + 9), 10 * n + k)] for n in range(12) for k in range(3)]
    sources = make_sources(conversations, TextTokenizer(toy_folder), TOY_CODEBOOKS)
    for seed in range(5):
        training, validation = split(sources, 0.3, seed)
        files = [{source.id.split()[0] for source in side} for side in (training, validation)]
        assert files[0] & files[1] == set()
        assert len(files[1]) == 4


@pytest.mark.parametrize("alone", [True, False])
def test_context_never_overlaps_its_target(alone: bool, toy_folder: Path) -> None:
    """Pieces of 10 s with 2 s of overlap, as other tools cut: the neighbours that share sound are passed over."""
    turns = [coded(part("a.wav", 8.0 * n, 8.0 * n + 10), n) for n in range(6)]
    conversations = [[turn] for turn in turns] if alone else [turns]
    sources = make_sources(conversations, TextTokenizer(toy_folder), TOY_CODEBOOKS)
    examples = ExampleSet(sources, context_turns=5, longest=2048, seed=0)
    codes = [turn.codes.T for turn in turns]
    for index in range(6):
        example = examples.example(index, 0)
        context = example.rows.frames[: example.target_start, :-1]
        inside = {n for n in range(6) if any((context[i : i + 12] == codes[n]).all() for i in range(len(context) - 11))}
        expected = {n for n in range(6) if abs(n - index) > 1 and (alone or n < index)}
        assert inside == expected


@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(0.5, 30), st.integers(1, 60)), min_size=2, max_size=8),
    st.integers(1, 3),
)
def test_rows_under_a_budget_count_what_is_passed_over(spans: list[tuple[float, float, int]], context: int) -> None:
    """A turn that overlaps the target gives way to one before it, which may be longer."""
    turns = [
        CodedTurn(part("a.wav", start, start + seconds), np.full((TOY_CODEBOOKS, frames), number))
        for number, (start, seconds, frames) in enumerate(sorted(spans))
    ]
    examples = ExampleSet(make_sources([turns], open_tokenizer(), TOY_CODEBOOKS), context, 2048, seed=0)
    assert examples.most_rows.tolist() == [len(examples.example(i, 0)) for i in range(len(turns))]


def test_an_example_of_a_long_recording_looks_at_few_of_its_rows() -> None:
    turns = Turns.of([[coded(part("a.wav", 2.0 * n, 2.0 * n + 1), n) for n in range(300)]])
    asked: list[int] = []
    told = replace(turns, row=lambda number: asked.append(number) or turns.row(number))
    ExampleSet(make_sources(told, open_tokenizer(), TOY_CODEBOOKS), 2, 2048, seed=0).example(299, 0)
    assert len(asked) < 10


def test_the_python_face_cuts_too(tmp_path: Path, toy_folder: Path) -> None:
    row, _ = clip(tmp_path, "a", GAPS["even"])
    tuner = CSMFineTuner(toy_folder, tmp_path / "run", cache=tmp_path / "cache", threads=1)
    data = tuner.tokenise([[row]], cutting=Cutting(alignments=tmp_path / "alignments"))
    (turns,) = data.conversations
    assert " ".join(turn.row.text for turn in turns) == row.text
    assert len(turns) > 3
    assert all(turn.codes.shape[1] <= 10 * data.frame_rate + 1 for turn in turns)


def test_the_command_cuts_by_alignments_and_says_so(tmp_path: Path, toy_folder: Path) -> None:
    data = tmp_path / "data"
    for number in range(3):
        clip(data, f"{number}", [0.2] * 5)
        words = [f"word{i}" for i in range(30)]
        soundfile.write(data / "audio" / f"{number}.wav", spoken(15.0, number), 24_000)
        (data / "transcripts" / f"{number}.txt").write_text(" ".join(words))
        entries = [{"word": word, "start": 0.5 * i + 0.1, "end": 0.5 * i + 0.4} for i, word in enumerate(words)]
        (data / "alignments" / f"{number}.json").write_text(json.dumps({"words": entries}))
    (data / "alignments" / "2.json").write_text(json.dumps({"words": [{"word": "x", "start": 0, "end": 1}]}))
    arguments = [
        "conversation", "--model-path", toy_folder, "--audio-dir", data / "audio", "--transcript-dir", data / "transcripts",
        "--alignment-dir", data / "alignments", "--speaker-id", 0, "--output-dir", tmp_path / "run", "--max-steps", 1,
        "--val-split", 0.5, "--batch-size", 1, "--threads", 1, "--cache-dir", tmp_path / "cache", "--piece-seconds", 8,
    ]  # fmt: skip
    done = CliRunner().invoke(main, [str(word) for word in arguments])
    assert done.exit_code == 0, done.stderr
    assert "2 long clips cut into 4 pieces, where words end" in done.stderr
    assert 'has "x" where' in done.stderr
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())["data"]
    assert lineage["clips"] == 4
    sides = [{name.split()[0] for name in lineage[side]} for side in ("training", "validation")]
    assert sorted(map(sorted, sides)) == [["0"], ["1"]]
    done = CliRunner().invoke(main, [str(word) for word in [*arguments, "--strict", "--fresh"]])
    assert done.exit_code == 1
    assert "strict" in done.stderr


def test_a_long_recording_is_measured_and_its_words_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a row: a recording of hours has thousands."""
    words = [{"word": "one", "start": i + 0.1, "end": i + 0.6} for i in range(40)]
    write_wave(tmp_path / "talk.wav", np.full(40 * 8000, 0.1, np.float32), 8000)
    (tmp_path / "talk.json").write_text(json.dumps({"words": words}))
    rows = [Row("talk", tmp_path / "talk.wav", "one", 0, tmp_path / "x", i, i, i + 1.0) for i in range(40)]
    asked = []
    for module, name in ((audio, "seconds_of"), (cutting, "read_alignment")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, name=name, real=real: asked.append(name) or real(path))
    done = cut([rows], Cutting(alignments=tmp_path))
    assert done.conversations == [rows]
    assert asked == ["seconds_of", "read_alignment"]
