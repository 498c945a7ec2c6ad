"""Where answers go: links are followed, and what could not be written is refused before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from conftest import spoken

from csm.cli.main import main
from csm.cli.target import writable
from csm.errors import CsmError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def csm(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def generate(*words: object) -> Result:
    return csm("generate", "--text", "hello.", "--threads", 1, "--max-audio-length-ms", 400, *words)


def evaluate(*words: object) -> Result:
    return csm("evaluate", "sounds", "--reference", "sounds", *words)


@pytest.fixture
def sounds(here: Path) -> Path:
    (here / "sounds").mkdir()
    soundfile.write(here / "sounds" / "a.wav", spoken(1.0, 0), 24_000)
    return here / "sounds"


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any work is a failure of the test."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("csm.generator.load_generator", fail)
    monkeypatch.setattr("evaluation.score.Reference.from_folder", fail)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_links_are_followed_and_stay(here: Path, sounds: Path) -> None:
    """To a file that is there and to one that is not yet; the answer is the name that was given."""
    (here / "there").mkdir()
    (here / "there" / "sound.wav").write_text("old")
    for name in ("sound.wav", "codes.npy", "scores.json", "report.md"):
        (here / name).symlink_to(here / "there" / name)
    assert generate("--output", "sound.wav", "--codes", "codes.npy").stdout == "sound.wav\n"
    evaluated = evaluate("--json", "scores.json", "--markdown", "report.md")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert listing(here / "there") == {"sound.wav", "codes.npy", "scores.json", "report.md"}
    assert all((here / name).is_symlink() for name in listing(here / "there"))
    assert soundfile.info(here / "sound.wav").frames == 1920 * np.load("codes.npy").shape[1]


def places(here: Path) -> dict[str, str]:
    """What could not be written, and why."""
    (here / "file").write_text("mine")
    (here / "folder").mkdir()
    (here / "link").symlink_to("/dev/full")
    (here / "loop").symlink_to("loop")
    os.mkfifo(here / "pipe")
    return {
        "/dev/full": "not a regular file", "link": "not a regular file", "pipe": "not a regular file",
        "loop": "not a regular file", "folder": "is a folder", "file/a/b": "is a file",
    }  # fmt: skip


def test_what_cannot_be_written_is_refused_before_the_work(here: Path, sounds: Path, no_work: None) -> None:
    refusals = places(here)
    before = listing(here)
    for place, why in refusals.items():
        for done in (
            generate("--output", "out.wav", "--codes", place), generate("--output", place),
            evaluate("--json", place), evaluate("--markdown", place),
        ):  # fmt: skip
            assert (done.exit_code, done.stdout) == (1, ""), (place, done.exception)
            (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert sentence.startswith(f"error: {place} ")
            assert why in sentence
    assert listing(here) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(here: Path) -> None:
    (here / "locked").mkdir(mode=0o500)
    for name in ("locked/a.json", "locked/deep/a.json"):
        with pytest.raises(CsmError, match=f"^{name} cannot be written: you have no right"):
            writable(Path(name))


def test_no_right_to_write_is_asked_of_the_nearest_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, _: asked.append(Path(path)))
    for name in ("a.json", "deep/er/a.json"):
        with pytest.raises(CsmError, match=f"^{name} cannot be written: you have no right"):
            writable(Path(name))
    assert asked == [here.resolve()] * 2


def test_a_place_is_the_file_behind_its_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert writable(Path("~/deep/a.json")) == here.resolve() / "deep" / "a.json"
    assert listing(here) == set(), "nothing is made by looking"


def test_one_file_for_two_answers_is_a_usage_error(here: Path, sounds: Path, no_work: None) -> None:
    (here / "link.wav").symlink_to("out.wav")
    pairs = [
        generate("--output", "out.wav", "--codes", "out.wav"), generate("--output", "link.wav", "--codes", "./out.wav"),
        evaluate("--json", "a", "--markdown", "./a"), evaluate("--json", "-", "--markdown", "-"),
    ]  # fmt: skip
    for done in pairs:
        assert (done.exit_code, done.stdout) == (2, "")
        assert "name the same" in done.stderr


def test_a_link_to_another_suffix_is_refused(here: Path, no_work: None) -> None:
    (here / "out.wav").symlink_to("sound.raw")
    done = generate("--output", "out.wav")
    assert done.exit_code == 1
    assert "sound.raw has a suffix" in done.stderr
