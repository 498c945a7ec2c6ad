"""Model folders in and out of torch: loading with dtypes raised, and checkpoints that store what training changed.

A checkpoint is a sharded transformers folder: one shard with the trained tensors, one with all others (frozen parts and
codec), which is written once a run and hard-linked from then on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from csm.adapters.adapter import Adapter
from csm.adapters.folder import write_adapter as write_adapter_with
from csm.adapters.origin import BASE, read_base
from csm.adapters.plan import AdapterPlan
from csm.errors import CsmError
from csm.layouts import out_of_layout
from csm.model_folder import BESIDE_WEIGHTS, ModelFolder
from csm.torch.lora import adapter_state
from csm.torch.lora_file import read_adapter
from csm.torch.merge import merge_tensors
from csm.torch.model import Csm
from csm.torch_file import SUFFIXES, read_torch_file
from csm.weights import CODEC_PREFIX, INDEX, parameter_shapes

TRAINED, UNCHANGED = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def read_tensors(folder: ModelFolder, names: list[str]) -> dict[str, torch.Tensor]:
    """transformers' tensors `names`, in the dtype they are stored in, in transformers' order of rows.

    Those that the folder's adapter changes come in fp32, with it taken in; one with biases adds tensors `....bias`, which a
    CSM else has none of.
    """
    if folder.base is not None:
        tensors = read_tensors(folder.base, names)
        if not all(name.startswith(CODEC_PREFIX) for name in names):
            merge_tensors(tensors, read_adapter(folder.path, folder.config, tensors.get))
        return tensors
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for name in names:
        file, stored = folder.file_of(name)
        by_file.setdefault(file, []).append((name, stored))
    tensors = {}
    for file, pairs in by_file.items():
        with opened(file) as tensor_of:
            read = {name: tensor_of(stored) for name, stored in pairs}
        tensors |= {name: out_of_layout(name, value, folder.layout, folder.config) for name, value in read.items()}
    return tensors


@contextmanager
def opened(file: Path) -> Iterator[Callable[[str], torch.Tensor]]:
    """A function from a tensor's stored name to the tensor, for a safetensors or a `.pt` file."""
    if file.suffix in SUFFIXES:
        yield read_torch_file(file).__getitem__
    else:
        with safe_open(file, framework="pt") as tensors:
            yield tensors.get_tensor


def load_model(folder: ModelFolder, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Csm:
    """The model of a checked folder, every parameter in `dtype` on `device`; an adapter is taken into the weights."""
    with torch.device("meta"):
        model = Csm(folder.config)
    tensors = read_tensors(folder, list(parameter_shapes(folder.config)))
    state = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    for name in state:
        if name.endswith(".bias"):
            model.get_submodule(name.removesuffix(".bias")).register_parameter("bias", torch.nn.Parameter(state[name]))
    model.load_state_dict(state, strict=True, assign=True)
    return model


def codec_tensors(folder: ModelFolder) -> dict[str, torch.Tensor]:
    """The codec's tensors, as stored, without their prefix."""
    read = read_tensors(folder, folder.codec_names)
    return {name.removeprefix(CODEC_PREFIX): tensor for name, tensor in read.items()}


def write_unchanged(folder: ModelFolder, trained: set[str], out: Path) -> None:
    """Fill the new folder `out` with what training leaves alone: other tensors, codec, config, tokenizer.

    It is written beside and renamed, so that it is whole where it is there.
    """
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        names = [name for name in parameter_shapes(folder.config) if name not in trained] + folder.codec_names
        tensors = read_tensors(folder, names)
        refuse_biases(folder, tensors)
        save_tensors(tensors, beside / UNCHANGED)
        copy_companions(folder, beside)
        files = dict.fromkeys(sorted(trained), TRAINED) | dict.fromkeys(names, UNCHANGED)
        (beside / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}, indent=1))
        os.rename(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_checkpoint(model: Csm, trained: set[str], unchanged: Path, out: Path) -> None:
    """Make `out` a loadable model folder: the trained tensors, and links to all that is in `unchanged`."""
    state = model.state_dict()
    save_tensors({name: state[name].contiguous().cpu() for name in sorted(trained)}, out / TRAINED)
    for file in unchanged.iterdir():
        link(file, out / file.name)


def write_adapter(model: Csm, plan: AdapterPlan, unchanged: Path, out: Path, whole: Iterable[str] = ()) -> None:
    """Make `out` an adapter folder: PEFT's two files, and a link to the base.json that is in `unchanged`.

    Args:
        whole: parameters that were trained as they are.
    """
    link(unchanged / BASE, out / BASE)
    tensors = {name: value.cpu() for name, value in adapter_state(model).items()}
    saved = {name: model.get_parameter(name).detach().cpu() for name in whole}
    write_adapter_with(Adapter(plan, tensors, saved, read_base(out)), model.config, out, save_copies)


def refuse_biases(folder: ModelFolder, tensors: Iterable[str]) -> None:
    """CsmError where the tensors that were read of a folder hold biases of an adapter."""
    if any(name.endswith(".bias") and not name.startswith(CODEC_PREFIX) for name in tensors):
        raise CsmError(
            f"{folder.path} is an adapter with biases (lora_bias), and a model folder has no place for them.",
            "Train another adapter on it, with --method lora, or one without lora_bias.",
        )


def copy_companions(folder: ModelFolder, out: Path) -> None:
    """Put transformers' config and what else stands beside a model's weights into `out`."""
    own = folder.beside / "config.json"
    raw = {key: value for key, value in folder.raw_config.items() if key != "transformers_weights"}
    if own.is_file() and json.loads(own.read_text(encoding="utf-8-sig")) == raw:
        shutil.copyfile(own, out / "config.json")
    else:
        (out / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    for name in BESIDE_WEIGHTS:
        if (folder.beside / name).is_file():
            shutil.copyfile(folder.beside / name, out / name)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file that others may read; the library alone would make it private.

    Raises:
        OSError: the disk is full or the like, which the library tells in a kind of its own.
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
    os.chmod(path, 0o644)


def save_copies(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """`save_tensors` of tensors of which some may be views, or one under two names."""
    save_tensors({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, path)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the two lie on different file systems or links are not allowed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
