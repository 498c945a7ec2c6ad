"""Rates of other languages, targets of style, a memory of judgements, forgetting, and what a table says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import spoken

from evaluation.forgetting import TEXTS, forgetting_lines, forgetting_rows, measure_forgetting
from evaluation.judges import Judges
from evaluation.junit import comparisons_document
from evaluation.memory import Memory
from evaluation.rate import KEYS, measure_rate
from evaluation.remarks import remarks, term_rows
from evaluation.report import markdown_report, terminal_table
from evaluation.sample import sounds
from evaluation.score import Reference, Sample, Scores, SystemScores, score_system

RATE = 24_000


def sample(text: str, seed: int, at: int, seconds: float = 1.2, language: str = "en") -> Sample:
    return Sample(f"{text}-{seed}", text, seed, spoken(seconds, at), RATE, "end", language)


def voice(first: int, count: int = 6, seconds: float = 1.2) -> list[Sample]:
    return [sample(TEXTS[n], 0, first + n, seconds) for n in range(count)]


# Rates


@pytest.mark.parametrize("language", ["fr", "de-AT", "pt_BR", "FR"])
def test_another_language_gets_letters_a_second_and_no_english_syllables(language: str) -> None:
    wave = spoken(2.0, 1)
    english, other = (measure_rate(wave, RATE, "où est la gare, 12 ?", tag) for tag in ("en-GB", language))
    assert other.values[KEYS[0]] is other.values[KEYS[1]] is None
    assert "no rule for syllables" in other.reasons[KEYS[0]]
    assert english.values["characters_per_second_speech"] is None
    assert english.values[KEYS[0]] is not None
    sounding = 6 / measure_rate(wave, RATE, "a a a a a a").values[KEYS[0]]  # six syllables
    assert other.values["characters_per_second_speech"] == pytest.approx(13 / sounding)
    assert sounds(replace(sample("bonjour", 0, 1), language=language)).values["seconds_per_syllable"] is None
    assert measure_rate(wave, RATE, "... !", language).reasons[KEYS[2]] == "The text has no letters."


def test_the_table_of_another_language_has_its_own_rate() -> None:
    judges = Judges(language="fr")
    samples = [replace(one, language="fr") for one in voice(0)]
    reference = Reference.from_recordings("r", samples, judges=judges)
    table = terminal_table(Scores.of(reference, [score_system("x", samples, reference, judges=judges)], (), "fr"))
    assert "char/s" in table
    assert "syl/s" not in table


# What a table says of itself


def test_a_reference_under_three_seconds_is_told() -> None:
    short, enough = (Reference.from_recordings("r", voice(0, n, 1.2)) for n in (2, 6))
    assert enough.notes == []
    (note,) = short.notes
    assert "2.4 s" in note
    scores = Scores.of(short, [score_system("x", voice(3), short)])
    assert remarks(scores)[0] == note
    assert note in markdown_report(scores).replace("\\", "")


def test_style_is_held_against_its_own_target() -> None:
    reference, calm = (Reference.from_recordings(name, voice(at, 6)) for name, at in (("r", 0), ("calm", 20)))
    other = reference.with_style(calm)
    assert other.to_json()["style"]["name"] == "calm"
    assert score_system("x", voice(20), other).summary["style_distance"] == pytest.approx(0)
    assert score_system("x", voice(0), reference).summary["style_distance"] == pytest.approx(0)
    assert score_system("x", voice(0), other).summary["style_distance"] == pytest.approx(
        other.summary["style_distance"]
    )
    assert any("calm" in line for line in remarks(Scores.of(other, [score_system("x", voice(0), other)])))


def test_terms_are_shown_with_what_was_heard_instead() -> None:
    hear = lambda wave, rate: "please close the widow | before you leave"  # noqa: E731
    judges = Judges(recogniser=hear, terms=("window", "close"))
    reference = Reference.from_recordings("r", voice(0), judges=judges)
    scores = Scores.of(reference, [score_system("x", voice(0), reference, judges=judges)], ("window", "close"))
    assert term_rows(scores) == [["window", "x", "1", "0", "0.00", "widow x1"], ["close", "x", "1", "1", "1.00", "–"]]
    assert "| window | x" in markdown_report(scores)
    rates = [row["term_hit_rate"] for row in scores.systems[0].samples]
    assert rates == [0.5, *[None] * 5], "the other texts hold no term"
    assert scores.systems[0].summary["term_hit_rate"] == 0.5


# JUnit


def rows(values: list[float], metric: str) -> list[dict[str, Any]]:
    return [
        {"text": f"text {n}", "seed": 0, "speaker_similarity": 0.8, "reasons": {}, metric: value}
        for n, value in enumerate(values)
    ]


def test_junit_has_a_case_a_figure_and_fails_what_is_worse_beyond_chance_and_margin() -> None:
    from evaluation.score import compare_with_base

    def system(name: str, values: list[float], scored: int = 6) -> SystemScores:
        kind = "base" if name == "base" else "checkpoint"
        return SystemScores(name, kind, rows(values, "word_error_rate"), {"samples": 6, "scored": scored}, {})

    systems = [system("base", [0.1] * 6), system("same", [0.1] * 6), system("a bit", [0.12] * 6)]
    systems += [system("lost", [0.5] * 6), system("few", [0.5] * 3), system("mute", [0.1] * 6, 0)]
    scores = Scores({}, systems, compare_with_base(systems))
    suite = ElementTree.fromstring(comparisons_document(scores))
    outcome = {
        (case.attrib["classname"], case.attrib["name"].split()[0]): [child.tag for child in case]
        for case in suite.findall("testcase")
    }
    words = {name: outcome[name, "word_error_rate"] for name in ("same", "a bit", "lost", "few")}
    assert words == {"same": ["system-out"], "a bit": ["system-out"], "lost": ["failure"], "few": ["skipped"]}
    assert outcome["mute", "samples"] == ["failure"]
    assert outcome["same", "predicted_mos"] == ["skipped"]
    assert (suite.attrib["failures"], suite.attrib["tests"]) == ("2", str(len(outcome)))


# Memory


def test_a_sound_is_judged_once_by_the_same_judge(tmp_path: Path) -> None:
    asked: list[int] = []

    def hear(wave: np.ndarray, rate: int) -> str:
        asked.append(len(wave))
        return "please close the window"

    samples = voice(0, 3)
    for _ in range(2):
        judges = Judges(recogniser=hear, memory=Memory(tmp_path / "m" / "judged.json"), hearer="parrot")
        told = [judges.ask(one)[0].values["word_error_rate"] for one in samples]
        judges.keep()
    assert len(asked) == 3
    assert told == [Judges(recogniser=hear).ask(one)[0].values["word_error_rate"] for one in samples]
    asked.clear()
    Judges(recogniser=hear, memory=Memory(tmp_path / "m" / "judged.json"), hearer="crow").ask(samples[0])
    louder = replace(samples[0], wave=samples[0].wave * 1.01)
    Judges(recogniser=hear, memory=Memory(tmp_path / "m" / "judged.json"), hearer="parrot").ask(louder)
    assert len(asked) == 2, "another judge, another sound"
    (tmp_path / "m" / "judged.json").write_text("{")
    Judges(recogniser=hear, memory=Memory(tmp_path / "m" / "judged.json"), hearer="parrot").ask(samples[0])
    assert len(asked) == 3, "what is damaged is begun anew"


# Forgetting


def test_an_unchanged_model_forgot_nothing_and_another_voice_is_seen() -> None:
    base, same = voice(0), voice(0)
    noise = np.random.default_rng(0)
    other = [replace(one, wave=(0.1 * noise.standard_normal(RATE)).astype(np.float32)) for one in base]
    found = measure_forgetting(3, {"base": base, "same": same, "other": other}, "base", Judges())
    by_name = {row["system"]: row for row in found}
    assert by_name["same"]["speaker_similarity"] == pytest.approx(by_name["base"]["speaker_similarity"])
    assert by_name["same"]["lost"] == []
    assert by_name["same"]["against_base"]["speaker_similarity"]["mean_difference"] == pytest.approx(0)
    assert by_name["other"]["lost"] == ["speaker_similarity"]
    assert by_name["base"]["against_base"] == {}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row[-1] for row in forgetting_rows(found)] == ["–", "–", "voice"]


def test_a_base_that_says_nothing_has_nothing_to_forget_and_that_is_said() -> None:
    silent = [replace(one, wave=np.zeros(RATE, np.float32)) for one in voice(0)]
    found = measure_forgetting(3, {"base": silent, "tuned": voice(0)}, "base", Judges())
    assert all(row["speaker_similarity"] is None for row in found)
    assert len(list(forgetting_lines(found))) == 2
