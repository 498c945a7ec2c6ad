"""The house's rules of who imports whom, read from the source; and that help and lists cost nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "errors", "processes", "json_file", "whole_file", "config", "torch_file", "weights", "layouts", "adapters", "recipe",
    "presets", "segment", "containers", "loudness", "audio", "threads", "tokenizer", "flavours", "whole_folder", "tiny_codec",
    "codec",
    "model_folder", "frames", "data", "backend", "torch", "training", "generator", "samples", "cli",
)  # fmt: skip
"""The rooms of csm from left to right: each imports only itself and what stands to its left."""

BORDER = {"errors", "segment", "audio"}  # all that profiles and evaluation know of csm
LATE = {("backend", "torch"), ("training", "generator")}  # room, room to its right that its functions may import

TOP_LEVEL = {  # third party: the places that import it when they are imported
    "torch": ("csm/torch/", "csm/codec.py", "csm/tiny_codec.py"),
    "transformers": (),
    "mlx": (),
    "parselmouth": (),
    "resemblyzer": (),
    "matplotlib": (),
    "faster_whisper": (),
    "pocketsphinx": (),
    "noisereduce": (),
    "tensorboard": (),
    "tinydb": ("profiles/",),
    "click": ("csm/cli/",),
    "rich": ("csm/cli/",),
}
IN_FUNCTIONS = {  # and those whose functions import it
    "torch": (
        "csm/backend.py",
        "csm/generator.py",
        "csm/torch_file.py",
        "csm/training/events.py",
        "evaluation/naturalness.py",
        "evaluation/speaker.py",
    ),
    "matplotlib": ("csm/training/curves.py",),
    "transformers": ("csm/codec.py", "csm/tiny_codec.py", "evaluation/words.py"),
    "parselmouth": ("evaluation/",),
    "faster_whisper": ("evaluation/",),
    "pocketsphinx": ("evaluation/",),
    "noisereduce": ("csm/data/denoise.py",),
}
DRAWERS = {"utils", "util", "helpers", "helper", "common", "base", "misc", "manager", "managers", "tools"}


@dataclass(frozen=True)
class Import:
    """One imported module: where, what, and whether it happens on import, in a function, or for types alone."""

    path: str
    line: int
    module: str
    when: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module} ({self.when})"


def imports_of(path: str, source: str) -> Iterator[Import]:
    """Every import of a file; relative ones made absolute, `from package import module` as package.module."""
    package = path.removesuffix(".py").removesuffix("/__init__").split("/")
    yield from _walk(
        ast.parse(source), path, package[:-1] if not path.endswith("__init__.py") else package, "on import"
    )


def _walk(node: ast.AST, path: str, package: list[str], when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(path, child.lineno, name.name, when) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            stem = package[: len(package) - child.level + 1] if child.level else []
            module = ".".join([*stem, *([child.module] if child.module else [])])
            yield from (Import(path, child.lineno, f"{module}.{name.name}", when) for name in child.names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _walk(child, path, package, "in a function" if when == "on import" else when)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _walk(ast.Module([part], []), path, package, "for types")
            for part in child.orelse:
                yield from _walk(ast.Module([part], []), path, package, when)
        else:
            yield from _walk(child, path, package, when)


def project_files() -> list[Path]:
    return [file for top in ("csm", "profiles", "evaluation") for file in sorted((ROOT / top).rglob("*.py"))]


def project_imports() -> list[Import]:
    files = {file.relative_to(ROOT).as_posix(): file.read_text() for file in project_files()}
    return [found for path, source in files.items() for found in imports_of(path, source)]


def room(path_or_module: str) -> str:
    """`csm/data/row.py` and `csm.data.row.Row` are both of the room data; csm itself is none."""
    parts = path_or_module.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else ""


def breach(found: Import) -> str | None:
    """What an import breaks, or None."""
    top, target = found.path.split("/")[0], found.module.split(".")[0]
    if found.when == "for types":
        return None
    if target in TOP_LEVEL:
        places = TOP_LEVEL[target] + (IN_FUNCTIONS.get(target, ()) if found.when == "in a function" else ())
        return None if found.path.startswith(places) else f"{found}: {target} is not for this place"
    if target == "csm":
        return _breach_of_csm(found, top)
    if target in ("profiles", "evaluation") and target != top and not found.path.startswith("csm/cli/"):
        return f"{found}: only csm.cli brings {target} together with the rest"
    return None


def _breach_of_csm(found: Import, top: str) -> str | None:
    there = room(found.module)
    if top != "csm":
        return None if there in BORDER else f"{found}: {top} knows of csm only {', '.join(sorted(BORDER))}"
    here = room(found.path)
    if here == there or ORDER.index(there) < ORDER.index(here):
        return None
    late = found.when == "in a function" and (here, there) in LATE
    return None if late else f"{found}: {there} stands to the right of {here}"


def test_every_room_of_csm_has_its_place() -> None:
    """A new module must be put into ORDER, and nothing in ORDER is imaginary."""
    rooms = {room(path.relative_to(ROOT).as_posix()) for path in project_files() if path.is_relative_to(ROOT / "csm")}
    assert rooms - {""} == set(ORDER)


def test_imports_go_from_right_to_left_only() -> None:
    found = project_imports()
    assert len(found) > 300, "the walk sees the project"
    assert [problem for one in found if (problem := breach(one))] == []


@pytest.mark.parametrize(
    ("path", "source", "broken"),
    [
        ("csm/data/row.py", "from csm.training.loop import train", True),
        ("csm/data/row.py", "def f():\n    import csm.generator", True),
        ("csm/data/row.py", "from ..errors import CsmError", False),
        ("csm/data/row.py", "from ..cli import main", True),
        ("csm/data/row.py", "from csm import cli", True),
        ("csm/backend.py", "from csm.torch.device import choose", True),
        ("csm/backend.py", "def f():\n    from csm.torch.device import choose", False),
        ("csm/generator.py", "import torch", True),
        ("csm/generator.py", "if TYPE_CHECKING:\n    import torch", False),
        ("csm/generator.py", "def f():\n    import torch", False),
        ("csm/samples.py", "def f():\n    import torch.nn as nn", True),
        ("csm/training/loop.py", "try:\n    import click\nexcept ImportError:\n    pass", True),
        ("csm/training/loop.py", "from evaluation.score import Scores", True),
        ("csm/cli/evaluate.py", "from evaluation.score import Scores", False),
        ("profiles/voice.py", "from csm.recipe import Recipe", True),
        ("profiles/voice.py", "from evaluation.score import Scores", True),
        ("evaluation/pitch.py", "import parselmouth", True),
        ("evaluation/pitch.py", "def f():\n    import parselmouth", False),
    ],
)
def test_the_walk_sees_what_it_should(path: str, source: str, broken: bool) -> None:
    assert [bool(breach(one)) for one in imports_of(path, source)] == [broken]


def test_there_are_no_drawers() -> None:
    tops = ("csm", "profiles", "evaluation", "tests", "examples", "benchmarks")
    found = [p.relative_to(ROOT) for top in tops for p in (ROOT / top).rglob("*") if "__pycache__" not in p.parts]
    assert found
    assert [str(path) for path in found if set(path.stem.lower().split("_")) & DRAWERS] == []


FREE = {
    "csm": ["csm.cli.main", "--help"],
    "csm voice list": ["csm.cli.main", "voice", "--db", "DB", "list"],
    "csm-finetune": ["csm.cli.finetune", "--help"],
    "csm-finetune check": ["csm.cli.finetune", "check", "--help"],
    "csm-finetune voice-adapt": ["csm.cli.finetune", "voice-adapt", "--help"],
    "csm-finetune lora": ["csm.cli.finetune", "lora", "--help"],
    "finetune_lora": ["csm.cli.finetune_lora", "--help"],
}


@pytest.fixture(params=FREE, ids=list(FREE))
def free_command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    return [str(tmp_path / "voices.json") if word == "DB" else word for word in FREE[request.param]]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_help_and_lists_import_nothing_heavy(free_command: list[str]) -> None:
    module, *arguments = free_command
    watch = (
        "import atexit, json, runpy, sys\n"
        "atexit.register(lambda: print('\\n' + json.dumps(sorted({m.split('.')[0] for m in sys.modules}))))\n"
        f"sys.argv = ['csm', *{arguments!r}]\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", watch], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"csm", "click"} <= imported
    assert not imported & {"torch", "mlx", "transformers", "parselmouth", "scipy", "numpy", "soundfile"}


def test_help_and_lists_answer_in_half_a_second(free_command: list[str]) -> None:
    best = 99.0
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", *free_command], env=environment(), capture_output=True, check=True)
        best = min(best, time.perf_counter() - start)
    assert best < 0.5
