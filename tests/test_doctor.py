"""The doctor's measures against known truth: faults are planted in clean clips, and each is found, once, and by its name."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile

from csm.audio import frame_levels, loudness, normalise_loudness, resample, trim
from csm.data.codes import CodeCache, CodedTurn, Tokenised
from csm.data.doctor.coverage import ARPABET, phone_coverage
from csm.data.doctor.duplicates import fingerprint, same_sounds
from csm.data.doctor.findings import Finding, find, letter_errors
from csm.data.doctor.outliers import length_outliers, voice_outliers
from csm.data.doctor.sound import measure_sound, signal_to_noise
from csm.data.doctor.summary import summarise, too_little
from csm.data.doctor.survey import Grid, Survey, examine, quick_survey, survey
from csm.data.faults import Fault
from csm.data.manifest import read_data
from csm.data.row import Row
from csm.data.turns import Turns
from evaluation.dictionary import pronouncer
from evaluation.speaker import embed, unusable

VOICE = Path(__file__).parents[1] / "examples" / "voice"
RATE = 24_000
GRID = Grid(RATE, 12.5)
CLIPS = 28


def clip(number: int) -> np.ndarray:
    return soundfile.read(VOICE / "audio" / f"{number:03d}.flac", dtype="float32")[0]


def text(number: int) -> str:
    return (VOICE / "transcripts" / f"{number:03d}.txt").read_text().strip()


def with_noise(wave: np.ndarray, decibels: float, seed: int = 0) -> np.ndarray:
    """White noise so far below the mean power of the pieces within 40 dB of the loudest."""
    levels = frame_levels(wave, RATE, 0.02)
    speech = np.mean(10 ** (levels[levels > levels.max() - 40] / 10))
    noise = np.random.default_rng(seed).standard_normal(len(wave)) * np.sqrt(speech * 10 ** (-decibels / 10))
    return (wave + noise).astype(np.float32)


@pytest.mark.parametrize(("decibels", "off"), [(40, 2.0), (30, 1.0), (20, 1.0), (10, 3.0)])
def test_noise_of_a_known_level_is_measured(decibels: float, off: float) -> None:
    found = [signal_to_noise(with_noise(clip(i), decibels, i), RATE) for i in range(1, 9)]
    assert abs(np.median(found) - decibels) < off
    assert np.abs(np.array(found) - decibels).max() < 3 * off  # some clips have no pause


def test_silent_ends_of_known_length_are_measured() -> None:
    before, after = np.zeros(int(1.6 * RATE), np.float32), np.zeros(int(2.5 * RATE), np.float32)
    plain, longer = measure_sound(clip(1), RATE), measure_sound(np.concatenate([before, clip(1), after]), RATE)
    assert longer.leading - plain.leading == pytest.approx(1.6, abs=0.011)
    assert longer.trailing - plain.trailing == pytest.approx(2.5, abs=0.011)


def test_clipping_is_seen_after_it_was_turned_down_and_not_in_clean_speech() -> None:
    assert measure_sound(np.clip(8 * clip(2), -1, 1) * np.float32(0.3), RATE).clipped > 0.005
    assert all(measure_sound(clip(i), RATE).clipped == 0 for i in range(1, 12))


def test_an_offset_is_measured_and_changes_nothing_else() -> None:
    wave = with_noise(clip(5), 45)  # a floor, which rounding would else be
    plain, moved = measure_sound(wave, RATE), measure_sound(wave * np.float32(0.5) + np.float32(0.2), RATE)
    assert moved.offset == pytest.approx(0.2, abs=0.002)
    assert (moved.snr, moved.leading) == (pytest.approx(plain.snr, abs=0.2), plain.leading)
    assert moved.bandwidth == pytest.approx(plain.bandwidth, rel=0.05)


def test_what_was_resampled_upwards_keeps_its_bandwidth() -> None:
    wave = clip(3)
    for low in (8_000, 16_000):
        found = measure_sound(resample(resample(wave, RATE, low), low, RATE), RATE).bandwidth
        assert found == pytest.approx(0.47 * low, rel=0.08)
    assert measure_sound(wave, RATE).bandwidth > 10_000


def test_loudness_is_the_standards() -> None:
    wave = clip(4) * np.float32(0.37)
    assert loudness(wave, RATE) == pytest.approx(pyloudnorm.Meter(RATE).integrated_loudness(wave.astype(float)))
    assert loudness(normalise_loudness(wave, RATE), RATE) == pytest.approx(-23, abs=0.01)
    assert loudness(np.zeros(RATE, np.float32), RATE) is None


def encoded(wave: np.ndarray, gain: float = 0.5) -> np.ndarray:
    """The wave after a way through MP3."""
    file = io.BytesIO()
    soundfile.write(file, wave * gain, RATE, format="MP3")
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def test_duplicates_are_found_after_coding_gain_noise_and_another_cut_and_nothing_else_is() -> None:
    clean = [clip(i) for i in range(1, 13)]
    copies = [encoded(clean[0]), with_noise(clean[1], 25)[int(0.11 * RATE) :], clean[2] * np.float32(0.1)]
    half = np.concatenate([clean[3][: len(clean[3]) // 2], clean[4][len(clean[4]) // 2 :]])
    prints = [fingerprint(trim(wave, RATE), RATE) for wave in (*clean, *copies, half)]
    groups = same_sounds([bytes([i]) for i in range(len(prints))], prints)
    assert sorted(groups) == [([0, 12], False), ([1, 13], False), ([2, 14], False)]
    assert same_sounds([b"a", b"b", b"a"], prints[:3]) == [([0, 2], True)]
    assert same_sounds([], []) == []


def test_phones_are_counted_by_the_dictionary() -> None:
    words = {"cat": ("K", "AE1", "T"), "a": ("AH0",)}
    found = phone_coverage(["A cat, a CAT’s cat!", "zzz"], words.get)
    assert {phone: count for phone, count in found.counts.items() if count} == {"K": 2, "AE": 2, "T": 2, "AH": 2}
    assert found.unknown == {"cat's": 1, "zzz": 1}
    assert found.words == 6
    assert len(ARPABET) == 39
    assert "K" not in found.missing
    assert "ZH" in found.missing


def test_the_installed_dictionary_pronounces() -> None:
    pronounce = pronouncer()
    if pronounce is None:
        pytest.skip("pocketsphinx, which ships the dictionary, is not installed")
    assert pronounce("measure") == ("M", "EH", "ZH", "ER")
    assert pronounce("kettle's") == (*pronounce("kettle"), "Z")
    assert pronounce("xqzzy") is None


def test_lengths_that_do_not_fit_the_text_stand_out() -> None:
    draw = np.random.default_rng(0)
    characters = draw.integers(20, 80, 60)
    seconds = 0.3 + characters / 15 * draw.uniform(0.85, 1.15, 60)
    assert length_outliers(seconds, characters) == {}
    seconds[[3, 30]] *= [3, 0.4]
    assert set(length_outliers(seconds, characters)) == {3, 30}
    assert length_outliers(seconds, characters)[3] == pytest.approx(3, rel=0.3)
    assert set(length_outliers([60.0, 3.0], [40, 42])) == {0}, "a minute with 40 letters, however few the clips"
    assert length_outliers([], []) == {}


def test_a_voice_far_from_the_others_stands_out() -> None:
    draw = np.random.default_rng(0)
    voices = np.abs(np.ones((20, 256)) + 0.3 * draw.standard_normal((20, 256)))
    voices[7] = np.abs(draw.standard_normal(256))
    voices /= np.linalg.norm(voices, axis=1, keepdims=True)
    assert set(voice_outliers(voices, [3.0] * 20)) == {7}
    assert voice_outliers(voices[:3], [3.0] * 3) == {}


def test_letter_errors_are_levenshteins() -> None:
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    draw = np.random.default_rng(1)
    for _ in range(40):
        a, b = ("".join(draw.choice(list("abc"), draw.integers(1, 6))) for _ in range(2))
        assert letter_errors(a, b) == min(1.0, slow(a, b) / len(a))
    assert (letter_errors("", ""), letter_errors("", "a"), letter_errors("a", "")) == (0, 1, 1)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean clips, and one of each fault."""
    root = tmp_path_factory.mktemp("planted")
    waves, texts = ({f"{i:03d}": make(i) for i in range(1, CLIPS + 1)} for make in (clip, text))
    waves["002"] = np.clip(12 * waves["002"], -1, 1) * np.float32(0.4)
    waves["003"] = with_noise(waves["003"], 10)
    waves["004"] = np.concatenate([np.zeros(int(1.6 * RATE)), waves["004"], np.zeros(int(2.5 * RATE))])
    waves["005"] = resample(resample(waves["005"], RATE, 8000), 8000, RATE)
    waves["006"] = waves["006"] * np.float32(0.1)
    texts["007"], texts["008"] = texts["008"], texts["007"]
    waves["009"] = resample(waves["009"], 17_000, RATE)  # deep and slow: another speaker
    waves["010"] = np.zeros(2 * RATE, np.float32)
    waves["101"], texts["101"] = waves["011"], texts["011"]
    waves["102"], texts["102"] = encoded(waves["012"], 0.7), texts["012"]
    texts["013"] = "Yes, it is."
    for kind in ("audio", "transcripts"):
        (root / kind).mkdir()
    for name, wave in waves.items():
        soundfile.write(root / "audio" / f"{name}.flac", np.clip(wave, -1, 1), RATE)
        (root / "transcripts" / f"{name}.txt").write_text(texts[name])
    (root / "audio" / "103.wav").write_text("no sound")
    (root / "transcripts" / "103.txt").write_text("no sound")
    return root


def voice(wave: np.ndarray, rate: int) -> np.ndarray | None:
    return None if unusable(wave, rate) else embed(wave, rate)


@pytest.fixture(scope="module")
def surveyed(planted: Path) -> Survey:
    """The planted data, heard by a recogniser that knows what the clean clips say."""
    said = {round(len(trim(clip(i), RATE, 40, 0.1)) / 10): text(i) for i in (7, 8)}

    def recognise(wave: np.ndarray, rate: int) -> str:
        return said.get(round(len(wave) / 10), "")

    rows, faults = read_data([planted], speaker=5)
    heard = [[row] for [row] in rows if row.name in ("007", "008")]
    others = [[row] for [row] in rows if row.name not in ("007", "008")]
    first, second = survey(others, faults, GRID, voice), survey(heard, [], GRID, voice, {"en": recognise})
    return Survey([*first.conversations, *second.conversations], first.faults, GRID)


def test_every_planted_fault_is_named_once_and_clean_clips_are_not(surveyed: Survey) -> None:
    named = Counter(
        (Path(surveyed.records[number].row.audio).stem, finding.kind)
        for finding in find(surveyed)
        for number in finding.clips
    )
    assert named == Counter(
        [
            *[("002", "clipped"), ("003", "noisy"), ("004", "silent ends"), ("005", "narrow"), ("006", "level")],
            *[("007", "transcript"), ("008", "transcript"), ("009", "speaker"), ("010", "unusable")],
            *[("011", "same sound"), ("101", "same sound"), ("012", "same sound"), ("102", "same sound")],
            *[("013", "pace"), ("103", "unusable")],
        ]
    )
    messages = [finding.message for finding in find(surveyed)]
    assert len(messages) == len(set(messages))
    assert [finding.is_error for finding in find(surveyed)].count(True) == 2


def test_clean_recordings_give_no_finding() -> None:
    rows, faults = read_data([VOICE], speaker=5)
    assert find(survey(rows[:24], faults, GRID, voice)) == []


def test_waves_are_let_go(surveyed: Survey) -> None:
    for record in surveyed.records:
        kept = record.words.nbytes + (record.voice.nbytes if record.voice is not None else 0)
        assert kept < 2_000 + 180 * record.speech


def test_a_clip_gets_the_verdict_and_the_frames_of_training(planted: Path, tmp_path: Path, toy_folder: Path) -> None:
    from csm.backend import choose_backend
    from csm.model_folder import open_folder

    for model in ("csm-tiny", toy_folder):
        folder = open_folder(model)
        codec = choose_backend(folder, "cpu").codec(folder)
        grid, cache = Grid(codec.sample_rate, codec.frame_rate), CodeCache(tmp_path / Path(model).name, codec)
        for [row] in read_data([planted], speaker=5)[0][1:14:3]:
            codes, found = cache.codes_of(row), examine(row, grid)
            assert (codes if isinstance(codes, Fault) else codes.shape[1]) == (found.fault or found.frames)
        for samples in (1919, 1920, 1921, 5000, 24_000):
            assert grid.frames(samples) == codec.encode(np.zeros(samples, np.float32)).shape[1]


def row(name: str, words: str, speaker: int = 0) -> Row:
    return Row(name, Path(f"{name}.wav"), words, speaker, Path(f"{name}.txt"))


def test_the_cheap_checks_of_tokenised_data_name_pace_and_equal_sounds() -> None:
    draw = np.random.default_rng(0)
    turns = [CodedTurn(row(f"{i}", f"some words that are about so long {i}"), draw.integers(0, 9, (2, 30)))
             for i in range(12)]  # fmt: skip
    turns[3] = CodedTurn(turns[3].row, draw.integers(0, 9, (2, 1100)))  # 88 s for 36 characters
    turns.append(CodedTurn(row("again", "other words of about the same length"), turns[5].codes))
    columns = Turns.of([[turn] for turn in turns])
    unread = replace(columns, codes=lambda number: pytest.fail(f"the codes of {number} were read"))
    found = find(quick_survey(Tokenised(unread, [], 12.5)))
    assert [(finding.kind, finding.clips) for finding in found] == [("same sound", (5, 12)), ("pace", (3,))]
    assert "with other words" in found[0].message


def test_minutes_are_held_against_what_the_preset_asks() -> None:
    speakers = {0: (10, 6.0), 1: (3, 1.5)}
    assert too_little(speakers, "voice-adapt", (5.0, 10.0)) == [
        Finding("minutes", "speaker 1 has 1.5 minutes; voice-adapt asks for 5-10.")
    ]
    assert too_little(speakers, "domain", (20.0, None)) == [
        Finding("minutes", "the data have 7.5 minutes; domain asks for 20 or more.")
    ]
    assert too_little(speakers, "domain", (7.0, None)) == []
    assert too_little(speakers, "conversation", None) == []


def test_figures_add_up(surveyed: Survey) -> None:
    summary = summarise(surveyed)
    used = [record for record in surveyed.records if not record.fault]
    assert summary.clips == len(used) == summary.clips_named - 2
    assert summary.minutes == pytest.approx(sum(r.frames for r in used) / 12.5 / 60)
    assert summary.speakers == {5: (len(used), pytest.approx(summary.minutes))}
    assert summary.rates == {RATE: len(used)}
