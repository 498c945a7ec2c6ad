"""What the LoRA guide's names mean: files at the top of a LoRA run's folder, and how they are read again.

`checkpoint_latest.safetensors` and `fine_tuned_model.safetensors` are PEFT's tensors, with adapter_config.json and base.json in
the file's own header, so that one file says all of itself. The state of a run stays in its checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from csm.adapters.folder import files_of, is_adapter
from csm.adapters.origin import BASE, CONFIG
from csm.adapters.peft import PeftForm
from csm.errors import CsmError
from csm.json_file import read_json
from csm.model_folder import open_folder
from csm.training.run_folder import TRAINER, write_json
from csm.whole_file import whole_file

LATEST, TUNED, MERGED = "checkpoint_latest.safetensors", "fine_tuned_model", "merged"
SAVE_MODES = ("lora", "full", "both")
TENSORS = PeftForm.file
HEADER = 100 << 20  # bytes; a longer header is no header


def write_adapter_file(folder: Path, file: Path) -> None:
    """The adapter of a folder as one file, swapped in whole."""
    told = {"format": "pt", CONFIG: (folder / CONFIG).read_text(encoding="utf-8")}
    if (folder / BASE).is_file():
        told[BASE] = (folder / BASE).read_text(encoding="utf-8")
    with (folder / TENSORS).open("rb") as source, whole_file(file) as target:
        header = _header(source.read(8), source.read, folder / TENSORS)
        encoded = json.dumps({**header, "__metadata__": told}).encode()
        encoded += b" " * (-len(encoded) % 8)
        target.write(len(encoded).to_bytes(8, "little") + encoded)
        shutil.copyfileobj(source, target, 1 << 22)


def adapter_folder_of(path: Path, scratch: Path) -> Path:
    """The folder of an adapter that is named by its folder or by its file; a file that stands alone is laid out in `scratch`.

    Raises:
        CsmError: it is no adapter, or does not say which modules it is for.
    """
    if path.is_dir():
        if not is_adapter(path):
            raise CsmError(f"{path} is no adapter folder: it holds no {CONFIG}.")
        return path
    if not path.is_file():
        raise CsmError(f"there is no adapter {path}.")
    with path.open("rb") as file:
        told = _header(file.read(8), file.read, path).get("__metadata__", {})
    if CONFIG not in told:
        if is_adapter(path.parent) and path == files_of(path.parent)[1]:
            return path.parent
        raise CsmError(f"{path} does not say which adapter it is.", f"Name its folder, the one with {CONFIG}.")
    scratch.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, BASE):
        if name in told:
            (scratch / name).write_text(told[name], encoding="utf-8")
    shutil.copyfile(path, scratch / TENSORS)
    return scratch


def _header(length: bytes, read: Callable[[int], bytes], path: Path) -> dict[str, Any]:
    """The header of a safetensors file after its first 8 bytes."""
    size = int.from_bytes(length, "little")
    try:
        header = json.loads(read(size)) if len(length) == 8 and size < HEADER else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise CsmError(f"{path} is no safetensors file.")
    return header


def write_merged(run: Path, best: Path) -> Path:
    """The base with the adapter `best` merged in, as the model folder `merged` of the run; an older one is replaced."""
    from csm.torch.convert import merge_adapter

    folder = open_folder(best)
    assert folder.base is not None, "a LoRA run's checkpoint is an adapter"
    out, fresh, old = (run / name for name in (MERGED, f".{MERGED}.new", f".{MERGED}.old"))
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    merge_adapter(folder.base, folder.path, fresh)
    card = (best / "README.md").read_text(encoding="utf-8")
    (fresh / "README.md").write_text(
        card.replace("library_name: peft", "library_name: transformers", 1), encoding="utf-8"
    )
    if out.exists():
        os.rename(out, old)
    os.rename(fresh, out)
    shutil.rmtree(old, ignore_errors=True)
    return out


def write_tuned(run: Path, best: Path, mode: str, lora: Mapping[str, Any]) -> list[Path]:
    """Write the guide's files: `fine_tuned_model.safetensors`, or with "both" `..._lora` and `..._full`, each with its
    `..._metadata.json`. The full one is the weights of the folder `merged`.

    Args:
        mode: one of `SAVE_MODES`.
        lora: the recipe's keys that begin with `lora_`, for the metadata.
    """
    kinds, written = ["lora", "full"] if mode == "both" else [mode], []
    for kind in kinds:
        stem = f"{TUNED}_{kind}" if mode == "both" else TUNED
        file = run / f"{stem}.safetensors"
        if kind == "lora":
            write_adapter_file(best, file)
        else:
            _link(write_merged(run, best) / "model.safetensors", file)
        metadata = {"schema_version": 1, "holds": kind, "checkpoint": best.name, "base": read_json(best / BASE), **lora}
        write_json(run / f"{stem}_metadata.json", metadata)
        written.append(file)
    return written


def _link(source: Path, target: Path) -> None:
    from csm.torch.checkpoint import link

    beside = target.with_name(f".{target.name}.part")
    beside.unlink(missing_ok=True)
    link(source, beside)
    os.replace(beside, target)


def run_to_resume(named: Path, output: Path) -> None:
    """Hold what --resume-from names against the run folder `output`, whose newest state is what a run goes on from.

    Args:
        named: `checkpoint_latest.safetensors`, a run folder, or its newest checkpoint.

    Raises:
        CsmError: it is not there, is of another run, or is a checkpoint that has no state any more.
    """
    if not named.exists():
        raise CsmError(f"there is nothing to resume from at {named}.")
    run = named if named.is_dir() else named.parent
    if named.is_file() and named.name.startswith("fine_tuned_model"):
        raise CsmError(f"{named} is a result, not a state to go on from.", f"Name {named.parent / LATEST}.")
    if run.parent.name == "checkpoints":
        if not (run / TRAINER).is_dir():
            raise CsmError(
                f"{run} has no state to go on from; the newest checkpoint alone has.",
                f"Name {run.parents[1] / LATEST}.",
            )
        run = run.parents[1]
    if not (run / "recipe.json").is_file():
        raise CsmError(
            f"{named} has no run beside it, so momenta and position are lost.",
            "To begin a new run from its weights, name the adapter's folder with --model-path.",
        )
    if run.resolve() != output.resolve():
        raise CsmError(f"{named} is of the run {run}, and the output folder is {output}.", f"Give --output-dir {run}.")
