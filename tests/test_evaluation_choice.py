"""The pick, the style and the judges, on rows whose truth is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evaluation.choice import choose_best
from evaluation.judges import SAME_VOICE, Judges
from evaluation.sample import Sample
from evaluation.score import SystemScores
from evaluation.speaker import similarity
from evaluation.style import FEATURES, measure_style, own_distance

TEXTS = 10


def system(name: str, kind: Any, voice: float, errors: float, seed: int, stopped: float = 1.0) -> SystemScores:
    rng, rows = np.random.default_rng(seed), []
    hard = np.random.default_rng(5).normal(size=TEXTS)
    for text in range(TEXTS):
        for repeat in range(3):
            rows.append(
                {
                    "text": f"text {text}",
                    "seed": repeat,
                    "speaker_similarity": voice + 0.03 * hard[text] + 0.03 * rng.normal(),
                    "word_error_rate": rng.binomial(8, np.clip(errors + 0.05 * hard[text], 0, 1)) / 8,
                    "stopped": float(rng.random() < stopped),
                    "predicted_mos": 3 + 0.1 * rng.normal(),
                }
            )
    return SystemScores(name, kind, rows, {"samples": len(rows), "scored": len(rows)}, {})


class TestChoice:
    def test_the_over_trained_and_the_under_trained_lose_in_nine_of_ten_draws(self) -> None:
        right = 0
        for seed in range(30):
            systems = [
                system("base", "base", 0.60, 0.10, 10 * seed),
                system("step-000010", "checkpoint", 0.66, 0.10, 10 * seed + 1),  # has hardly begun
                system("step-000020", "checkpoint", 0.80, 0.12, 10 * seed + 2),
                system("step-000030", "checkpoint", 0.84, 0.55, 10 * seed + 3),  # knows the voice, lost the words
            ]
            right += choose_best(systems)[0] == "step-000020"
        assert right >= 27

    def test_what_is_said_of_chance_counts_failures_as_the_mean_does(self) -> None:
        """Where a checkpoint speaks it is nearer, but it fails on half of the texts: no gain is claimed."""
        one = system("step-000010", "checkpoint", 0.8, 0.1, 1)
        for row in one.samples:
            if int(row["text"].split()[1]) % 2:
                row["speaker_similarity"] = None
        _, reason = choose_best([system("base", "base", 0.5, 0.1, 0), one])
        assert "not above the base's" in reason
        assert "no significant difference" in reason

    def test_one_that_never_ends_is_out_and_named(self) -> None:
        systems = [
            system("base", "base", 0.6, 0.1, 0),
            system("step-000010", "checkpoint", 0.75, 0.1, 1),
            system("step-000020", "checkpoint", 0.85, 0.1, 2, stopped=0.4),
        ]
        best, reason = choose_best(systems)
        assert best == "step-000010"
        assert "step-000020: endings" in reason

    def test_where_all_lost_words_the_most_similar_is_taken_and_it_is_said(self) -> None:
        systems = [system("base", "base", 0.6, 0.1, 0), system("step-000010", "checkpoint", 0.8, 0.7, 1)]
        best, reason = choose_best(systems)
        assert best == "step-000010"
        assert "Every checkpoint is significantly worse" in reason

    def test_equal_systems_are_called_no_different_in_17_of_20_pairs(self) -> None:
        told = []
        for seed in range(20):
            pair = [system("base", "base", 0.7, 0.1, seed), system("step-000010", "checkpoint", 0.7, 0.1, 100 + seed)]
            told.append("no significant difference" in choose_best(pair)[1])
        assert sum(told) >= 17


def rows_of(shift: float, count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{feature: 10 + shift + rng.normal() for feature in FEATURES} for _ in range(count)]


class TestStyle:
    @pytest.mark.parametrize("shift", [-3.0, -1.0, 0.0, 2.0])
    def test_a_planted_shift_is_measured_in_the_targets_spread(self, shift: float) -> None:
        found = measure_style(rows_of(shift, 400, 0), rows_of(0, 400, 1)).values
        for feature in FEATURES:
            assert found[f"style_distance_{feature}"] == pytest.approx(shift, abs=0.25)
        assert found["style_distance"] == pytest.approx(abs(shift), abs=0.2)

    def test_the_targets_own_halves_are_close(self) -> None:
        yardstick = own_distance(rows_of(0, 40, 0))
        assert yardstick is not None
        assert yardstick < 0.6

    def test_too_few_recordings_or_none_that_vary_are_absent_with_a_reason(self) -> None:
        few = measure_style(rows_of(0, 9, 0), rows_of(0, 3, 1))
        same = measure_style(rows_of(0, 9, 0), [dict.fromkeys(FEATURES, 1.0)] * 9)
        for found in (few, same):
            assert set(found.values.values()) == {None}
            assert set(found.reasons) == set(found.values)


class TestJudges:
    wave = (0.1 * np.sin(np.arange(24_000) / 20)).astype(np.float32)

    def test_the_recogniser_is_asked_and_scored(self) -> None:
        judges = Judges(lambda wave, rate: "hello their")
        measures, heard = judges.ask(Sample("x", "hello there", 0, self.wave, 24_000))
        assert heard == "hello their"
        assert measures.values["word_error_rate"] == 0.5

    def test_silence_is_nothing_heard_and_the_recogniser_is_spared(self) -> None:
        judges = Judges(lambda wave, rate: pytest.fail("asked about silence"))
        measures, heard = judges.ask(Sample("x", "hello there", 0, np.zeros(0, np.float32), 24_000))
        assert heard == ""
        assert measures.values["word_error_rate"] == 1

    def test_without_judges_scores_are_absent_and_never_0(self) -> None:
        measures, heard = Judges().ask(Sample("x", "hello there", 0, self.wave, 24_000))
        assert heard is None
        assert set(measures.values.values()) == {None}

    def test_other_voices_and_the_threshold(self) -> None:
        rng = np.random.default_rng(0)
        target, other = (np.abs(rng.normal(size=256)).astype(np.float32) for _ in range(2))
        target, other = target / np.linalg.norm(target), other / np.linalg.norm(other)
        found = Judges(others={"other": other}).compare([target, target, other], target).values
        own = similarity(target, other) > SAME_VOICE
        assert found["same_voice_share"] == pytest.approx(1.0 if own else 2 / 3)
        assert found["nearest_other_similarity"] > similarity(target, other)
        assert Judges().compare([], target).values == {"same_voice_share": None, "nearest_other_similarity": None}
