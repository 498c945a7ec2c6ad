"""The gate against drawn scores whose truth is known: how often it cries wolf, how often it misses, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csm.errors import CsmError
from evaluation.gate import Rule, exit_code, judge, read_rules
from evaluation.noise import Noise, calibrate, from_json, to_json
from evaluation.score import Scores, SystemScores

TEXTS = 12
RULES = [Rule("speaker_similarity", catch=0.05), Rule("word_error_rate", catch=0.10)]


def rows(rng: np.random.Generator, seeds: int, similarity: float = 0.8, errors: float = 0.2) -> list[dict[str, Any]]:
    """Twelve texts of different difficulty, each spoken with every seed; words fall one by one, as they do."""
    hard = np.random.default_rng(99).normal(size=TEXTS)
    found = []
    for text in range(TEXTS):
        for seed in range(seeds):
            voice = similarity + 0.03 * hard[text] + 0.03 * rng.normal()
            wrong = rng.binomial(8, np.clip(errors + 0.05 * hard[text], 0, 1)) / 8
            found.append({"name": f"{text}-{seed}", "text": f"text {text}", "seed": seed, "reasons": {}, "notes": [],
                          "speaker_similarity": voice, "word_error_rate": wrong})  # fmt: skip
    return found


def document(samples: list[dict[str, Any]], base: list[dict[str, Any]] | None = None) -> Scores:
    systems = [SystemScores("step-000010", "checkpoint", samples, {}, {})]
    if base is not None:
        systems.append(SystemScores("base", "base", base, {}, {}))
    return Scores({}, systems, best="step-000010")


class TestNoise:
    def test_the_deviation_between_seeds_is_recovered_whatever_the_texts_are(self) -> None:
        noise = calibrate(rows(np.random.default_rng(0), 40))
        assert noise["speaker_similarity"].deviation == pytest.approx(0.03, rel=0.1)
        assert noise["speaker_similarity"].freedoms == TEXTS * 39

    def test_means_move_as_it_says(self) -> None:
        noise = calibrate(rows(np.random.default_rng(0), 10))["speaker_similarity"]
        means = [np.mean([row["speaker_similarity"] for row in rows(np.random.default_rng(i), 5)]) for i in range(200)]
        assert float(np.std(means)) == pytest.approx(noise.of_mean(TEXTS * 5), rel=0.2)

    def test_too_few_repeats_are_refused(self) -> None:
        with pytest.raises(CsmError, match="too few repeats"):
            calibrate(rows(np.random.default_rng(0), 1))

    def test_it_survives_its_file_and_refuses_others(self) -> None:
        noise = calibrate(rows(np.random.default_rng(0), 3))
        assert from_json(json.loads(json.dumps(to_json(noise, "base")))) == noise
        for wrong in ([], {}, {"schema_version": 1}, {"schema_version": 1, "noise": {"speaker_similarity": {}}},
                      {"schema_version": 1, "noise": {"speaker_similarity": {"deviation": -1, "freedoms": 3}}}):  # fmt: skip
            with pytest.raises(CsmError, match="noise file"):
                from_json(wrong)


class TestFalls:
    def test_equal_models_raise_an_alarm_one_time_in_twenty_at_most(self) -> None:
        rng = np.random.default_rng(1)
        noise = calibrate(rows(rng, 6))
        codes = [
            exit_code(judge(RULES, document(rows(rng, 6)), document(rows(rng, 6)), noise)) for _ in range(300)
        ]  # the share of alarms is known to 1.3 points
        assert codes.count(3) / len(codes) < 0.05
        assert codes.count(4) == 0

    @pytest.mark.parametrize("planted", [{"similarity": 0.75}, {"errors": 0.30}])
    def test_a_planted_fall_is_caught_19_times_in_20(self, planted: dict[str, float]) -> None:
        rng = np.random.default_rng(2)
        noise = calibrate(rows(rng, 6))
        codes = [
            exit_code(judge(RULES, document(rows(rng, 6, **planted)), document(rows(rng, 6)), noise))
            for _ in range(200)
        ]
        assert codes.count(3) / len(codes) >= 0.95

    def test_too_few_samples_cannot_decide_and_say_how_many_it_takes(self) -> None:
        rng = np.random.default_rng(3)
        noise = calibrate(rows(rng, 6))
        results = judge([Rule("word_error_rate", catch=0.05)], document(rows(rng, 1)), document(rows(rng, 1)), noise)
        assert exit_code(results) == 4
        assert "take about" in results[0].line

    def test_a_change_either_way_counts_where_no_way_is_better(self) -> None:
        rule, noise = Rule("pitch_median_hz", catch=10.0), {"pitch_median_hz": Noise(2.0, 100)}
        now, before = rows(np.random.default_rng(0), 2), rows(np.random.default_rng(0), 2)
        for row in now:
            row["pitch_median_hz"] = 220.0
        for hertz, code in ((200.0, 3), (240.0, 3), (219.0, 0)):
            for row in before:
                row["pitch_median_hz"] = hertz
            assert exit_code(judge([rule], document(now), document(before), noise)) == code

    def test_other_texts_and_no_noise_cannot_decide(self) -> None:
        now, before = rows(np.random.default_rng(0), 3), rows(np.random.default_rng(0), 3)
        assert exit_code(judge(RULES, document(now), document(before))) == 4
        for row in before:
            row["text"] += " more"
        assert exit_code(judge(RULES, document(now), document(before), calibrate(now))) == 4

    def test_no_baseline_is_a_sentence(self) -> None:
        with pytest.raises(CsmError, match="needs earlier scores"):
            judge(RULES, document(rows(np.random.default_rng(0), 3)))


class TestLimits:
    @pytest.mark.parametrize(
        ("rule", "verdict"),
        [
            (Rule("speaker_similarity", at_least=0.70), "passed"),
            (Rule("speaker_similarity", at_least=0.90), "failed"),
            (Rule("speaker_similarity", at_least=0.805), "undecided"),
            (Rule("word_error_rate", at_most=0.35), "passed"),
            (Rule("word_error_rate", at_most=0.05), "failed"),
            (Rule("speaker_similarity", at_least=0.10, over_base=True), "passed"),
            (Rule("speaker_similarity", at_least=0.30, over_base=True), "failed"),
            (Rule("predicted_mos", at_least=3.0), "undecided"),
        ],
    )
    def test_a_mean_beyond_the_noise_decides(self, rule: Rule, verdict: str) -> None:
        rng = np.random.default_rng(4)
        samples = rows(rng, 6)
        mean = float(np.mean([row["speaker_similarity"] for row in samples]))
        for row in samples:  # the drawn mean is brought to .8, so that .805 lies within the noise
            row["speaker_similarity"] += 0.8 - mean
        found = judge([rule], document(samples, rows(rng, 6, similarity=0.6)), noise=calibrate(samples))[0]
        assert found.verdict == verdict
        assert found.line.startswith(verdict.upper())

    def test_samples_that_lack_on_one_side_are_no_change(self) -> None:
        """Equal models whose easy texts lack seeds on one side and hard ones on the other."""
        now, before = rows(np.random.default_rng(1), 5), rows(np.random.default_rng(2), 5)
        easy = {f"text {number}" for number in range(TEXTS // 2)}
        for samples, lacking in ((now, True), (before, False)):
            for row in samples:
                row["speaker_similarity"] += 0.2 * (row["text"] in easy)
                if row["seed"] and (row["text"] in easy) is lacking:
                    row["speaker_similarity"] = None
        noise = calibrate(rows(np.random.default_rng(0), 20))
        line = judge([Rule("speaker_similarity", catch=0.05)], document(now), document(before), noise)[0]
        assert line.verdict == "passed", line.line

    def test_a_band_in_the_rule_takes_the_place_of_calibration(self) -> None:
        samples = rows(np.random.default_rng(4), 2)
        for band, verdict in ((0.5, "undecided"), (0.001, "failed")):
            assert judge([Rule("speaker_similarity", at_least=0.9, band=band)], document(samples))[0].verdict == verdict

    def test_a_system_that_was_not_scored_is_named(self) -> None:
        with pytest.raises(CsmError, match="no system 'step-9'"):
            judge(
                [Rule("speaker_similarity", at_least=0.5, system="step-9")], document(rows(np.random.default_rng(0), 2))
            )

    def test_a_margin_over_no_base_or_over_itself_is_refused(self) -> None:
        samples = rows(np.random.default_rng(0), 2)
        rule = Rule("word_error_rate", at_most=0.1, over_base=True)
        with pytest.raises(CsmError, match="the scores hold no base"):
            judge([rule], document(samples))
        with pytest.raises(CsmError, match="base is the base"):
            judge([replace(rule, system="base")], document(samples, samples))

    @pytest.mark.parametrize("wrong", [{"text": 3}, {"speaker_similarity": "x"}, {"speaker_similarity": float("nan")}])
    def test_samples_that_are_none_are_refused(self, wrong: dict[str, Any]) -> None:
        written = document(rows(np.random.default_rng(0), 2)).to_json()
        assert Scores.from_json(written)
        written["systems"][0]["samples"][3] |= wrong
        with pytest.raises(CsmError, match="a sample that is none"):
            Scores.from_json(written)


class TestRulesFile:
    def test_rules_are_read(self, tmp_path: Path) -> None:
        path = tmp_path / "gate.toml"
        path.write_text(
            '[[rule]]\nmetric = "speaker_similarity"\nat_least = 0.7\n[[rule]]\nmetric = "word_error_rate"\ncatch = 0.1\n'
        )
        assert read_rules(path) == [Rule("speaker_similarity", at_least=0.7), Rule("word_error_rate", catch=0.1)]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "holds no rules"),
            ("rule = 3", "holds no rules"),
            ("[[rule]]\nmetric", "cannot be read as TOML"),
            ("[[rule]]\nat_least = 1", "names no known metric"),
            ('[[rule]]\nmetric = "stopped"\nat_least = 0.9\nat_most = 0.1', "nothing is both"),
            ('[[rule]]\nmetric = "similarity"\nat_least = 1', "names no known metric"),
            ('[[rule]]\nmetric = "stopped"', "needs either"),
            ('[[rule]]\nmetric = "stopped"\nat_least = 1\ncatch = 0.1', "needs either"),
            ('[[rule]]\nmetric = "stopped"\natleast = 1', "unknown key atleast"),
            ('[[rule]]\nmetric = "stopped"\nat_least = "1"', "sets at_least to '1'"),
            ('[[rule]]\nmetric = "stopped"\nat_least = nan', "sets at_least to nan"),
            ('[[rule]]\nmetric = "stopped"\ncatch = -1', "size below 0"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, text: str, problem: str) -> None:
        (tmp_path / "gate.toml").write_text(text)
        with pytest.raises(CsmError, match=problem):
            read_rules(tmp_path / "gate.toml")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CsmError, match="is not there"):
            read_rules(tmp_path / "none.toml")
