"""The main job on the embedded model: adapt csm-tiny to the example voice, score it, keep it, hear it.

    python examples/demo.py

Each step is a command that you could type; it is printed before it runs. The last eight clips by file name are held out:
they are the reference, and their texts are what base and checkpoints say. A second run goes on, or says that it is done.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VOICE, DEMO = ROOT / "examples" / "voice", ROOT / "runs" / "demo"
SPEAKER, HELD_OUT, NAME = 5, 8, "Example"


def main() -> int:
    """Run every step; returns the exit code of the first that fails."""
    began = time.monotonic()
    data, reference = lay_out()
    run, report, database = DEMO / "run", DEMO / "report", DEMO / "voices.json"
    steps = [
        ["csm-finetune", "voice-adapt", "--model-path", "csm-tiny", "--speaker-id", str(SPEAKER),
         "--audio-dir", str(data / "audio"), "--transcript-dir", str(data / "transcripts"), "--output-dir", str(run),
         "--save-every", "45"],
        ["csm", "evaluate", str(run), "--reference", str(reference), "--set-best",
         "--json", str(report / "scores.json"), "--markdown", str(report / "report.md")],
    ]  # fmt: skip
    if not registered(database):
        steps.append(["csm", "voice", "--db", str(database), "create", NAME, str(SPEAKER),
                      "The example voice of the demo", "--model-path", str(run)])  # fmt: skip
    steps += [
        ["csm", "voice", "--db", str(database), "sample", NAME, "--seed", "0",
         "--text", "thank you for calling, how can i help you today?", "--output", str(report / "voice.wav")],
        ["csm", "generate", "--speaker", str(SPEAKER), "--seed", "0",
         "--text", "thank you for calling, how can i help you today?", "--output", str(report / "base.wav")],
        ["csm", "voice", "--db", str(database), "list"],
    ]  # fmt: skip
    for number, step in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {' '.join(shown(word) for word in step)}", flush=True)
        code = subprocess.run([sys.executable, "-m", *module(step[0]), *step[1:]], cwd=ROOT).returncode
        if code:
            return code
    print(f"\nBase against tuned ({time.monotonic() - began:.0f} s in all):\n\n{table(report / 'scores.json')}\n")
    print("Listen to the base and to the voice, and read the report:")
    for path in (report / "base.wav", report / "voice.wav", run / "samples", report / "report.md"):
        print(f"  {path.relative_to(ROOT)}")
    return 0


def table(scores_path: Path) -> str:
    """The base, the best checkpoint and the reference, from the scores."""
    from evaluation.report import terminal_table
    from evaluation.score import Scores

    scores = Scores.from_json(json.loads(scores_path.read_text()))
    shown = [system for system in scores.systems if system.kind == "base" or system.name == scores.best]
    return terminal_table(replace(scores, systems=shown))


def lay_out() -> tuple[Path, Path]:
    """Link the clips into runs/demo: all but the last eight to train on, the last eight as reference."""
    clips = sorted((VOICE / "audio").glob("*.flac"))
    parts = {DEMO / "training": clips[:-HELD_OUT], DEMO / "held_out": clips[-HELD_OUT:]}
    for folder, part in parts.items():
        for kind in ("audio", "transcripts"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for clip in part:
            for source in (clip, VOICE / "transcripts" / f"{clip.stem}.txt"):
                shutil.copyfile(source, folder / source.parent.name / source.name)
    return DEMO / "training", DEMO / "held_out"


def registered(database: Path) -> bool:
    """Whether the demo's voice is in its database already."""
    from profiles.registry import Registry

    return database.is_file() and any(voice.name == NAME for voice in Registry(database).list())


def module(command: str) -> list[str]:
    """The module behind a console script, so that the demo runs with the very Python that started it."""
    return {"csm": ["csm.cli.main"], "csm-finetune": ["csm.cli.finetune"]}[command]


def shown(word: str) -> str:
    """A word of a command line as one would type it."""
    word = word.replace(f"{ROOT}/", "")
    return f'"{word}"' if " " in word else word


if __name__ == "__main__":
    sys.exit(main())
