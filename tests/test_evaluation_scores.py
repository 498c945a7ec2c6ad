"""The scorers against sounds whose truth is known: tones, gaps, counted syllables, one voice and another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from csm.audio import resample
from csm.errors import CsmError
from evaluation import energy, health, pauses, pitch, rate, speaker
from evaluation.measures import fault
from evaluation.pauses import measure_pauses
from evaluation.pitch import measure_pitch
from evaluation.rate import measure_rate
from evaluation.sample import KEYS, PROSODY_KEYS, Sample, measure, pooled_voices, row
from evaluation.speaker import embed, mean_embedding, similarity
from evaluation.spelling import spell_numbers
from evaluation.syllables import count_syllables

PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
LOW_VOICE = (110.0, (700, 1200, 2500))
HIGH_VOICE = (230.0, (450, 1900, 3100))


def tone(hertz: float, seconds: float, hz: int = 24_000, harmonics: int = 6) -> np.ndarray:
    times = np.arange(round(seconds * hz)) / hz
    parts = [np.sin(2 * np.pi * hertz * k * times) / k for k in range(1, harmonics + 1) if hertz * k < hz / 2]
    return (0.2 * np.sum(parts, axis=0)).astype(np.float32)


def voice(kind: tuple[float, tuple[int, ...]], seconds: float, seed: int, hz: int = 24_000) -> np.ndarray:
    """A throat of resonances over a wandering pulse train, with a syllable's swell four times a second."""
    pitch_hz, formants = kind
    rng, count = np.random.default_rng(seed), round(seconds * hz)
    knots = np.arange(0, seconds + 1, 0.25)
    wander = np.interp(np.arange(count) / hz, knots, rng.normal(0, 1.5, len(knots)))
    phase = np.cumsum(pitch_hz * 2 ** (wander / 12) / hz)
    wave = np.diff(np.floor(phase), prepend=0) + 0.01 * rng.normal(size=count)
    for formant in formants:
        radius = np.exp(-np.pi * 90 / hz)
        wave = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant / hz), radius**2], wave)
    swell = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * np.arange(count) / hz + rng.uniform(0, 6))
    wave = wave * swell
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def with_gaps(parts: list[tuple[str, float]], hz: int, floor: float = 0.0) -> np.ndarray:
    sound = [tone(150, seconds, hz) if kind == "sound" else np.zeros(round(seconds * hz)) for kind, seconds in parts]
    wave = np.concatenate(sound)
    return (wave + floor * np.random.default_rng(0).normal(size=len(wave))).astype(np.float32)


# pitch


@pytest.mark.parametrize("hz", [8_000, 16_000, 24_000, 44_100])
@pytest.mark.parametrize("hertz", [80.0, 120.0, 197.3, 310.0, 520.0])
def test_pitch_of_a_tone_is_right_to_half_a_percent(hertz: float, hz: int) -> None:
    for harmonics in (1, 8):
        found = measure_pitch(tone(hertz, 1.0, hz, harmonics), hz).values
        assert found["pitch_median_hz"] == pytest.approx(hertz, rel=0.005)
        assert found["pitch_spread_semitones"] < 0.1
        assert found["voiced_share"] > 0.9


def test_pitch_spread_is_in_semitones_about_the_median() -> None:
    """Three quarters at the median, a quarter four semitones above: the root mean square is two."""
    wave = np.concatenate([tone(150, 3.0), tone(150 * 2 ** (4 / 12), 1.0)])
    found = measure_pitch(wave, 24_000).values
    assert found["pitch_median_hz"] == pytest.approx(150, rel=0.005)
    assert found["pitch_spread_semitones"] == pytest.approx(2.0, abs=0.1)


def test_voiced_share_is_of_the_sounding_time() -> None:
    noise = 0.1 * np.random.default_rng(0).normal(size=24_000).astype(np.float32)
    wave = np.concatenate([tone(150, 1.0), np.zeros(24_000, np.float32), noise])
    assert measure_pitch(wave, 24_000).values["voiced_share"] == pytest.approx(0.5, abs=0.05)


def test_noise_has_no_pitch_and_says_so() -> None:
    found = measure_pitch(0.1 * np.random.default_rng(0).normal(size=48_000), 24_000)
    assert found.values["pitch_median_hz"] is None
    assert found.values["voiced_share"] < 0.05
    assert "voice" in found.reasons["pitch_median_hz"]


# pauses and rate


@pytest.mark.parametrize("floor", [0.0, 0.0005, 0.003])
@pytest.mark.parametrize("hz", [8_000, 22_050, 24_000, 44_100])
def test_pauses_are_found_within_20_ms(hz: int, floor: float) -> None:
    parts = [("gap", 0.3), ("sound", 0.8), ("gap", 0.2), ("sound", 0.5), ("gap", 0.09), ("sound", 0.6), ("gap", 0.5)]
    parts += [("sound", 0.7), ("gap", 0.35), ("sound", 0.4), ("gap", 0.45)]
    wave = with_gaps(parts, hz, floor)
    found = pauses.timing(wave, hz)
    assert found is not None
    assert found.pauses == pytest.approx([0.2, 0.5, 0.35], abs=0.02)  # 0.09 s is a closure, not a pause
    assert (found.leading, found.trailing) == pytest.approx((0.3, 0.45), abs=0.02)
    values = measure_pauses(wave, hz).values
    span = sum(seconds for _, seconds in parts) - 0.75
    assert values["pauses_per_minute"] == pytest.approx(3 / span * 60, rel=0.02)
    assert values["pause_median_seconds"] == pytest.approx(0.35, abs=0.02)
    assert values["pause_share"] == pytest.approx(1.05 / span, abs=0.02)


def test_pause_times_do_not_drift_in_a_long_clip() -> None:
    """At 22,050 Hz ten milliseconds are no whole number of samples."""
    wave = with_gaps([("sound", 60.0), ("gap", 0.5), ("sound", 60.0), ("gap", 1.0)], 22_050)
    found = pauses.timing(wave, 22_050)
    assert found is not None
    assert (*found.pauses, found.trailing) == pytest.approx((0.5, 1.0), abs=0.02)


def test_neither_an_offset_nor_a_click_hides_or_makes_a_pause() -> None:
    wave = with_gaps([("gap", 0.4), ("sound", 0.8), ("gap", 0.4), ("sound", 0.8), ("gap", 0.3)], 24_000)
    clicked = wave + np.float32(0.05)
    clicked[round(1.4 * 24_000)] = 0.9
    found = pauses.timing(clicked, 24_000)
    assert found is not None
    assert found.pauses == pytest.approx([0.4], abs=0.02)


def test_a_clip_without_a_pause_has_no_median_and_says_so() -> None:
    found = measure_pauses(tone(150, 1.0), 24_000)
    assert found.values["pauses_per_minute"] == 0
    assert found.values["pause_median_seconds"] is None
    lengths = ("pause_median_seconds", "pause_p90_seconds")
    assert found.reasons == dict.fromkeys(lengths, "The clip has no pause.")


def test_rate_counts_sounding_time_and_time_with_pauses() -> None:
    wave = with_gaps([("gap", 0.5), ("sound", 1.0), ("gap", 1.0), ("sound", 1.0), ("gap", 0.7)], 24_000)
    values = measure_rate(wave, 24_000, "A banana is yellow, or so they all say.").values  # 12 syllables
    assert values["syllables_per_second_speech"] == pytest.approx(6.0, rel=0.02)
    assert values["syllables_per_second"] == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize(("text", "word"), [(None, "no text"), ("  ", "no text"), ("?!", "no syllables")])
def test_rate_without_words_is_absent_with_a_reason(text: str | None, word: str) -> None:
    found = measure_rate(tone(150, 1.0), 24_000, text)
    assert found.values == dict.fromkeys(rate.KEYS)
    assert all(word in reason for reason in found.reasons.values())


SYLLABLES = {
    1: "the cat made asked called through straight strength eyes don't they're times vague queue friend",
    2: "hello table people wanted boxes being didn't it'll movement something lion prism unique royal doing faces",
    3: "radio video banana handkerchief museum beautiful anything happier example completely musical area",
    4: "february actually evaluate society impossible variety everybody usually",
    5: "university electricity imagination simultaneous",
}


@pytest.mark.parametrize(("word", "count"), [(word, n) for n, words in SYLLABLES.items() for word in words.split()])
def test_syllables_of_words(word: str, count: int) -> None:
    assert count_syllables(word) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("... ! --", 0),
        ("Hello there, child-like world!", 2 + 1 + 1 + 1 + 1),
        ("Dial 911 now.", 2 + 6 + 1),  # nine hundred eleven
        ("It’s 50% off", 1 + 2 + 2 + 1),
        ("the PBX and a WWW page", 1 + 3 + 1 + 1 + 9 + 1),
        ("in 1984", 1 + 5),
        ("THE CAT SAT", 3),
    ],
)
def test_syllables_of_texts(text: str, count: int) -> None:
    assert count_syllables(text) == count


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("7", "seven"),
        ("19", "nineteen"),
        ("1,234,567", "one million two hundred thirty four thousand five hundred sixty seven"),
        ("2024", "two thousand twenty four"),
        ("1905", "nineteen oh five"),
        ("3.14", "three point one four"),
        ("$5", "five dollars"),
        ("50 %", "fifty percent"),
        ("1st 2nd 3rd 12th 20th 31st", "first second third twelfth twentieth thirty first"),
        ("007", "zero zero seven"),
        ("0", "zero"),
        ("1000000000000", "one" + 12 * " zero"),
        ("no digits", "no digits"),
    ],
)
def test_numbers_are_spelled(text: str, spelled: str) -> None:
    assert " ".join(spell_numbers(text).split()) == spelled


# the speaker


def test_embedding_is_a_unit_vector_and_the_same_every_time() -> None:
    wave = voice(LOW_VOICE, 3.0, seed=1)
    first, second = embed(wave, 24_000), embed(wave, 24_000)
    assert first.shape == (256,)
    assert first.dtype == np.float32
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(first, second)


def test_level_rate_and_silence_do_not_change_the_voice() -> None:
    wave = voice(LOW_VOICE, 3.0, seed=1)
    plain = embed(wave, 24_000)
    assert similarity(plain, embed(0.05 * wave, 24_000)) > 0.9999
    assert similarity(plain, embed(resample(wave, 24_000, 44_100), 44_100)) > 0.999
    padded = np.concatenate([np.zeros(36_000, np.float32), wave, np.zeros(48_000, np.float32)])
    assert similarity(plain, embed(padded, 24_000)) > 0.99


def test_a_voice_resembles_itself_more_than_another() -> None:
    low = [embed(voice(LOW_VOICE, 4.0, seed), 24_000) for seed in (1, 2)]
    high = [embed(voice(HIGH_VOICE, 4.0, seed), 24_000) for seed in (3, 4)]
    same = min(similarity(*low), similarity(*high))
    other = max(similarity(a, b) for a in low for b in high)
    assert same > other + 0.1


def test_mel_bands_lie_where_slaney_put_them() -> None:
    """Below 1 kHz a band is (15 + 27 ln 8 / ln 6.4) / 41 mel of 66.7 Hz wide, above it grows by a constant factor."""
    width = (15 + 27 * np.log(8) / np.log(6.4)) / 41 * 200 / 3
    for hertz, band in ((500, round(500 / width) - 1), (1000, round(1000 / width) - 1)):
        assert int(speaker.mel_power(tone(hertz, 0.5, speaker.RATE, 1))[10:-10].mean(axis=0).argmax()) == band
    areas = speaker._filters().sum(axis=1) * speaker.RATE / speaker.WINDOW
    assert areas[-10:] == pytest.approx(1, abs=0.02)  # equal areas; the lowest are narrower than the bins can show


def test_mean_embedding_points_between_and_refuses_nothing() -> None:
    a, b = np.eye(256, dtype=np.float32)[:2]
    assert similarity(mean_embedding([a, b]), a) == pytest.approx(np.sqrt(0.5), abs=1e-6)
    with pytest.raises(CsmError, match="no embedding"):
        mean_embedding([])


@pytest.mark.parametrize("wave", [np.zeros(48_000), tone(150, 0.2), np.full(48_000, np.nan), np.zeros((2, 48_000))])
def test_embed_refuses_what_has_no_voice(wave: np.ndarray) -> None:
    with pytest.raises(CsmError):
        embed(wave, 24_000)


def test_missing_weights_are_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker._network.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CsmError, match="resemblyzer") as caught:
        embed(voice(LOW_VOICE, 1.0, seed=1), 24_000)
    assert "pip install" in str(caught.value.hint)


def test_the_package_resemblyzer_is_never_imported_and_reading_scores_imports_nothing_heavy() -> None:
    light = "import sys, evaluation.report; print([m for m in ('torch', 'parselmouth', 'scipy') if m in sys.modules])"
    heavy = (
        "import sys, numpy as np; from evaluation.speaker import embed;"
        "embed(np.random.default_rng(0).normal(0, .1, 16000), 16000); print('resemblyzer' in sys.modules)"
    )
    for code, wanted in ((light, "[]"), (heavy, "False")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == wanted


def test_short_samples_of_a_seed_are_pooled_to_three_seconds() -> None:
    samples = [Sample(f"{n}", "a", seed, voice(LOW_VOICE, 1.2, n), 24_000) for seed in (0, 1) for n in range(7)]
    whole = embed(voice(LOW_VOICE, 6.0, 9), 24_000)
    pooled = pooled_voices(samples)
    assert len(pooled) == 4  # 7 clips of 1.2 s: pieces of 3 and 4 clips, for each of two seeds
    single = [similarity(embed(sample.wave, 24_000), whole) for sample in samples]
    assert np.mean([similarity(piece, whole) for piece in pooled]) > np.mean(single)
    assert pooled_voices(samples[:2]) == []


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Eighteen Debian prompts of 3 to 8 s at 24 kHz: one professional speaker."""
    from csm.audio import load_wave

    if not PROMPTS.is_dir() or shutil.which("ffmpeg") is None:
        wanted = "needs the Debian packages asterisk-core-sounds-en-g722 and ffmpeg"
        pytest.fail(wanted) if os.environ.get("CI") == "true" else pytest.skip(wanted)
    folder = tmp_path_factory.mktemp("prompts")
    lasting = [p for p in sorted(PROMPTS.glob("*.g722")) if 3.0 < p.stat().st_size / 8000 < 8.0]  # 64 kbit/s
    waves = []
    for path in lasting[::3][:18]:
        target = folder / f"{path.stem}.wav"
        command = ["ffmpeg", "-loglevel", "error", "-f", "g722", "-i", path, "-ar", "24000", target]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        waves.append(load_wave(target))
    return waves


@pytest.mark.debian
def test_a_human_voice_is_told_from_another(prompts: list[np.ndarray]) -> None:
    """One speaker's clips of 3 to 8 s: .85 to .90 in pairs. The other: the same clips a quarter faster and higher."""
    voices = [embed(wave, 24_000) for wave in prompts]
    pairs = [similarity(a, b) for at, a in enumerate(voices) for b in voices[:at]]
    assert 0.85 < np.mean(pairs) < 0.92
    half = len(voices) // 2
    reference = mean_embedding(voices[:half])
    own = [similarity(found, reference) for found in voices[half:]]
    faster = [similarity(embed(wave, 30_000), reference) for wave in prompts[half:]]
    assert min(own) > max(faster)
    assert np.mean(own) - np.mean(faster) > 0.1


@pytest.mark.debian
def test_a_human_recording_has_plausible_prosody(prompts: list[np.ndarray]) -> None:
    """Played a quarter faster, pitch and rate are a quarter higher, pauses as much shorter."""
    for wave in prompts[:4]:
        own, fast = (
            measure(Sample("a", "A text of eight syllables.", 0, wave, hz))[0].values for hz in (24_000, 30_000)
        )
        assert 150 < own["pitch_median_hz"] < 260
        assert fast["pitch_median_hz"] == pytest.approx(1.25 * own["pitch_median_hz"], rel=0.03)
        assert fast["syllables_per_second"] == pytest.approx(1.25 * own["syllables_per_second"], rel=0.03)
        assert fast["pitch_spread_semitones"] == pytest.approx(own["pitch_spread_semitones"], abs=0.6)


# what cannot be measured

EVERY_KEY = ("speaker_similarity", *PROSODY_KEYS)
HOPELESS = {
    "empty": np.zeros(0, np.float32),
    "one sample": np.ones(1, np.float32),
    "silence": np.zeros(48_000, np.float32),
    "an offset": np.full(48_000, 0.3, np.float32),
    "nan": np.concatenate([tone(150, 1.0), [np.nan]]),
    "infinity": np.concatenate([tone(150, 1.0), [np.inf]]),
    "a click": np.eye(1, 48_000, 24_000, dtype=np.float32)[0],
    "two channels": np.ones((2, 48_000), np.float32),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_what_cannot_be_scored_says_why(name: str) -> None:
    measures, found = measure(Sample(name, "hello there", 0, HOPELESS[name], 24_000))
    assert found is None
    for key in EVERY_KEY:
        assert measures.values[key] is None
        assert len(measures.reasons[key]) > 10
    json.dumps(row(Sample(name, "hello", 0, HOPELESS[name], 24_000), measures), allow_nan=False)


@pytest.mark.parametrize("hz", [0, -1, 1000])
def test_an_impossible_rate_is_a_reason(hz: int) -> None:
    measures, _ = measure(Sample("a", "hello", 0, tone(150, 1.0), hz))
    assert all(measures.values[key] is None for key in EVERY_KEY)
    assert str(hz) in (fault(tone(150, 1.0), hz) or "")


def test_eight_kilohertz_is_scored_with_a_note() -> None:
    wide = Sample("a", "hello there", 0, voice(LOW_VOICE, 4.0, 1), 24_000)
    narrow = Sample("a", "hello there", 0, resample(wide.wave, 24_000, 8_000), 8_000)
    (wide_values, wide_voice), (narrow_values, narrow_voice) = measure(wide), measure(narrow)
    for key in ("pitch_median_hz", "syllables_per_second", "duration_seconds"):
        assert narrow_values.values[key] == pytest.approx(wide_values.values[key], rel=0.01)
    assert wide_voice is not None
    assert narrow_voice is not None
    assert similarity(wide_voice, narrow_voice) > 0.8
    assert row(wide, wide_values)["notes"] == []
    assert "8000 Hz" in row(narrow, narrow_values)["notes"][0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6000), st.sampled_from([4000, 8000, 11_025, 24_000]), st.floats(1e-6, 1.0), st.integers(0, 10**6))
def test_no_scorer_ever_gives_nan(samples: int, hz: int, level: float, seed: int) -> None:
    wave = (level * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)
    for measures in (measure_pitch(wave, hz), measure_pauses(wave, hz), measure_rate(wave, hz, "one two")):
        json.dumps(measures.values, allow_nan=False)
        absent = {key for key, value in measures.values.items() if value is None}
        assert absent == set(measures.reasons)


def test_keys_are_those_of_the_scorers() -> None:
    assert set(PROSODY_KEYS) == {*rate.KEYS, *pitch.KEYS, *pauses.KEYS, *energy.KEYS}
    assert set(KEYS) == {"duration_seconds", *PROSODY_KEYS, *health.KEYS}
