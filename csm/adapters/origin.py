"""What an adapter was trained on: `base.json` beside it, or what PEFT's config says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from csm.errors import CsmError
from csm.json_file import read_json
from csm.whole_file import whole_file

CONFIG, BASE = "adapter_config.json", "base.json"
SCHEMA = 1


@dataclass(frozen=True)
class Origin:
    """A path (or `csm-tiny`) to find a base by, a name to speak of it by, and its hash.

    `beside` is the folder that lends config, tokenizer and codec where the base's weights stand alone.
    """

    path: str
    name: str
    hash: str | None
    beside: str | None = None


def write_base(base: Origin, folder: Path) -> None:
    """Put base.json into `folder`, for checkpoints to link; one that is there stays."""
    if (folder / BASE).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    values = {"schema_version": SCHEMA, "name": base.name, "path": base.path, "hash": base.hash}
    values |= {"beside": base.beside} if base.beside else {}
    with whole_file(folder / BASE) as file:
        file.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def read_base(folder: Path, named: str | None = None) -> Origin:
    """The base of an adapter: from base.json, or, in a folder of PEFT's own, from `base_model_name_or_path`.

    Args:
        named: where the base is, whatever the files say; base.json's hash holds all the same.

    Raises:
        CsmError: neither says.
    """
    if (folder / BASE).is_file():
        values = read_json(folder / BASE)
        path = named or values.get("path")
        if values.get("schema_version", SCHEMA) != SCHEMA or not isinstance(path, str):
            raise CsmError(f"{folder / BASE} is not one that this program reads.")
        beside = None if named else values.get("beside")
        return Origin(path, str(values.get("name", path)), values.get("hash"), beside)
    path = named or read_json(folder / CONFIG).get("base_model_name_or_path")
    if not path:
        raise CsmError(
            f"{folder} is an adapter, and nothing in it says of which model.",
            f"Name the model with --base FOLDER, or in {folder / BASE}: "
            '{"schema_version": 1, "path": "FOLDER OF THE MODEL"}.',
        )
    return Origin(str(path), str(path), None)
