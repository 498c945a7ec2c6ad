"""Energy, health and likeness against sounds whose truth is known: scaled noise, planted loops, bent melodies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from csm.audio import read_audio, resample
from evaluation.energy import measure_energy
from evaluation.health import KEYS, loop_seconds, measure_health
from evaluation.likeness import contour, measure_likeness, warp

VOICE = sorted((Path(__file__).parents[1] / "examples" / "voice" / "audio").glob("*.flac"))
RATE = 24_000


def noise(level: float, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).normal(size=round(seconds * RATE))).astype(np.float32)


class TestEnergy:
    @pytest.mark.parametrize("gain_db", [-12, -3, 6])
    def test_gain_moves_the_level_by_itself_and_leaves_the_spread(self, gain_db: float) -> None:
        wave = read_audio(VOICE[0])[0] * 0.3
        before = measure_energy(wave, RATE).values
        after = measure_energy(wave * np.float32(10 ** (gain_db / 20)), RATE).values
        assert after["energy_db"] - before["energy_db"] == pytest.approx(gain_db, abs=0.1)
        assert after["energy_spread_db"] == pytest.approx(before["energy_spread_db"], abs=0.05)

    def test_noise_of_known_power_has_its_level_and_pauses_do_not_lower_it(self) -> None:
        burst, gap = noise(0.05), np.zeros(RATE, np.float32)
        for wave in (burst, np.concatenate([gap, burst, gap, burst, gap])):
            assert measure_energy(wave, RATE).values["energy_db"] == pytest.approx(20 * np.log10(0.05), abs=0.1)

    def test_a_voice_whose_level_moves_more_has_the_greater_spread(self) -> None:
        even = noise(0.1, 2.0)
        swell = even * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * np.arange(len(even)) / RATE)).astype(np.float32)
        assert measure_energy(swell, RATE).values["energy_spread_db"] > 3
        assert measure_energy(even, RATE).values["energy_spread_db"] < 1

    def test_silence_has_no_energy_but_a_reason(self) -> None:
        found = measure_energy(np.zeros(RATE, np.float32), RATE)
        assert found.values == {"energy_db": None, "energy_spread_db": None}
        assert "silent" in found.reasons["energy_db"]


class TestLoops:
    def test_recordings_hold_none(self) -> None:
        assert [path.name for path in VOICE if loop_seconds(*read_audio(path)) > 0] == []

    def test_planted_ones_are_found(self) -> None:
        rng, found, planted = np.random.default_rng(0), 0, 0
        for path in VOICE:
            wave, rate = read_audio(path)
            at, length = round(rng.uniform(0.3, 0.5) * len(wave)), round(rng.uniform(0.15, 0.8) * rate)
            piece = wave[at : at + length]
            times = int(np.ceil(1.6 * rate / length)) + 2
            looped = np.concatenate([wave[:at], np.tile(piece, times), wave[at + length :]])
            looped = looped + 0.001 * rng.normal(size=len(looped))
            found, planted = found + (loop_seconds(looped.astype(np.float32), rate) > 0), planted + 1
        assert found >= 0.85 * planted

    def test_a_long_silence_is_no_loop(self) -> None:
        wave, rate = read_audio(VOICE[0])
        assert loop_seconds(np.concatenate([wave, np.zeros(5 * rate, np.float32), wave[: rate // 2]]), rate) == 0


class TestHealth:
    def test_a_recording_is_healthy_and_has_no_stop(self) -> None:
        wave, rate = read_audio(VOICE[0])
        found = measure_health(wave, rate, "please close the door", None)
        assert found.values["stopped"] is None
        assert found.values["looped"] == found.values["clipped_share"] == found.values["empty"] == 0
        assert found.values["seconds_per_syllable"] == pytest.approx(len(wave) / rate / 4)
        assert 0 <= found.values["silence_share"] < 0.6

    @pytest.mark.parametrize(("reason", "stopped"), [("end", 1.0), ("length", 0.0)])
    def test_what_ended_a_generation_is_kept(self, reason: str, stopped: float) -> None:
        assert measure_health(*read_audio(VOICE[0]), "hello", reason).values["stopped"] == stopped

    def test_planted_silence_and_clipping_are_measured(self) -> None:
        wave = np.concatenate([noise(0.1), np.zeros(RATE, np.float32)])
        wave[:2400] = np.tile([1.0, -1.0], 1200)
        found = measure_health(wave, RATE, None, "end").values
        assert found["silence_share"] == pytest.approx(0.5, abs=0.02)
        assert found["clipped_share"] == pytest.approx(0.05, abs=0.001)

    @pytest.mark.parametrize(
        "wave",
        [np.zeros(0, np.float32), np.zeros(RATE, np.float32), np.zeros((2, 9), np.float32), np.full(9, np.nan)],
        ids=["none", "silent", "stereo", "nan"],
    )
    def test_what_cannot_be_measured_says_why(self, wave: np.ndarray) -> None:
        found = measure_health(wave, RATE, "hello", "length")
        json.dumps(found.values, allow_nan=False)
        assert set(found.values) == set(KEYS)
        assert set(found.reasons) == {key for key, value in found.values.items() if value is None}
        assert found.values["stopped"] == 0


class TestLikeness:
    wave, rate = read_audio(VOICE[0])

    def test_a_recording_equals_itself(self) -> None:
        found = measure_likeness(contour(self.wave, self.rate), contour(self.wave, self.rate)).values
        assert found["pitch_contour_distance_semitones"] == 0
        assert found["energy_profile_correlation"] == pytest.approx(1)

    def test_tempo_and_a_pause_cost_little_and_another_text_much(self) -> None:
        own = contour(self.wave, self.rate)
        half = len(self.wave) // 2
        slower = resample(self.wave[half:], self.rate, round(self.rate * 0.95))
        told = np.concatenate([self.wave[:half], np.zeros(self.rate // 5, np.float32), slower])
        close = measure_likeness(contour(told, self.rate), own).values
        far = [measure_likeness(contour(*read_audio(path)), own).values for path in VOICE[1:8]]
        assert close["energy_profile_correlation"] > 0.9
        assert close["energy_profile_correlation"] > max(other["energy_profile_correlation"] for other in far)
        assert close["pitch_contour_distance_semitones"] < min(o["pitch_contour_distance_semitones"] for o in far)

    def test_transposing_is_no_distance_and_flattening_is_all_of_it(self) -> None:
        import parselmouth
        from parselmouth.praat import call

        own = contour(self.wave, self.rate)
        spread = float(np.nanstd(own.semitones))
        manipulation = call(parselmouth.Sound(self.wave.astype(float), self.rate), "To Manipulation", 0.01, 75, 600)
        tier = call(manipulation, "Extract pitch tier")
        distances = {}
        for name, formula in (("higher", "self*1.26"), ("flat", "200")):
            call(tier, "Formula", formula)
            call([tier, manipulation], "Replace pitch tier")
            bent = call(manipulation, "Get resynthesis (overlap-add)").values[0].astype(np.float32)
            distances[name] = measure_likeness(contour(bent, self.rate), own).values["pitch_contour_distance_semitones"]
        assert distances["higher"] < 0.2 * spread
        assert distances["flat"] == pytest.approx(spread, rel=0.2)

    def test_without_a_recording_or_a_voice_it_is_absent_with_a_reason(self) -> None:
        own = contour(self.wave, self.rate)
        for sample, recording in ((own, None), (None, own), (contour(noise(0.1), RATE), own)):
            found = measure_likeness(sample, recording)
            assert found.values["pitch_contour_distance_semitones"] is None
            assert found.reasons

    def test_the_path_is_whole_and_monotone(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(40, 8)), rng.normal(size=(55, 8))
        ours, theirs = warp(*(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)))
        assert (ours[0], theirs[0], ours[-1], theirs[-1]) == (0, 0, 39, 54)
        for steps in (np.diff(ours), np.diff(theirs)):
            assert set(steps) <= {0, 1}
