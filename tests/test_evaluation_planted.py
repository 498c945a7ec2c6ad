"""The pick and the gate on real scores of csm-tiny: three checkpoints of known worth and the base, under many seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import planted_runs
import pytest

from evaluation.choice import choose_best
from evaluation.compare import paired_bootstrap
from evaluation.gate import Rule, exit_code, judge
from evaluation.noise import calibrate
from evaluation.score import Scores, SystemScores

Rows = list[dict[str, Any]]
SEEDS_A_TEXT = 3  # the command's default
ROWS = planted_runs.stored()
TEXTS = sorted({row["text"] for row in ROWS["good"]})


def system(name: str, rows: Rows) -> SystemScores:
    scored = sum(row["speaker_similarity"] is not None for row in rows)
    return SystemScores(name, planted_runs.KINDS[name], rows, {"samples": len(rows), "scored": scored}, {})


def of_seeds(rows: Rows, seeds: np.ndarray) -> Rows:
    """The rows of these seeds, numbered anew, so that two draws pair."""
    new = {int(seed): number for number, seed in enumerate(seeds)}
    return [{**row, "seed": new[row["seed"]]} for row in rows if row["seed"] in new]


def drawn(rows: Rows, repeats: int, rng: np.random.Generator, **shift: float) -> Rows:
    """So many rows of each text, drawn again with replacement; values of `shift` are added."""
    found = []
    for text in TEXTS:
        own = [row for row in rows if row["text"] == text]
        for seed, at in enumerate(rng.integers(len(own), size=repeats)):
            found.append({**own[at], "seed": seed, **{key: own[at][key] + by for key, by in shift.items()}})
    return found


class TestChoice:
    def test_the_good_checkpoint_is_picked_in_nine_of_ten_draws_of_seeds(self) -> None:
        rng, right = np.random.default_rng(0), 0
        for _ in range(20):
            seeds = rng.choice(8, SEEDS_A_TEXT, replace=False)
            systems = [system(name, of_seeds(ROWS[name], seeds)) for name in ("base", "under", "good", "over")]
            right += choose_best(systems)[0] == "good"
        assert right >= 18

    def test_the_over_trained_one_is_out_for_its_words_alone(self) -> None:
        """However well it would know the voice."""
        rng, right = np.random.default_rng(1), 0
        for _ in range(20):
            seeds = rng.choice(8, SEEDS_A_TEXT, replace=False)
            rows = {name: of_seeds(ROWS[name], seeds) for name in ("base", "good", "over")}
            for row in rows["over"]:
                row["speaker_similarity"] += 0.1
            right += choose_best([system(name, part) for name, part in rows.items()])[0] == "good"
        assert right >= 18

    @pytest.mark.parametrize("metric", ["speaker_similarity", "word_error_rate"])
    def test_one_checkpoint_under_other_seeds_is_called_different_three_times_in_twenty_at_most(
        self, metric: str
    ) -> None:
        rng = np.random.default_rng(2)
        for name in ("base", "good"):
            called = 0
            for _ in range(20):
                seeds = rng.permutation(8)
                one, other = (of_seeds(ROWS[name], part) for part in (seeds[:SEEDS_A_TEXT], seeds[-SEEDS_A_TEXT:]))
                interval = paired_bootstrap(one, other, metric).interval_95
                assert interval
                called += not interval[0] <= 0 <= interval[1]
            assert called <= 3


class TestGate:
    """Eight texts with 18 seeds: csm-tiny's word errors scatter so much that a tenth takes it."""

    rules = (Rule("speaker_similarity", catch=0.05), Rule("word_error_rate", catch=0.10))
    noise = calibrate(ROWS["good"])
    repeats = 18

    def codes(self, seed: int, **shift: float) -> list[int]:
        rng, found = np.random.default_rng(seed), []
        for _ in range(300):
            before, now = drawn(ROWS["good"], self.repeats, rng), drawn(ROWS["good"], self.repeats, rng, **shift)
            one, other = (Scores({}, [system("good", rows)], best="good") for rows in (now, before))
            found.append(exit_code(judge(self.rules, one, other, self.noise)))
        return found

    def test_equal_models_raise_an_alarm_under_five_times_in_a_hundred(self) -> None:
        assert self.codes(0).count(3) < 15

    @pytest.mark.parametrize("fall", [{"speaker_similarity": -0.05}, {"word_error_rate": 0.10}])
    def test_a_planted_fall_is_caught_95_times_in_a_hundred(self, fall: dict[str, float]) -> None:
        assert self.codes(1, **fall).count(3) >= 285


@pytest.mark.timeout(3600)  # three minutes of a core, but cores may be shared
@pytest.mark.long
def test_the_good_checkpoint_is_picked_after_training(tmp_path: Path) -> None:
    """The whole way: train, speak, hear, score, pick."""
    pytest.importorskip("faster_whisper")
    checkpoints = planted_runs.train(tmp_path)
    systems = []
    for found in planted_runs.score(tmp_path, {"base": "csm-tiny", **checkpoints}, range(100, 100 + SEEDS_A_TEXT)):
        rows = [dict(zip(("text", "seed", *planted_runs.KEPT), row, strict=True)) for row in found["rows"]]
        systems.append(system(found["name"], rows))
    best, reason = choose_best(systems)
    assert best == "good", reason
