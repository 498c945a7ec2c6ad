"""The wheel: built from the repository, installed outside it, it speaks offline with the model that it brings."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import soundfile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SHIPPED = ("csm", "profiles", "evaluation")
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "recommended.json"}


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that git knows or would add, so that nothing lies in the repository afterwards."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(ROOT / name, source / name)
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", out)
    (found,) = out.glob("*.whl")
    return found


def test_it_holds_the_packages_and_csm_tiny_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        notices = {Path(name).name for name in archive.namelist() if ".dist-info/" in name}
    assert {name.split("/")[0] for name in names} == set(SHIPPED)
    source = {p.relative_to(ROOT).as_posix() for top in SHIPPED for p in (ROOT / top).rglob("*.py")}
    assert source <= names
    assets = {p.relative_to(ROOT).as_posix() for p in (ROOT / "evaluation" / "assets").iterdir()}
    assert "evaluation/assets/page.css" in assets
    assert assets <= names
    model = {Path(name).name for name in names if name.startswith("csm/assets/csm-tiny/")}
    assert model >= MODEL_FILES
    assert wheel.stat().st_size < 40e6
    assert {"LICENSE", "NOTICE", "entry_points.txt"} <= notices


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with the wheel alone, and an environment that knows this folder, then this interpreter's dependencies."""
    place = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", place, wheel)
    known = {"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"}
    kept = {name: value for name, value in os.environ.items() if name in known}
    return place, {**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(place)}


def run(installed: tuple[Path, dict[str, str]], cwd: Path, program: str, *words: object) -> str:
    """A console script of the wheel, in a folder elsewhere."""
    place, environment = installed
    command = [sys.executable, place / "bin" / program, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_it_is_the_installed_one_that_runs(installed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    place, environment = installed
    code = "import csm, profiles, evaluation; print(*(m.__path__[0] for m in (csm, profiles, evaluation)), sep='\\n')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert [Path(line) for line in done.stdout.splitlines()] == [place / name for name in SHIPPED]
    assert Path(run(installed, tmp_path, "csm", "model", "path", "csm-tiny").strip()) == place / "csm/assets/csm-tiny"
    assert not Path(sysconfig.get_path("purelib")).is_relative_to(place)


def test_it_speaks_offline(installed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    out = tmp_path / "hello.wav"
    answer = run(installed, tmp_path, "csm", "generate", "--text", "hello there.", "--output", out, "--threads", 1)
    assert answer == f"{out}\n"
    assert soundfile.info(out).duration > 0.3
    assert [path.name for path in tmp_path.iterdir()] == ["hello.wav"]


def test_it_plans_a_fine_tune(installed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "csm-finetune", "voice-adapt", "--output-dir", "run", "--dry-run", "--threads", 1)
    assert "csm-tiny/recommended.json" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(900)
def test_an_empty_environment_is_enough(wheel: Path, tmp_path: Path) -> None:
    """A new venv, the torch of this one, the wheel and what it declares: nothing more is needed to speak."""
    import torch

    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    for wanted in (f"torch=={torch.__version__.split('+')[0]}", str(wheel)):
        command = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "csm", "generate", "--text", "hello there.", "--output", "hello.wav"],
        cwd=tmp_path / "here", env={**kept, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert soundfile.info(tmp_path / "here" / "hello.wav").duration > 0.3
