"""An adapter folder: PEFT's or csm-mlx's two files, and `base.json`, which says of what model.

Written and read with the framework that is passed in: `load` gives a safetensors file's tensors by name, `save` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from csm.adapters.adapter import Adapter
from csm.adapters.csm_mlx import CsmMlxForm
from csm.adapters.form import CODEC, COPY, FACTOR, WHOLE, Form, Place, account
from csm.adapters.origin import BASE, CONFIG, read_base, write_base
from csm.adapters.peft import PeftForm
from csm.adapters.plan import AdapterPlan
from csm.config import ModelConfig
from csm.errors import CsmError
from csm.json_file import read_json
from csm.layouts import CSM_MLX, TRANSFORMERS
from csm.weights import tensor_shapes

FORMS: dict[str, Form] = {TRANSFORMERS: PeftForm(), CSM_MLX: CsmMlxForm()}
ADAPTER_FILES = tuple(form.file for form in FORMS.values())

Load = Callable[[Path], Mapping[str, Any]]
Save = Callable[[dict[str, Any], Path], None]


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def form_of(folder: Path) -> Form:
    """PEFT's form where the config says a `peft_type`, else csm-mlx's."""
    return FORMS[TRANSFORMERS if "peft_type" in read_json(folder / CONFIG) else CSM_MLX]


def files_of(folder: Path) -> tuple[Path, Path]:
    """The two files that an adapter is: config and tensors."""
    return folder / CONFIG, folder / form_of(folder).file


def read_plan(folder: Path, model: ModelConfig) -> AdapterPlan:
    """What the adapter adapts in a model of this shape, by its config and header alone. Raises as `account`."""
    return _account(folder, form_of(folder), model)[0]


def read_adapter(folder: Path, model: ModelConfig, load: Load, of_base: Callable[[str], Any | None]) -> Adapter:
    """The adapter in `folder`, of either form.

    Args:
        model: the shape of the model it is for.
        of_base: a tensor of that model by transformers' name, to hold copies of it against; None where it is not at hand.

    Raises:
        CsmError: as `account`; the adapter changes the codec, or was trained on another base.
    """
    form = form_of(folder)
    plan, places = _account(folder, form, model)
    by_role: dict[str, dict[str, Any]] = {FACTOR: {}, WHOLE: {}, COPY: {}, CODEC: {}}
    for name, tensor in load(folder / form.file).items():
        place = places[name]
        own = form.upright(place, tensor, plan, model)
        if not _same(by_role[place.role].setdefault(place.name, own), own):
            raise CsmError(
                f"the adapter {folder} changes {name} differently from its other side; they are one table in a CSM."
            )
    _judge(by_role[COPY], by_role[CODEC], of_base, folder)
    whole = {n: t for n, t in by_role[WHOLE].items() if not _is_bases(t, of_base(n))}
    origin = read_base(folder) if (folder / BASE).is_file() else None
    return Adapter(plan, by_role[FACTOR], whole, origin)


def write_adapter(adapter: Adapter, model: ModelConfig, out: Path, save: Save, layout: str = TRANSFORMERS) -> None:
    """Put an adapter into the folder `out`, in PEFT's form (`transformers`) or csm-mlx's; a base.json that is there stays.

    Raises:
        CsmError: the form cannot express it.
    """
    form = FORMS[layout]
    tensors, values = form.written(adapter, model)
    save(tensors, out / form.file)
    (out / CONFIG).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if adapter.origin:
        write_base(adapter.origin, out)


def _account(folder: Path, form: Form, model: ModelConfig) -> tuple[AdapterPlan, dict[str, Place]]:
    return account(form, read_json(folder / CONFIG), tensor_shapes(folder / form.file), model, str(folder))


def _judge(
    copies: Mapping[str, Any], codec: Mapping[str, Any], of_base: Callable[[str], Any | None], folder: Path
) -> None:
    """Copies of the base must be the base's, and adapters of the codec must do nothing."""
    foreign = [name for name, tensor in copies.items() if (own := of_base(name)) is not None and not _same(tensor, own)]
    if foreign:
        raise CsmError(
            f"the adapter {folder} was trained on another base: its copies of {', '.join(foreign)} differ from this "
            "model's."
        )
    for name, tensor in codec.items():
        if name.endswith("lora_magnitude_vector") or (
            ("lora_B" in name or "lora_embedding_A" in name) and not bool((tensor == 0).all())
        ):
            raise CsmError(f"the adapter {folder} changes {name.split('.lora_')[0]}; csm does not adapt the codec.")


def _same(one: Any, two: Any) -> bool:
    return one is two or (one.shape == two.shape and bool((one == two).all()))


def _is_bases(tensor: Any, own: Any | None) -> bool:
    return own is not None and _same(tensor, own)
