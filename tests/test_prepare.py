"""prepare with ears that know the truth: what is kept, what is dropped and why, what survives a kill, what comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from conftest import spoken

from csm.audio import read_audio
from csm.cli.finetune import main
from csm.data.doubt import sound_doubt, text_doubt
from csm.data.journal import read_clips
from csm.data.manifest import read_data
from csm.data.pauses import Span, find_spans
from csm.data.prepare import Ears, prepare
from csm.data.review import apply_corrections, write_page
from csm.errors import CsmError

RATE, STEP = 16_000, 0.02
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Hears:
    text: str = "the quick brown fox jumps over"
    log_probability: float = -0.1
    no_speech: float = 0.02
    compression: float = 1.1


def speech(wave: np.ndarray, rate: int) -> np.ndarray:
    steps = wave[: len(wave) // int(STEP * rate) * int(STEP * rate)].reshape(-1, int(STEP * rate))
    return (np.sqrt(np.mean(steps**2, axis=1)) > 0.02).astype(np.float32)


def ears(hear: object = lambda wave, rate: Hears()) -> Ears:
    return Ears(speech, STEP, hear, None, "truth")  # type: ignore[arg-type]


def talk(lengths: list[float], gap: float = 1.2, seed: int = 0) -> np.ndarray:
    """Speech-like sounds of these lengths, in 0.2 s syllables, with pauses between them."""
    parts = []
    for number, seconds in enumerate(lengths):
        wave = spoken(seconds, seed + number, RATE)
        wave *= (np.arange(len(wave)) % (RATE // 4) > RATE // 40).astype(np.float32)  # dips between syllables
        parts += [wave, np.zeros(int(gap * RATE), np.float32)]
    return np.concatenate(parts)


def record(path: Path, wave: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, RATE)
    return path


def probabilities(spans: list[tuple[float, float]], seconds: float) -> np.ndarray:
    found = np.zeros(round(seconds / STEP), np.float32)
    for start, end in spans:
        found[round(start / STEP) : round(end / STEP)] = 0.9
    return found


CUTS = {
    "far apart": ([(1, 4), (6, 9)], [(1, 4), (6, 9)]),
    "a breath": ([(1, 4), (4.4, 7)], [(1, 7)]),
    "too short joins the nearer": ([(1, 4), (5, 6), (7.4, 10)], [(1, 6), (7.4, 10)]),
    "too short and far stays": ([(1, 4), (7, 8)], [(1, 4), (7, 8)]),
    "too long is cut in its longest pauses": (
        [(0.5, 6), (6.3, 8), (8.15, 13), (13.4, 20)],
        [(0.5, 8), (8.15, 13), (13.4, 20)],
    ),
    "a click is no speech": ([(1, 4), (9, 9.04)], [(1, 4)]),
    "nobody": ([], []),
}


@pytest.mark.parametrize("case", CUTS)
def test_recordings_are_cut_in_pauses(case: str) -> None:
    sounds, expected = CUTS[case]
    found = find_spans(probabilities(sounds, 21), STEP, 21)
    if case == "too long is cut in its longest pauses":
        assert all(span.seconds <= 15 for span in found)
        assert {round(before.end, 2) for before in found[:-1]} <= {6.15, 13.2}
        return
    assert [(span.start, span.end) for span in found] == [
        (pytest.approx(start - 0.25), pytest.approx(end + 0.25)) for start, end in expected
    ]


def test_clips_are_written_as_layout_three(tmp_path: Path) -> None:
    lengths = [3.0, 4.5, 1.2, 2.5]
    path = record(tmp_path / "talk.wav", talk(lengths, gap=2.0))
    done = prepare([path], tmp_path / "out", ears())
    assert [clip.reason for clip in done.clips] == ["", "", "too short", ""]
    assert done.describe().endswith("1 dropped (1 too short)")
    conversations, faults = read_data([tmp_path / "out"], speaker=4)
    assert not faults
    rows = [row for conversation in conversations for row in conversation]
    assert [row.name for row in rows] == ["talk/0001", "talk/0002", "talk/0004"]
    assert {row.text for row in rows} == {Hears().text}
    whole, _ = read_audio(path)
    for row, clip in zip(rows, done.kept, strict=True):
        wave, rate = read_audio(row.audio)
        first = round(clip.start * RATE)
        assert rate == RATE
        assert np.abs(wave - whole[first : first + len(wave)]).max() < 1e-4
        assert len(wave) / RATE == pytest.approx(clip.seconds, abs=0.001)


SOUND_DOUBTS = {
    "clean": (lambda wave: wave, None),
    "hum under it": (lambda wave: wave + 0.1 * np.sin(0.3 * np.arange(len(wave))), "music or noise under the speech"),
    "silent": (lambda wave: 0 * wave, "faulty sound"),
}


@pytest.mark.parametrize("case", SOUND_DOUBTS)
def test_doubtful_sounds(case: str) -> None:
    change, reason = SOUND_DOUBTS[case]
    wave = talk([3.0], 0.3).astype(np.float32)
    assert sound_doubt(Span(0, len(wave) / RATE, 0.9), change(wave).astype(np.float32), RATE, None) == reason


def test_two_speakers_in_one_clip_are_told_by_their_halves() -> None:
    wave, span = talk([5.0], 0.3), Span(0, 5.3, 0.9)
    asked = []

    def likeness(one: np.ndarray, other: np.ndarray, rate: int) -> float:
        asked.append((len(one), len(other)))
        return 0.4

    assert sound_doubt(span, wave, RATE, likeness) == "several speakers"
    assert asked == [(len(wave) // 2, len(wave) - len(wave) // 2)]
    assert sound_doubt(span, wave, RATE, lambda *_: 0.8) is None
    assert sound_doubt(Span(0, 3, 0.9), wave, RATE, likeness) is None, "halves too short to tell"

    def dumb(one: np.ndarray, other: np.ndarray, rate: int) -> float:
        raise CsmError("a half holds no speech.")

    assert sound_doubt(span, wave, RATE, dumb) is None
    assert sound_doubt(replace(span, speech=0.3), wave, RATE, None) == "little speech"
    assert sound_doubt(Span(0, 20, 0.9), wave, RATE, None) == "too long without a pause"


@pytest.mark.parametrize(
    ("heard", "reason"),
    [
        (Hears(), None),
        (Hears(""), "no words heard"),
        (Hears(no_speech=0.8), "no words heard"),
        (Hears("[Music]"), "a sound, not words"),
        (Hears(log_probability=-0.9), "unsure of the words"),
        (Hears(compression=3.0), "words that repeat"),
        (Hears("ah"), "too many or too few words for the time"),
        (Hears("word " * 40), "too many or too few words for the time"),
    ],
)
def test_doubtful_texts(heard: Hears, reason: str | None) -> None:
    assert text_doubt(heard, heard.text.strip(), 3.0) == reason


def test_a_recording_that_cannot_be_read_is_named_and_the_others_are_used(tmp_path: Path) -> None:
    record(tmp_path / "in" / "a.wav", talk([3.0]))
    (tmp_path / "in" / "deep").mkdir()
    (tmp_path / "in" / "deep" / "b.wav").write_text("no sound")
    done = prepare([tmp_path / "in"], tmp_path / "out", ears())
    assert [clip.name for clip in done.kept] == ["a/0001"]
    assert [fault.file.name for fault in done.faults] == ["b.wav"]
    with pytest.raises(CsmError, match="Nothing in the data can be used"):
        prepare([tmp_path / "in" / "deep"], tmp_path / "none", ears())


@pytest.mark.parametrize("case", ["missing", "no sounds", "same name", "not ours", "other settings", "other recording"])
def test_what_cannot_be_prepared_is_refused(case: str, tmp_path: Path) -> None:
    path, out = record(tmp_path / "a.wav", talk([3.0])), tmp_path / "out"
    given, listener, says = [path], ears(), ""
    if case == "missing":
        given, says = [tmp_path / "b.wav"], "b.wav is not there"
    elif case == "no sounds":
        (tmp_path / "empty").mkdir()
        given, says = [tmp_path / "empty"], "holds no sound files"
    elif case == "same name":
        given, says = [path, record(tmp_path / "deep" / "a.wav", talk([3.0]))], "would both be called a"
    elif case == "not ours":
        out.mkdir()
        (out / "diary.txt").write_text("dear diary")
        says = "is not empty, and was not made by prepare"
    elif case == "other settings":
        prepare([path], out, ears())
        listener, says = replace(ears(), name="another"), "recogniser was truth, now another"
    else:
        prepare([path], out, ears())
        record(path, talk([2.2, 4.0]))
        says = "is not the recording that"
    with pytest.raises(CsmError) as error:
        prepare(given, out, listener)
    assert says in str(error.value)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import csm.data.journal as journal
from test_prepare import Hears, ears
from csm.data.prepare import prepare
heard = [0]
def hear(wave, rate):
    heard[0] += 1
    if heard[0] == {last}:
        with open({journal!r}, "ab") as file:
            file.write(b'{{"name": "talk/00')
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return Hears()
prepare([Path({recording!r})], Path({out!r}), ears(hear))
"""


def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path) -> None:
    path, out = record(tmp_path / "talk.wav", talk([2.5] * 6)), tmp_path / "out"
    script = KILLED.format(
        tests=str(ROOT / "tests"), last=4, journal=str(out / "clips.jsonl"), recording=str(path), out=str(out)
    )
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    assert len(read_clips(out)) == 3
    heard = []
    done = prepare([path], out, ears(lambda wave, rate: heard.append(len(wave)) or Hears()))
    assert len(heard) == 3
    alone = prepare([path], tmp_path / "alone", ears())
    assert done.clips == alone.clips
    for file in (tmp_path / "alone").rglob("*/*.*"):
        assert file.read_bytes() == (out / file.relative_to(tmp_path / "alone")).read_bytes()
    again = prepare([path], out, ears(lambda wave, rate: pytest.fail("heard again")))  # type: ignore[arg-type]
    assert again.clips == done.clips


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    path = record(tmp_path / "talk.wav", talk([3.0, 3.0, 3.0, 1.0], gap=2.0))
    prepare([path], tmp_path / "out", ears())
    return tmp_path / "out"


def corrections(folder: Path, **clips: object) -> Path:
    path = folder.parent / "corrections.json"
    path.write_text(json.dumps({"schema_version": 1, "clips": {f"talk/{name[1:]}": clips[name] for name in clips}}))
    return path


def test_corrections_are_written_back_and_stay(prepared: Path) -> None:
    given = corrections(prepared, _0001={"text": " Caf\u00e9  <b>\u201cyes\u201d</b> "}, _0002={"drop": True})
    assert apply_corrections(given, prepared) == (1, 1)
    rows = [row for conversation in read_data([prepared], speaker=0)[0] for row in conversation]
    assert [(row.name, row.text) for row in rows] == [
        ("talk/0001", "Caf\u00e9 <b>\u201cyes\u201d</b>"),
        ("talk/0003", Hears().text),
    ]
    assert (prepared / "dropped" / "audio" / "talk" / "0002.wav").is_file()
    assert apply_corrections(given, prepared) == (0, 0), "twice changes nothing more"
    again = prepare([prepared.parent / "talk.wav"], prepared, ears())
    assert Counter(clip.reason for clip in again.clips) == {"": 2, "dropped by hand": 1, "too short": 1}
    assert again.kept[0].text == rows[0].text
    page = write_page(prepared).read_text()
    assert "<b>" not in page.split('id="data"')[1].split("</script>")[0], "a text cannot end the script"


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        ({"_0009": {"text": "x"}}, "corrects talk/0009, which"),
        ({"_0001": {"text": "  "}}, "talk/0001 has an empty text"),
        ({"_0001": "x"}, 'neither "text" nor "drop"'),
        ({"_0004": {"text": "x"}}, "which was dropped (too short)"),
    ],
)
def test_faulty_corrections_change_nothing(clips: dict[str, object], says: str, prepared: Path) -> None:
    before = {file: file.read_bytes() for file in prepared.rglob("*.*") if file.is_file()}
    given = corrections(prepared, _0002={"drop": True}, **clips)
    with pytest.raises(CsmError) as error:
        apply_corrections(given, prepared)
    assert says in str(error.value)
    assert before == {file: file.read_bytes() for file in prepared.rglob("*.*") if file.is_file()}


@pytest.mark.parametrize("text", [None, "{", "[]", '{"clips": []}'])
def test_a_file_that_holds_no_corrections_is_refused(text: str | None, prepared: Path) -> None:
    path = prepared.parent / "c.json"
    if text is not None:
        path.write_text(text)
    done = CliRunner().invoke(main, ["prepare", "--apply", str(path), str(prepared)])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")


def test_the_command_applies_and_writes_the_page_anew(prepared: Path) -> None:
    done = CliRunner().invoke(
        main, ["prepare", "--apply", str(corrections(prepared, _0003={"text": "other words"})), str(prepared)]
    )
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{prepared}\n"
    assert "1 texts corrected, 0 clips dropped" in done.stderr
    assert "other words" in (prepared / "review.html").read_text()


@pytest.mark.parametrize(
    "words", [["a.wav"], [], ["--apply", "c.json", "out", "--output", "x"], ["--apply", "c", "a", "b"]]
)
def test_wrong_usage_exits_two(words: list[str]) -> None:
    assert CliRunner().invoke(main, ["prepare", *words]).exit_code == 2
