"""README and docs against the project: links lead somewhere, commands are understood, imports are declared."""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from csm.cli.finetune import main as finetune_main
from csm.cli.main import main as csm_main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"csm": csm_main, "csm-finetune": finetune_main}


def links() -> Iterator[tuple[str, Path]]:
    """Every relative link of README and docs, and the file it means."""
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not re.match(r"[a-z]+:|#", link):
                yield f"{page.name}: {link}", page.parent / link.split("#")[0]


def test_every_relative_link_leads_somewhere() -> None:
    found = dict(links())
    assert len(found) >= 5
    assert [name for name, file in found.items() if not file.exists()] == []


def commands() -> Iterator[str]:
    """Every command of ours in a fenced bash block."""
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.split(" ")[0] in PROGRAMS:
                    yield " ".join(line.split())


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_every_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by the very command line, which then does nothing."""
    ran: list[str] = []
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: ran.append(context.command_path))
    program, *words = shlex.split(line, comments=True)
    done = CliRunner().invoke(PROGRAMS[program], words, prog_name=program)
    assert done.exit_code == 0, done.stderr
    assert ran, "it came as far as running"


def test_a_command_that_is_not_understood_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: None)
    for words in (["generate", "--text", "a", "--output", "b.wav", "--lost"], ["voice", "lost"], ["generate"]):
        assert CliRunner().invoke(csm_main, words).exit_code == 2


DISTRIBUTIONS = {"yaml": "pyyaml", "parselmouth": "praat-parselmouth"}  # where module and package differ in name
UNDECLARED = {"distillmos"}  # wants torchaudio, which has no CPU build everywhere: installed without dependencies


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(
            line
            for extra in ("logs", "plots", "align", "asr", "denoise", "formats", "parquet", "hf")
            for line in project["optional-dependencies"][extra]
        ),
    ]
    declared = {re.split(r"[<>=]", line)[0].lower().replace("-", "_") for line in lines}
    imported = set()
    for path in (path for top in ("csm", "profiles", "evaluation") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            imported |= {name.split(".")[0] for name in names}
    foreign = imported - set(sys.stdlib_module_names) - {"csm", "profiles", "evaluation"} - UNDECLARED
    needed = {DISTRIBUTIONS.get(name, name).lower().replace("-", "_") for name in foreign}
    assert needed >= {"huggingface_hub", "torch", "click"}
    assert needed - declared == set()
