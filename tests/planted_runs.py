"""Runs of csm-tiny whose best checkpoint is known: one that has hardly begun, a good one, one that lost its words.

    python tests/planted_runs.py      # writes tests/planted_scores.json anew; takes ten minutes of one core

The example voice is learned from all clips but the last eight: for 3 updates (under-trained) and as csm-tiny recommends,
180 updates (good). The third learns all weights, at eight times the recommended rate, from twelve clips, 200 updates
(over-trained). Each says the texts of the last eight.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner

STORED = Path(__file__).with_name("planted_scores.json")
VOICE = Path(__file__).parents[1] / "examples" / "voice"
SPEAKER, HELD_OUT, FEW = 5, 8, 12
OVER = ("--schedule", "constant", "--no-freeze-backbone", "--no-freeze-embeddings", "--val-split", 0, "--lr", 0.004)
RUNS: dict[str, tuple[bool, tuple[object, ...]]] = {  # name: from few clips, flags
    "under": (False, ("--max-steps", 3, "--save-every", 3, "--schedule", "constant")),
    "good": (False, ("--max-steps", 180, "--save-every", 180)),
    "over": (True, ("--max-steps", 200, "--save-every", 200, *OVER)),
}
KINDS = {"base": "base", **dict.fromkeys(RUNS, "checkpoint")}
KEPT = ("speaker_similarity", "word_error_rate", "stopped")


def train(work: Path) -> dict[str, Path]:
    """The three runs below `work`; returns each one's checkpoint."""
    from csm.cli.finetune import main

    clips = sorted((VOICE / "audio").glob("*.flac"))
    lay_out(work / "all", clips[:-HELD_OUT])
    lay_out(work / "few", clips[:FEW])
    lay_out(work / "held_out", clips[-HELD_OUT:])
    checkpoints = {}
    for name, (few, flags) in RUNS.items():
        data, out = work / ("few" if few else "all"), work / name
        words = [
            "voice-adapt",
            "--speaker-id",
            SPEAKER,
            "--threads",
            1,
            "--output-dir",
            out,
            "--cache-dir",
            work / "cache",
        ]
        words += ["--audio-dir", data / "audio", "--transcript-dir", data / "transcripts", *flags]
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        checkpoints[name] = max((out / "checkpoints").glob("step-*"))
    return checkpoints


def lay_out(folder: Path, clips: list[Path]) -> None:
    """Copy clips and what they say."""
    for clip in clips:
        for source in (clip, VOICE / "transcripts" / f"{clip.stem}.txt"):
            target = folder / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def score(work: Path, models: Mapping[str, str | Path], seeds: range) -> list[dict[str, Any]]:
    """What `csm evaluate` would find of each model, opinions aside: systems with rows of `KEPT` alone."""
    from csm.audio import read_audio
    from csm.cli.scoring import make_judges
    from csm.generator import load_generator
    from csm.samples import speak_samples
    from evaluation.score import Reference, Sample, score_system

    judges = make_judges(None, "en", False, [])
    reference, systems = Reference.from_folder(work / "held_out", judges), []
    for name, model in models.items():
        spoken = speak_samples(
            load_generator(model, "cpu", "float32", 1, None), reference.texts, SPEAKER, seeds, work / "samples" / name
        )
        samples = [Sample(s.path.name, s.text, s.seed, *read_audio(s.path), s.stop_reason) for s in spoken if s.path]
        rows = score_system(name, samples, reference, judges=judges).samples
        systems.append(
            {"name": name, "rows": [[row["text"], row["seed"], *(row[key] for key in KEPT)] for row in rows]}
        )
    return systems


def main() -> None:
    """Train, speak, score, store."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = train(Path(folder))
        systems = score(Path(folder), {"base": "csm-tiny", **checkpoints}, range(8))
    store(systems)


def store(systems: list[dict[str, Any]]) -> None:
    """Write rows one a line, four decimals, texts by number."""
    texts = list(dict.fromkeys(row[0] for row in systems[0]["rows"]))
    parts = []
    for system in systems:
        rows = [
            [texts.index(row[0]), row[1], *(v if v is None else round(v, 4) for v in row[2:])] for row in system["rows"]
        ]
        parts.append(f"{json.dumps(system['name'])}: [\n  " + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]")
    STORED.write_text('{\n "columns": ' + json.dumps(["text", "seed", *KEPT]) + ",\n " + ",\n ".join(parts) + "\n}\n")


def stored() -> dict[str, list[dict[str, Any]]]:
    """The stored rows of each system, as `scores.json` has them."""
    document = json.loads(STORED.read_text())
    columns = document.pop("columns")
    return {
        name: [
            {**dict(zip(columns, row, strict=True)), "text": f"text {row[0]}", "name": f"{row[0]}-{row[1]}"}
            for row in rows
        ]
        for name, rows in document.items()
    }


if __name__ == "__main__":
    sys.exit(main())
