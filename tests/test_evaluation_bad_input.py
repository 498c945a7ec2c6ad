"""Whatever is given to be scored: a sentence, or an absent score with its reason; never NaN in the JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from csm.audio import read_audio
from csm.cli.main import main as csm
from csm.errors import CsmError
from evaluation.judges import Judges
from evaluation.reference import Reference
from evaluation.sample import Sample
from evaluation.score import Scores, SystemScores, score_system

VOICE = sorted((Path(__file__).parents[1] / "examples" / "voice" / "audio").glob("*.flac"))
TEXT = "The kettle is warm, and the cups are on the shelf."
JUDGES = Judges(lambda wave, rate: "the kettle")
SPEECH = read_audio(VOICE[0])


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Two recordings, one of the text that samples say."""
    samples = [Sample(path.name, TEXT if path == VOICE[0] else None, 0, *read_audio(path)) for path in VOICE[:2]]
    return Reference.from_recordings("two", samples, judges=JUDGES)


def checked(system: SystemScores, reference: Reference) -> SystemScores:
    """The document can be written, and every value that is missing has its reason."""
    json.dumps(Scores.of(reference, [system]).to_json(), allow_nan=False)
    for row in system.samples:
        absent = {key for key, value in row.items() if value is None} - {"text", "heard", "stop_reason"}
        assert absent == set(row["reasons"])
        assert all(reason.endswith(".") or ": " in reason for reason in row["reasons"].values())
    assert {key for key, value in system.summary.items() if value is None} == set(system.reasons)
    return system


SOUNDS = {
    "silence": (np.zeros(72_000, np.float32), 24_000),
    "one sample": (np.ones(1, np.float32), 24_000),
    "nothing": (np.zeros(0, np.float32), 24_000),
    "nan": (np.append(SPEECH[0], np.float32(np.nan)), SPEECH[1]),
    "infinite": (np.append(SPEECH[0], np.float32(np.inf)), SPEECH[1]),
    "stereo": (np.stack([SPEECH[0], SPEECH[0]]), SPEECH[1]),
    "no rate": (SPEECH[0], 0),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_that_cannot_be_scored_has_reasons(name: str, reference: Reference) -> None:
    system = checked(
        score_system("x", [Sample("a", TEXT, 0, *SOUNDS[name], "end")], reference, judges=JUDGES), reference
    )
    row = system.samples[0]
    for key in ("speaker_similarity", "pitch_median_hz", "pauses_per_minute", "energy_db", "syllables_per_second"):
        assert row[key] is None
    assert row["stopped"] == 1
    assert row["word_error_rate"] == 1  # nothing can be heard


def test_eight_kilohertz_and_a_text_of_no_words_are_scored_as_far_as_they_go(reference: Reference) -> None:
    samples = [Sample("a", TEXT, 0, SPEECH[0][::3], 8_000), Sample("b", "?! ...", 0, *SPEECH)]
    narrow, wordless = checked(score_system("x", samples, reference, judges=JUDGES), reference).samples
    assert narrow["speaker_similarity"] is not None
    assert "8000 Hz" in narrow["notes"][0]
    assert wordless["speaker_similarity"] > 0.8
    for key in ("syllables_per_second", "seconds_per_syllable", "word_error_rate"):
        assert wordless[key] is None
        assert "no" in wordless["reasons"][key]


def test_a_reference_under_three_seconds_says_what_it_cannot_tell() -> None:
    wave, rate = SPEECH
    short = Reference.from_recordings(
        "short", [Sample("a", None, 0, wave[:rate], rate), Sample("b", None, 0, wave[-rate:], rate)]
    )
    assert short.summary["speaker_similarity_pooled"] is None
    assert "3 s" in short.reasons["speaker_similarity_pooled"]
    json.dumps(short.to_json(), allow_nan=False)
    with pytest.raises(CsmError, match="no recording with a usable voice"):
        Reference.from_recordings("tiny", [Sample("a", None, 0, wave[: rate // 5], rate)])


@pytest.mark.parametrize("sound", [None, "silence", "one sample", "nan", "stereo"])
def test_the_command_says_a_sentence_or_reasons(sound: str | None, tmp_path: Path) -> None:
    """As the reference: a sentence and exit code 1. As a sample: reasons, exit code 0, and JSON without NaN."""
    (tmp_path / "odd").mkdir()
    (tmp_path / "good").mkdir()
    if sound:
        wave, rate = SOUNDS[sound]
        soundfile.write(tmp_path / "odd" / "a.wav", wave.T, rate, subtype="FLOAT")
    else:
        (tmp_path / "odd" / "a.txt").write_text("no sound")
    soundfile.write(tmp_path / "good" / "a.wav", *SPEECH)
    flags = ["--asr-model", "none", "--no-mos", "--db", str(tmp_path / "none.json"), "--json", "-"]
    for target, reference in (("good", "odd"), ("odd", "good")):
        words = ["evaluate", str(tmp_path / target), "--reference", str(tmp_path / reference), *flags]
        done = CliRunner().invoke(csm, words)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        if done.exit_code == 0:
            json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
            assert sound in ("silence", "one sample", "stereo")
        else:
            assert done.exit_code == 1
            assert "error:" in done.stderr.lower()
    if sound == "stereo":  # mixed to one channel on the way in
        assert done.exit_code == 0


FLOATS = st.floats(-1, 1, width=32) | st.sampled_from([float("nan"), float("inf")])
WAVES = arrays(np.float32, st.integers(0, 4000), elements=FLOATS) | st.builds(
    lambda seed, length, level: (level * np.random.default_rng(seed).normal(size=length)).astype(np.float32),
    st.integers(0, 2**32), st.integers(0, 40_000), st.floats(0, 2),
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    WAVES, st.sampled_from([0, 4000, 8000, 24_000]), st.none() | st.text(max_size=20) | st.just(TEXT), st.integers(1, 3)
)
@example(SPEECH[0], SPEECH[1], TEXT, 2)
def test_no_score_is_ever_nan(reference: Reference, wave: np.ndarray, rate: int, text: str | None, count: int) -> None:
    samples = [Sample(str(seed), text, seed, wave, rate, "end") for seed in range(count)]
    checked(score_system("x", samples, reference, judges=JUDGES), reference)
