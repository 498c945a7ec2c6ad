"""examples/demo.py and what sets it up: what it lays out, what it shows, how Ctrl-C ends it; `make demo` installs no more."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The demo as a module, its voice and its folder below tmp_path."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, place in {"ROOT": tmp_path, "VOICE": tmp_path / "voice", "DEMO": tmp_path / "runs" / "demo"}.items():
        monkeypatch.setattr(module, name, place)
    return module


def write_voice(folder: Path, names: list[str], content: str = "") -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for kind, suffix in (("audio", "flac"), ("transcripts", "txt")):
        (folder / kind).mkdir(parents=True)
        for name in names:
            (folder / kind / f"{name}.{suffix}").write_text(f"{kind} of {name} {content}")


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_laid_out_clips_are_always_the_voices(demo: ModuleType) -> None:
    """After any change of the voice: what was laid out together is the voice, and the last eight are held out."""
    ten = [f"{n:03d}" for n in range(10)]
    for names, content in ((ten, ""), (ten, "again"), ([*ten[:4], *ten[5:], "100"], "again"), (ten[:9], "again")):
        write_voice(demo.VOICE, names, content)
        training, held_out = demo.lay_out()
        assert contents(training) | contents(held_out) == contents(demo.VOICE)
        assert {path.stem for path in held_out.rglob("*.flac")} == set(names[-8:])
        assert not contents(training).keys() & contents(held_out).keys()


def test_clips_that_are_there_are_left(demo: ModuleType) -> None:
    write_voice(demo.VOICE, [f"{n:03d}" for n in range(10)])
    folders = demo.lay_out()
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}
    demo.lay_out()
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")} == before


def system(samples: Path, name: str, kind: str, texts: list[str], seeds: int = 2) -> dict[str, Any]:
    """A system of scores.json whose samples lie in a folder; a text in brackets was not spoken."""
    rows = []
    for number, text in enumerate(texts):
        for seed in range(seeds):
            path = samples / name / f"{number:02d}-s{seed}-abc.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not text.startswith("("):
                path.write_text(f"{name} {text} {seed}")
            reasons = {} if path.exists() else {"speaker_similarity": "nothing"}
            rows.append({"name": f"{name}/{path.name}", "text": text.strip("()"), "seed": seed, "reasons": reasons})
    return {"name": name, "kind": kind, "samples": rows, "summary": {}, "reasons": {}}


def test_base_and_best_lie_side_by_side(demo: ModuleType, tmp_path: Path) -> None:
    """Both say the same text; a text that one of them did not say is passed over; what lay there before is gone."""
    from evaluation.score import Scores

    samples, out = tmp_path / "samples", tmp_path / "report" / "samples"
    systems = [
        system(samples, "base", "base", ["a", "b", "c", "d", "e"]),
        system(samples, "step-000001", "checkpoint", ["a", "b", "c", "d", "e"]),
        system(samples, "step-000002", "checkpoint", ["a", "(b)", "c", "d", "e"]),
    ]
    document = {"schema_version": 1, "systems": systems, "reference": {}, "comparisons": [], "best_reason": ""}
    out.mkdir(parents=True)
    (out / "04-base.wav").write_text("of an earlier demo")
    texts = demo.lay_side_by_side(Scores.from_json({**document, "best": "step-000002"}), samples, out)
    assert contents(out) == {
        "01-base.wav": "base a 0", "01-voice.wav": "step-000002 a 0", "02-base.wav": "base c 0",
        "02-voice.wav": "step-000002 c 0", "03-base.wav": "base d 0", "03-voice.wav": "step-000002 d 0",
    }  # fmt: skip
    assert {path.name: text for path, text in texts.items()} == {
        name: said.split()[1] for name, said in contents(out).items()
    }
    assert demo.lay_side_by_side(Scores.from_json({**document, "best": None}), samples, out) == {}
    assert contents(out) == {}


CHILD = """
import signal, sys, time, pathlib
def save(*_):
    time.sleep(0.5)
    pathlib.Path("saved").write_text("whole")
    sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path("ready").write_text("")
time.sleep(30)
"""
PARENT = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("demo", {str(ROOT / "examples" / "demo.py")!r})
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
demo.ROOT = {{here!r}}
demo.demo = lambda: demo.finish([sys.executable, "-c", {CHILD!r}])
sys.exit(demo.main())
"""


def test_ctrl_c_waits_for_the_command_and_exits_130(tmp_path: Path) -> None:
    """As a terminal does it: every process of the group gets SIGINT."""
    code = PARENT.format(here=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 20
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, talk = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (tmp_path / "saved").read_text() == "whole", "the command ended by itself, and before the demo did"
    assert [line[:12] for line in talk.splitlines() if line] == ["Interrupted:"]


def test_the_first_command_that_fails_ends_the_demo(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voice(demo.VOICE, [f"{n:03d}" for n in range(10)])
    asked = []

    def popen(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        code = 3 if "csm.cli.main" in command else 0
        return SimpleNamespace(poll=lambda: code, returncode=code)

    monkeypatch.setattr(demo.subprocess, "Popen", popen)
    assert demo.main() == 3
    assert [command[2] for command in asked] == ["csm.cli.finetune", "csm.cli.main"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("goal", "extras"), [("demo", False), ("test", True), ("lint", True), ("voice", True)])
def test_make_demo_installs_the_package_alone(tmp_path: Path, goal: str, extras: bool) -> None:
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "pyproject.toml").write_text("")
    shown = subprocess.run(["make", "-n", goal], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "pip install --quiet -e .\n" in shown
    assert ("[dev,teacher,align,asr,denoise]" in shown) == extras


def test_ci_is_told_apart() -> None:
    """`.ci/run` says CI=true to what it runs, and keeps what the environment says."""
    script = (ROOT / ".ci" / "run").read_text()
    line = next(line for line in script.splitlines() if line.startswith("export CI="))
    for given, told in ((None, "true"), ("1", "1")):
        environment = {key: value for key, value in os.environ.items() if key != "CI"} | (
            {"CI": given} if given else {}
        )
        done = subprocess.run(["bash", "-c", f"{line}; echo $CI"], env=environment, capture_output=True, text=True)
        assert done.stdout == f"{told}\n"
    assert script.index(line) < script.index("make check")
