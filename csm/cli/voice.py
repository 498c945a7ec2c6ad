"""`csm voice`: the voices that are kept: list them, add one, look at one, hear one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csm.cli.console import Group, answer, answer_json, say, warn
from csm.cli.options import SEED, runs_model, samples_speech, takes_base
from csm.cli.speech import check_target, hand_out
from csm.errors import CsmError

if TYPE_CHECKING:
    from profiles.registry import Registry
    from profiles.voice import Voice

_SAMPLE_TEXT = "Good morning. This is how I sound when I read a sentence aloud."
_FILE = click.Path(dir_okay=False, path_type=Path)
_DATA = (
    "fingerprint",
    "clips",
    "minutes",
    "speakers",
)  # which of a lineage a voice keeps; clips' names stay with the run
_COLUMNS = ("name", "speaker", "gender", "age", "accent", "model", "similarity")


@click.group(cls=Group)
@click.option("--db", type=_FILE, help="the registry's file; default: the one in your data folder")
@click.pass_context
def voice(context: click.Context, db: Path | None) -> None:
    """Keep voices: which model speaks them, under which speaker id, and how they scored."""
    from profiles.registry import Registry, default_path

    context.obj = Registry(db.expanduser() if db else default_path())


@voice.command("list")
@click.option("--json", "as_json", is_flag=True, help="print a JSON list")
@click.pass_obj
def list_voices(registry: Registry, as_json: bool) -> None:
    """Show all voices by name."""
    voices = sorted(registry.list(), key=lambda one: one.name.casefold())
    if as_json:
        answer_json([one.to_dict() for one in voices])
    elif voices:
        answer(_table([_row(one) for one in voices], _COLUMNS))
    else:
        say(f"No voices yet in {registry.path}; csm voice create makes the first.")


@voice.command()
@click.argument("name")
@click.argument("speaker_id", type=click.IntRange(min=0))
@click.argument("description")
@click.option("--gender", help="in your own words")
@click.option("--age-range", help='such as "30-40"')
@click.option("--accent", help='such as "North American"')
@click.option(
    "--model-path",
    default="csm-tiny",
    show_default=True,
    help="csm-tiny, a model folder, a run (its best), a weights file or a hub id",
)
@takes_base
@click.pass_obj
def create(
    registry: Registry, name: str, speaker_id: int, description: str, model_path: str, base: Path | None, **traits: Any
) -> None:
    """Keep a voice under NAME: what the model speaks for SPEAKER_ID. Prints the voice's id.

    SPEAKER_ID is the one that the model was trained on. Where the model is a run, its lineage and the scores of its
    best checkpoint are kept too.
    """
    _check_speaks(model_path, speaker_id, base)
    kept = {**traits, "base": base, **_of_run(Path(model_path), speaker_id)}
    made = registry.create(name, speaker_id, description, model_path, **kept)
    say(f"{made.name} is kept in {registry.path}.")
    answer(made.id)


@voice.command()
@click.argument("key", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="print the record as JSON")
@click.pass_obj
def show(registry: Registry, key: str, as_json: bool) -> None:
    """Show all that is kept of the voice with this name, id or speaker id."""
    found = registry.find(key)
    if as_json:
        answer_json(found.to_dict())
    else:
        answer(_table(list(_lines(found.to_dict()))))


@voice.command()
@click.argument("key", metavar="NAME")
@click.option("--text", default=_SAMPLE_TEXT, show_default=True, help="what to say")
@click.option("--output", type=_FILE, help="a .wav or .flac file; default: NAME.wav")
@samples_speech
@click.option("--seed", type=SEED, default=0, show_default=True)
@takes_base
@runs_model
@click.pass_obj
def sample(
    registry: Registry,
    key: str,
    text: str,
    output: Path | None,
    temperature: float | None,
    top_k: int | None,
    seed: int,
    base: Path | None,
    **placement: Any,
) -> None:
    """Let the voice with this name, id or speaker id say something. Prints the path of the sound.

    Where no temperature or top-k is given, the voice's own come before the model folder's; --base comes before the base that
    the voice was kept with.
    """
    if not text.strip():
        raise CsmError("There is nothing to say: the text is empty.", 'Give one with --text "...".')
    found = registry.find(key)
    target = _target(found, output)
    _check_there(found, found.model_path)
    source = base or found.base
    if source:
        _check_there(found, str(source))
    if temperature is None:
        temperature = found.sampling.get("temperature")
    if top_k is None:
        top_k = found.sampling.get("top_k")

    from csm.generator import load_generator

    generator = load_generator(found.model_path, **placement, base=source)
    speech = generator.speak(
        text,
        speaker=found.speaker_id,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        max_audio_length_ms=None,
    )
    hand_out(speech, target)


def _check_speaks(model_path: str, speaker_id: int, base: Path | None) -> None:
    """Refuse a model that is whole nowhere, and a speaker that it has no symbol for."""
    from csm.model_folder import open_folder
    from csm.tokenizer import TextTokenizer

    TextTokenizer(open_folder(model_path, base).beside).encode("a", speaker_id)


def _of_run(path: Path, speaker_id: int) -> dict[str, Any]:
    """What a run says of its voice: where it comes from, and its best checkpoint's scores if it was trained on it."""
    from csm.training.run_folder import RunFolder

    run = RunFolder(path.expanduser())
    if not run.exists:
        return {}
    lineage, preset = run.lineage(), run.recipe().get("preset")
    data = {key: value for key, value in lineage["data"].items() if key in _DATA}
    kept = {"lineage": {"parent": lineage["parent"], "data": data, "preset": preset}}
    speakers = data.get("speakers", [])
    if speaker_id in speakers:
        return {**kept, "scores": _scores_of_best(run.path)}
    trained = " and ".join(map(str, speakers))
    warn(
        f"{path} was trained on speaker {trained}; what it speaks for {speaker_id} may be no voice, and has no scores."
    )
    return kept


def _scores_of_best(run: Path) -> dict[str, Any]:
    """What `csm evaluate` left; empty where it did not run or did not score the best."""
    from csm.json_file import read_json
    from csm.model_folder import pointed_to
    from evaluation.score import Scores

    scores_path, best = run / "report" / "scores.json", pointed_to(run, "best")
    systems = Scores.from_json(read_json(scores_path)).systems if scores_path.is_file() else []
    return next((s.summary for s in systems if best and s.name == best.name), {})


def _row(one: Voice) -> list[str]:
    similarity = "" if one.similarity is None else f"{one.similarity:.3f}"
    traits = [trait or "" for trait in (one.gender, one.age_range, one.accent)]
    return [one.name, str(one.speaker_id), *traits, one.model_path, similarity]


def _lines(record: dict[str, Any], above: str = "") -> Iterator[list[str]]:
    """A record's values as rows of name and text, those of its inner tables under `table.name`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{above}{key}.")
        elif value is not None:
            yield [above + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]


def _table(rows: list[list[str]], headers: tuple[str, ...] = ()) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers=headers, tablefmt="simple" if headers else "plain", disable_numparse=True)


def _target(found: Voice, output: Path | None) -> Path:
    """Where the sound goes: never over a file that the user has not named."""
    if output:
        check_target(output)
        return output.expanduser()
    stem = re.sub(r"[^\w.-]+", "_", found.name)[:60].strip("._-") or "voice"
    target, number = Path(f"{stem}.wav"), 1
    while target.exists():
        number += 1
        target = Path(f"{stem}-{number}.wav")
    return target


def _check_there(found: Voice, named: str) -> None:
    path = Path(named)
    if path.is_absolute() and not path.exists():
        raise CsmError(
            f"The model of {found.name!r} is gone: {path}.", "Put it back, or create a voice with another --model-path."
        )
