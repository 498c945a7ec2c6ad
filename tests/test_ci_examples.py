"""The pipelines in examples/ci: their commands, as the files have them, on a run of csm-tiny; and what a broken rule does."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner

from csm.cli.finetune import main as finetune

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CI = ROOT / "examples" / "ci"
WRITTEN = ("scores.json", "noise.json", "report.md", "report.html", "checkpoints.xml", "gate.xml")


def github() -> tuple[dict[str, str], list[str]]:
    """Variables and the commands of the steps, without the one that installs."""
    document = yaml.safe_load((CI / "github.yml").read_text())
    steps = document["jobs"]["evaluate"]["steps"]
    return document["env"], [step["run"] for step in steps if "run" in step and step["name"] != "Install"]


def gitlab() -> tuple[dict[str, str], list[str]]:
    document = yaml.safe_load((CI / "gitlab.yml").read_text())
    return document["variables"], document["evaluate"]["script"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a pipeline finds it: a run, recordings and rules under the names that the files have; a `csm` to call."""
    place = tmp_path_factory.mktemp("pipeline")
    voice, held = ROOT / "examples" / "voice", place / "held_out"
    words = ["voice-adapt", "--data-path", voice, "--speaker-id", 5, "--output-dir", place / "runs" / "my_voice"]
    steps = ["--max-steps", 1, "--cache-dir", place / "cache", "--threads", 1, "--log-to", "none"]
    done = CliRunner().invoke(finetune, [str(word) for word in (*words, *steps)])
    assert done.exit_code == 0, done.stderr
    for name in ("001", "002", "003", "004", "005"):
        for kind, suffix in (("audio", "flac"), ("transcripts", "txt")):
            (held / kind).mkdir(parents=True, exist_ok=True)
            (held / kind / f"{name}.{suffix}").write_bytes((voice / kind / f"{name}.{suffix}").read_bytes())
    (place / "bin").mkdir()
    script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m csm.cli.main "$@"\n'
    (place / "bin" / "csm").write_text(script)
    (place / "bin" / "csm").chmod(0o755)
    return place


def go(place: Path, variables: dict[str, str], commands: list[str], **changes: str) -> int:
    """Run the commands one after the other as a pipeline's shell does; the exit code of the first that fails."""
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    known = {
        **os.environ,
        **{k: str(v) for k, v in variables.items()},
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        **changes,
    }
    known.pop("GITHUB_STEP_SUMMARY", None)
    for command in commands:
        done = subprocess.run(["bash", "-e", "-c", command], cwd=place, env=known, capture_output=True, text=True)
        if done.returncode:
            assert "Traceback" not in done.stderr
            return done.returncode
    return 0


@pytest.mark.timeout(900)
def test_the_commands_of_both_pipelines_run_and_a_broken_rule_fails_them(place: Path) -> None:
    rules = place / "rules.toml"
    rules.write_text(
        '[[rule]]\nmetric = "speaker_similarity"\nat_least = 0.05\n\n[[rule]]\nmetric = "speaker_similarity"\ncatch = 0.9\n'
    )
    less = {"SAMPLES": "3", "RULES": str(rules)}
    variables, commands = gitlab()
    assert go(place, variables, commands[:-1], **less) == 0
    (place / "baseline").mkdir()
    (place / "baseline" / "scores.json").write_bytes((place / "scores.json").read_bytes())
    assert go(place, variables, commands[-1:], **less) == 0
    outcomes: dict[str, Any] = {name: (place / name).stat().st_size > 0 for name in WRITTEN}
    assert all(outcomes.values())
    for name in ("checkpoints.xml", "gate.xml"):
        suite = ElementTree.parse(place / name).getroot()
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase")) > 0

    variables, commands = github()
    for name in WRITTEN:
        (place / name).unlink()
    assert go(place, variables, commands, **less) == 0
    assert all((place / name).stat().st_size > 0 for name in WRITTEN)

    rules.write_text('[[rule]]\nmetric = "speaker_similarity"\nat_least = 0.999\nband = 0.0\n')
    for variables, commands in (github(), gitlab()):
        assert go(place, variables, commands[-1:], **less) == 3
    rules.write_text('[[rule]]\nmetric = "speaker_similarity"\nat_least = 0.999\nband = 2.0\n')
    assert go(place, *github(), **less) == 0  # undecided is a warning there, and 4 for GitLab, which knows the code
    assert go(place, *gitlab(), **less) == 4


def test_the_files_keep_what_the_commands_write_and_their_rules_are_read() -> None:
    from evaluation.gate import read_rules

    assert len(read_rules(CI / "gate.toml")) >= 4
    kept = yaml.safe_load((CI / "github.yml").read_text())["jobs"]["evaluate"]["steps"][-1]["with"]["path"].split()
    assert sorted(kept) == sorted(WRITTEN)
    artifacts = yaml.safe_load((CI / "gitlab.yml").read_text())["evaluate"]["artifacts"]
    assert sorted([*artifacts["paths"], *artifacts["reports"]["junit"]]) == sorted(WRITTEN)
    used = [json.dumps(part) for part in (github()[1], gitlab()[1])]
    assert all(name in part for part in used for name in WRITTEN)
