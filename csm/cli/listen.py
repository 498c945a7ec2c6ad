"""`csm evaluate listen` and `collect`: ask people, without telling them whose samples they hear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csm.cli.console import answer, answer_json, say
from csm.cli.gate import read_json, read_scores
from csm.cli.options import PATH, SEED
from csm.cli.target import writable
from csm.errors import CsmError

if TYPE_CHECKING:
    from evaluation.opinions import Stimulus


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--output", required=True, type=PATH, help="the page; its key is written beside it as NAME.key.json")
@click.option("--system", "systems", multiple=True, help="a run's systems to be heard; default: base and best")
@click.option("--texts", type=click.IntRange(1), default=6, show_default=True, help="how many texts of each run")
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="of the samples' hidden names and of pairs' order"
)
def listen(runs: tuple[Path, ...], output: Path, systems: tuple[str, ...], texts: int, seed: int) -> None:
    """Make one page on which people rate the samples of evaluated RUNS, blind and in random order."""
    from evaluation.opinions import make_test
    from evaluation.report import write_text

    page = writable(output)
    key = writable(output.with_name(f"{output.stem}.key.json"))
    stimuli = [one for run, name in _names(runs).items() for one in _stimuli(run, systems, texts, name)]
    document, secret = make_test(stimuli, seed)
    write_text(key, json.dumps(secret, indent=2, ensure_ascii=False) + "\n")
    write_text(page, document)
    say(f"{len(secret['items'])} samples, {len(secret['pairs'])} pairs; keep {key} to yourself: it says whose they are")
    answer(str(page))


@click.command()
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def collect(files: tuple[Path, ...], as_json: bool) -> None:
    """Sum up listeners' answers: FILES are the answers, and the page's key."""
    from evaluation.opinions import collect as gather

    found = gather({str(path): read_json(path) for path in files})
    if as_json:
        answer_json(found)
        return
    from tabulate import tabulate

    rows = []
    for system, one in found["systems"].items():
        interval = one["interval_95"]
        spread = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "–"
        rows.append([system, f"{one['mean_opinion']:.2f}", spread, one["ratings"]])
    lines = [tabulate(rows, ["", "opinion", "95 % interval", "ratings"], disable_numparse=True)] if rows else []
    for pair in found["pairs"]:
        (first, second), (one, other) = pair["systems"], pair["preferred"]
        lines.append(f"{first} preferred {one} times, {second} {other} times, neither {pair['no_preference']} times")
    agreement = "–" if found["agreement"] is None else f"{found['agreement']:.2f}"
    lines.append(f"{found['listeners']} listeners; agreement (Krippendorff's alpha): {agreement}")
    answer("\n".join(lines))


def _names(runs: tuple[Path, ...]) -> dict[Path, str]:
    """What tells runs apart, by run: nothing, the folders' names, or their paths; a run named twice is one."""
    once = {run.resolve(): "" for run in runs}
    if len(once) == 1:
        return once
    names = [run.name for run in once]
    return {run: run.name if len(set(names)) == len(names) else str(run) for run in once}


def _stimuli(run: Path, systems: tuple[str, ...], texts: int, run_name: str) -> list[Stimulus]:
    from csm.audio import read_audio
    from evaluation.opinions import Stimulus

    if run.is_file():
        raise CsmError(f"{run} is a file.", "Name the run's folder: its samples are there.")
    scores = read_scores(run)
    wanted = systems or tuple(dict.fromkeys(name for name in ("base", scores.best) if name))
    found: list[Stimulus] = []
    for name in wanted:
        system: Any = next((one for one in scores.systems if one.name == name), None)
        if system is None:
            names = ", ".join(one.name for one in scores.systems)
            raise CsmError(f"{run} has no scored system {name!r}.", f"It has {names}.")
        rows = {row["text"]: row for row in reversed(system.samples) if row["text"]}
        for text in list(reversed(rows))[:texts]:
            path = run / "samples" / rows[text]["name"]
            if path.is_file():
                label = f"{run_name}/{name}" if run_name else name
                found.append(Stimulus(label, text, rows[text]["seed"], *read_audio(path)))
    return found
