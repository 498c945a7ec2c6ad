"""The main job on the embedded model: adapt csm-tiny to the example voice, score it, keep it, hear it.

    python examples/demo.py

Each step is a command that you could type; it is printed before it runs. The last eight clips by file name are held out:
they are the reference, and their texts are what base and checkpoints say. A second run goes on, or says that it is done;
so does one after Ctrl-C, which the command that is running hears too: it saves before it ends.
"""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.score import Scores, SystemScores

ROOT = Path(__file__).resolve().parent.parent
VOICE, DEMO = ROOT / "examples" / "voice", ROOT / "runs" / "demo"
SPEAKER, HELD_OUT, NAME = 5, 8, "Example"
COMPARED = 3  # held-out texts whose base and best sample are laid side by side


def main() -> int:
    """Run the demo; returns the exit code of the first command that fails, 130 after Ctrl-C."""
    try:
        return demo()
    except KeyboardInterrupt:
        print("\nInterrupted: the same command goes on from here.", file=sys.stderr)
        return 130


def demo() -> int:
    """Run every step, then show what came of it; returns the exit code of the first step that fails."""
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
        code = finish([sys.executable, "-m", *module(step[0]), *step[1:]])
        if code:
            return code
    show(report, run / "samples", time.monotonic() - began)
    return 0


def finish(command: list[str]) -> int:
    """Run a command to its end; returns its exit code.

    Raises:
        KeyboardInterrupt: after the command, which the terminal interrupts as well, has saved and ended.
    """
    child, interrupt = subprocess.Popen(command, cwd=ROOT), None
    while child.poll() is None:
        try:
            child.wait()
        except KeyboardInterrupt as signal:
            interrupt = signal
    if interrupt:
        raise interrupt
    return child.returncode


def show(report: Path, samples: Path, seconds: float) -> None:
    """Print the table, and where to listen and to read."""
    from evaluation.score import Scores

    scores = Scores.from_json(json.loads((report / "scores.json").read_text()))
    pairs = lay_side_by_side(scores, samples, report / "samples")
    print(f"\nBase against tuned ({seconds:.0f} s in all):\n\n{table(scores)}\n")
    print("Listen to the base and to the voice, and read the report:")
    for path in (report / "base.wav", report / "voice.wav", *pairs, report / "report.md"):
        print(f"  {path.relative_to(ROOT)}" + (f"  {pairs[path]}" if path in pairs else ""))
    print(f"All that was scored: {samples.relative_to(ROOT)}")


def table(scores: Scores) -> str:
    """The base, the best checkpoint and the reference, from the scores."""
    from evaluation.report import terminal_table

    shown = [system for system in scores.systems if system.kind == "base" or system.name == scores.best]
    return terminal_table(replace(scores, systems=shown))


def lay_side_by_side(scores: Scores, samples: Path, out: Path) -> dict[Path, str]:
    """Copy what base and best said of the first held-out texts to 01-base.wav, 01-voice.wav and so on.

    Returns:
        the text of each copy; nothing where no checkpoint could be scored.
    """
    systems = {system.name: spoken(system, samples) for system in scores.systems}
    base, best = systems["base"], systems.get(scores.best or "", {})
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    copies: dict[Path, str] = {}
    for number, text in enumerate([text for text in base if text in best][:COMPARED], 1):
        for name, said in (("base", base), ("voice", best)):
            copy = shutil.copyfile(said[text], out / f"{number:02d}-{name}.wav")
            copies[copy] = text
    return copies


def spoken(system: SystemScores, samples: Path) -> dict[str, Path]:
    """The first sample of each text that a system said anything of."""
    found: dict[str, Path] = {}
    for row in system.samples:
        if (samples / row["name"]).is_file():
            found.setdefault(row["text"], samples / row["name"])
    return found


def lay_out() -> tuple[Path, Path]:
    """Copy the clips into runs/demo: all but the last eight to train on, the last eight as reference."""
    clips = sorted((VOICE / "audio").glob("*.flac"))
    parts = {DEMO / "training": clips[:-HELD_OUT], DEMO / "held_out": clips[-HELD_OUT:]}
    for folder, part in parts.items():
        sources = [path for clip in part for path in (clip, VOICE / "transcripts" / f"{clip.stem}.txt")]
        copies = {folder / source.parent.name / source.name: source for source in sources}
        if not same(folder, copies):
            if folder.exists():
                shutil.rmtree(folder)
            for copy, source in copies.items():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
    return DEMO / "training", DEMO / "held_out"


def same(folder: Path, copies: dict[Path, Path]) -> bool:
    """Whether a folder holds these copies, byte for byte, and nothing else."""
    there = {path for path in folder.rglob("*") if path.is_file()}
    return there == copies.keys() and all(filecmp.cmp(*pair, shallow=False) for pair in copies.items())


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
