"""Adapter folders on disk: PEFT's (`adapter_model.safetensors`) and csm-mlx's (`adapters.safetensors`), each with its
`adapter_config.json`; beside it our `base.json` says which model the adapter belongs to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from csm.adapters import Adapter
from csm.csm_mlx_form import from_csm_mlx, to_csm_mlx
from csm.errors import CsmError
from csm.layouts import CSM_MLX, SESAME
from csm.model_folder import ModelFolder, read_json
from csm.peft_form import from_peft, to_peft
from csm.torch.checkpoint import read_tensors, save_tensors
from csm.whole_folder import whole_folder

CONFIG, BASE = "adapter_config.json", "base.json"
PEFT_FILE, CSM_MLX_FILE = "adapter_model.safetensors", "adapters.safetensors"


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (path / CONFIG).is_file()


def read_adapter(path: Path, base: ModelFolder) -> Adapter:
    """The adapter in `path`, in either form, held against the model it shall serve.

    Raises:
        CsmError: files are missing or damaged, tensors do not fit, or it was trained on another model than `base`.
    """
    config = read_json(path / CONFIG)
    peft = "peft_type" in config
    file = path / (PEFT_FILE if peft else CSM_MLX_FILE)
    if not file.is_file():
        raise CsmError(f"{file} is not there.")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise CsmError(f"{file} is no safetensors file or is damaged ({error}).") from None
    known = read_json(path / BASE) if (path / BASE).is_file() else {}
    if known.get("hash") not in (None, base.hash):
        raise CsmError(
            f"{path} was trained on {known.get('name', 'another model')} (hash {known['hash'][:12]}), "
            f"not on {base.path} (hash {base.hash[:12]})."
        )
    found = (from_peft if peft else from_csm_mlx)(tensors, config, base.config, str(path))
    return Adapter(found.pairs, _changed(found.whole, base), found.carried, found.dropout, known)


def convert_adapter(path: Path, base: ModelFolder, out: Path, layout: str) -> None:
    """Write the adapter of `path` to the new folder `out` in PEFT's form (`transformers`) or csm-mlx's.

    Raises:
        CsmError: see `read_adapter`; `out` is there; the form cannot express the adapter.
    """
    if layout == SESAME:
        raise CsmError("Sesame's layout has no adapters.", "Merge it: csm model merge M --adapter A OUT.")
    adapter = read_adapter(path, base)
    known = {"schema_version": 1, "name": base.path.name, "path": base.name, "hash": base.hash, **adapter.base}
    tensors, config = to_csm_mlx(adapter, base.config) if layout == CSM_MLX else to_peft(adapter)
    with whole_folder(out) as part:
        own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_tensors(own, part / (CSM_MLX_FILE if layout == CSM_MLX else PEFT_FILE))
        _write(config, part / CONFIG)
        _write(known, part / BASE)


def _changed(whole: Any, base: ModelFolder) -> dict[str, Any]:
    """The tensors that are not the base's own: csm-mlx's checkpoints in mid-run carry the whole model."""
    theirs = read_tensors(base, list(whole))
    return {n: t for n, t in whole.items() if not (t.float() == theirs[n].float()).all()}


def _write(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
