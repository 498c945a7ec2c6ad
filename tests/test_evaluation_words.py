"""Words and terms against errors that were planted."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.terms import score_terms
from evaluation.words import align, measure_words, normalise, word_errors

SENTENCE = "please take two of the small tablets before every meal"


class TestNormalise:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("my phone number is five two nine four.", "My phone number is 5294"),
            ("five two nine four", "5 2 9 4"),
            ("the train leaves at ten thirty", "The train leaves at 10:30."),
            ("I'm sure you don't know.", "i am sure you do not know"),
            ("twenty-one grey cats", "21 gray cats"),
            ("We cannot stay", "we can’t stay"),
            ("Dr. Smith", "doctor smith"),
            ("Please hold ...", "please hold"),
            ("Now 50 % off", "now fifty percent off"),
        ],
    )
    def test_ways_of_writing_are_one(self, one: str, other: str) -> None:
        assert normalise(one) == normalise(other)

    def test_other_words_stay_other(self) -> None:
        assert normalise("four fifteen") != normalise("four fifty")
        assert normalise("Où est l'école ?", "fr") != normalise("ou est la cole", "fr")

    def test_another_language_keeps_its_words(self) -> None:
        assert normalise("Le NUMÉRO, s'il vous plaît!", "fr-FR").split()[:2] == ["le", "numéro"]


class TestErrors:
    def test_a_planted_number_of_errors_is_counted(self) -> None:
        words = SENTENCE.split()
        for wrong in range(len(words) + 1):
            heard = " ".join(["banana"] * wrong + words[wrong:])
            found = measure_words(SENTENCE, heard).values
            assert found["word_error_rate"] == pytest.approx(wrong / len(words))

    def test_missing_and_added_words_count_and_the_rate_may_pass_one(self) -> None:
        assert measure_words("one two", "").values["word_error_rate"] == 1
        assert measure_words("yes", "yes yes yes").values["word_error_rate"] == 2
        assert measure_words(SENTENCE, SENTENCE.upper() + "!").values == {
            "word_error_rate": 0,
            "character_error_rate": 0,
        }

    @pytest.mark.parametrize(("text", "heard"), [(None, "a"), ("", "a"), ("?!", "a"), ("?! ...", "a"), ("hello", None)])
    def test_what_is_missing_is_said(self, text: str | None, heard: str | None) -> None:
        found = measure_words(text, heard)
        assert set(found.values.values()) == {None}
        assert set(found.reasons) == set(found.values)

    def test_errors_are_counted_over_many_clips(self) -> None:
        assert word_errors("a b c", "a x c d") == (2, 3)
        assert word_errors("", "a b") == (2, 0)
        assert word_errors("Room 12, please.", "room twelve please") == (0, 4)

    def test_alignment_gives_back_both_sides(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(50):
            one, other = (" ".join(rng.choice(list("abcde"), rng.integers(1, 9))) for _ in range(2))
            chunks = align(one, other)
            assert [word for ours, _ in chunks for word in ours] == one.split()
            assert [word for _, theirs in chunks for word in theirs] == other.split()


class TestTerms:
    def test_hits_and_mishearings(self) -> None:
        pairs = [
            ("Take the metformin now.", "take the met for men now"),
            ("Metformin helps.", "metformin helps"),
            ("The atrial fibrillation is back.", "the atrial fibrillation is back"),
            ("The atrial fibrillation is back.", "the trial fibrillation is back"),
            ("Your metformin is here.", "your is here"),
        ]
        scores = {score.term: score for score in score_terms(["metformin", "atrial fibrillation", "stent"], pairs)}
        assert (scores["metformin"].said, scores["metformin"].heard) == (3, 1)
        assert scores["metformin"].instead == {"met for men": 1, "": 1}
        assert scores["atrial fibrillation"].hit_rate == 0.5
        assert scores["atrial fibrillation"].instead == {"trial fibrillation": 1}
        assert scores["stent"].hit_rate is None
