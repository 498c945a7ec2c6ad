"""`csm-finetune run` and `csm-finetune stages`: several fine-tunes, each from the best of the one before, and their tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from csm.cli.console import answer, answer_json, say
from csm.cli.lists import ListCommand
from csm.cli.options import PATH, runs_model
from csm.errors import CsmError

OF_FILE = ("base", "output_dir", "stages")
OF_STAGE = (
    "name", "preset", "data_path", "audio_dir", "transcript_dir", "format", "language", "speaker_id", "output_dir", "terms",
    "reference", "recipe", "strict", "alignment_dir", "align", "piece_seconds", "denoise",
)  # fmt: skip
KINDS: dict[str, tuple[type, ...]] = {
    "speaker_id": (int,), "piece_seconds": (int, float), "align": (bool,), "denoise": (bool,), "strict": (bool,),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One fine-tune of a file of stages; paths are whole, `recipe` are its recipe's keys."""

    name: str
    preset: str
    output_dir: Path
    data: dict[str, Any]
    recipe: dict[str, Any]


@click.command("run", cls=ListCommand)
@click.argument("stages_file", type=PATH)
@click.option("--cache-dir", type=PATH, help="where audio codes are kept; default: the user's cache folder")
@click.option("--dry-run", is_flag=True, help="print every stage's recipe, each over the base, and stop")
@runs_model
def run(stages_file: Path, cache_dir: Path | None, dry_run: bool, **placement: Any) -> None:
    """Run the stages of STAGES_FILE (YAML) one after the other, each from the best checkpoint of the one before.

    The same command again goes on where it was stopped.
    """
    from csm.cli.finetune import finetune

    base, stages = read_stages(stages_file)
    for stage in stages:
        _check(stage, stages_file)
    best: Path | None = None
    for number, stage in enumerate(stages, 1):
        say(f"[{number}/{len(stages)}] {stage.name}")
        flags: dict[str, Any] = dict.fromkeys(("recipe_file", "resume", "fresh", "base"))
        flags |= {**stage.data, **placement, "cache_dir": cache_dir, "dry_run": dry_run}
        flags |= {"model_path": best or base, "output_dir": stage.output_dir, "recipe_keys": stage.recipe}
        flags["recipe_source"] = _source(stages_file, stage)
        best = finetune(stage.preset, flags) or best
    if best:
        say("best checkpoint of the last stage:")
        answer(str(best))


def _source(path: Path, stage: Stage) -> str:
    return f"{path.name}, stage {stage.name}"


def _check(stage: Stage, path: Path) -> None:
    """What can be known of a stage before those ahead of it have trained: its recipe, its terms, where its data are."""
    from csm.cli.run_options import run_layer
    from csm.presets import PRESETS
    from csm.recipe import resolve

    layers: list[tuple[str, Mapping[str, Any]]] = [
        (_source(path, stage), stage.recipe),
        (_source(path, stage), run_layer(stage.data)),
    ]
    resolve(stage.preset, PRESETS[stage.preset], layers)
    named = [*stage.data["data_paths"], *(stage.data[key] for key in ("audio_dir", "transcript_dir", "alignment_dir"))]
    for one in named:
        if one and "://" not in str(one) and not Path(one).exists():
            raise CsmError(f"{path}, stage {stage.name}: {one} is not there.", "Paths are relative to the file.")


def read_stages(path: Path) -> tuple[str, list[Stage]]:
    """The base model and the stages of a file; paths in it are relative to its folder.

    Raises:
        CsmError: the file cannot be read, has an unknown key, or a stage lacks what it needs; the stage is named.
    """
    from csm.recipe import read_recipe

    values = read_recipe(path)
    _check_keys(values, OF_FILE, str(path))
    listed = values.get("stages")
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise CsmError(f"{path} lists no stages.", "Write `stages:` and below it one `- preset: ...` for each.")
    stages = [_stage(path, number, one, values) for number, one in enumerate(listed, 1)]
    for field in ("name", "output_dir"):
        seen = [getattr(stage, field) for stage in stages]
        twice = [value for value in seen if seen.count(value) > 1]
        if twice:
            raise CsmError(f"{path} has two stages with the {field} {twice[0]}.", "Give each its own.")
    base = str(values.get("base", "csm-tiny"))
    local = path.parent / Path(base).expanduser()
    return (str(local) if local.exists() else base), stages


def _stage(path: Path, number: int, raw: dict[Any, Any], values: dict[str, Any]) -> Stage:
    from csm.presets import PRESETS
    from csm.recipe import nearest

    stage = {str(key).replace("-", "_"): value for key, value in raw.items()}
    preset = stage.get("preset")
    name = str(stage.get("name", preset))
    place = f"{path}, stage {number} ({name})"
    _check_keys(stage, OF_STAGE, place)
    _check_kinds(stage, place)
    if preset not in PRESETS:
        raise CsmError(f"{place}: there is no preset {preset!r}.", nearest(str(preset), tuple(PRESETS)))
    if not (stage.get("output_dir") or values.get("output_dir")):
        raise CsmError(f"{place} has no output_dir.", "Name one there, or one for all stages at the top.")
    output = stage.get("output_dir") or Path(str(values["output_dir"])) / name
    recipe = stage.get("recipe") or {}
    if not isinstance(recipe, dict):
        raise CsmError(f"{place}: recipe holds no keys.", "Write `recipe: {epochs: 3}`.")
    if preset == "style-tune" and not str(recipe.get("style_name") or "").strip():
        raise CsmError(f"{place} has no style_name.", "Name the style: `recipe: {style_name: excited}`.")
    return Stage(
        name, str(preset), _whole(path, output), _data(path, stage),
        {str(key).replace("-", "_"): value for key, value in recipe.items()},
    )  # fmt: skip


def _data(path: Path, stage: dict[str, Any]) -> dict[str, Any]:
    """What the commands' data flags would hold."""
    paths = stage.get("data_path") or []
    return {
        "data_paths": [
            str(one) if "://" in str(one) else str(_whole(path, one))
            for one in (paths if isinstance(paths, list) else [paths])
        ],
        "data_format": stage.get("format"),
        "language": str(stage.get("language") or "en"),
        **{key: _whole(path, stage[key]) if stage.get(key) else None
           for key in ("audio_dir", "transcript_dir", "alignment_dir", "terms", "reference")},
        **{key: stage.get(key) for key in ("align", "piece_seconds", "denoise")},
        "speaker_id": stage.get("speaker_id"),
        "strict": bool(stage.get("strict")),
    }  # fmt: skip


def _whole(file: Path, written: Any) -> Path:
    return file.parent / Path(str(written)).expanduser()


def _check_keys(values: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    from csm.recipe import Recipe, nearest

    for key in values:
        if key not in known:
            hint = "It belongs under `recipe:`." if hasattr(Recipe(), str(key)) else nearest(str(key), known)
            raise CsmError(f"{place}: unknown key {key!r}.", hint)


def _check_kinds(stage: dict[str, Any], place: str) -> None:
    """What a flag of a command would refuse."""
    for key, kinds in KINDS.items():
        value = stage.get(key)
        if value is None:
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = {"speaker_id": "a whole number", "piece_seconds": "a number"}.get(key, "true or false")
            raise CsmError(f"{place}: {key} is {value!r:.60}; it is {wanted}.")
    if (speaker := stage.get("speaker_id")) is not None and speaker < 0:
        raise CsmError(f"{place}: speaker_id is {speaker}; it goes from 0.")


@click.command("stages", cls=ListCommand)
@click.argument("folders", type=PATH, nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def stages(folders: tuple[Path, ...], as_json: bool) -> None:
    """Show the tree of the runs in FOLDERS (default: the folder `runs`): what came from what, and what it is worth."""
    from csm.training.lineage import find_runs, tree

    runs = find_runs(folders or (Path("runs"),))
    if as_json:
        answer_json(
            [{"id": run.id, "parent_run": run.parent, "depth": depth, **run.facts} for depth, run in tree(runs)]
        )
    elif runs:
        answer("\n".join(_line(depth, run) for depth, run in tree(runs)))
    else:
        say("no runs there")


def _line(depth: int, run: Any) -> str:
    facts, data = run.facts, run.facts["data"]
    root = "" if depth else f"{Path(facts['parent']['path']).name} -> "
    scores = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in facts["scores"].items()]
    parts = [
        f"{root}{facts['path']}: {facts['preset']}",
        f"{data['clips']} clips, {data['minutes']} min, data {data['fingerprint'][:8]}",
        f"best {facts['best']}" + (f" ({', '.join(scores)})" if scores else ""),
        facts["program"],
    ]
    return f"{'   ' * (depth - 1)}{'└─ ' if depth else ''}{'; '.join(parts)}"
