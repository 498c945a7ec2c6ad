"""Make losses.json anew: the losses of four updates of every preset on csm-tiny, with the synthetic clips of tests/conftest.py.

    python tests/golden/make.py

Do so only where a change is meant to change what is learned, and say so in the change.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from conftest import ASSETS, write_clips  # noqa: E402

from csm.backend import Backend  # noqa: E402
from csm.data.manifest import read_data  # noqa: E402
from csm.presets import PRESETS  # noqa: E402
from csm.training.finetuner import CSMFineTuner  # noqa: E402

STEPS = 4
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "learning_rate": 1e-4,
    "batch_size": 2,
    "save_every": 2,
    "log_to": (),
    "log_every": 1,
}
KEYS = ("loss", "semantic_loss", "acoustic_loss", "validation_loss")


def losses(preset: str, root: Path) -> list[dict[str, float]]:
    """The figures of step 0 to 4 of a preset; `root` gets clips, cache and run."""
    if not (root / "clips").is_dir():
        write_clips(root / "clips", 10)
    tuner = CSMFineTuner(
        ASSETS, root / preset, preset=preset, backend=Backend("cpu", "float32", ""), cache=root / "cache"
    )
    tuner.layers.append(("golden", SETTINGS))
    rows, faults = read_data((root / "clips",), speaker=5)
    flat = [replace(row[0], speaker=5 + i % 2) for i, row in enumerate(rows)]
    data = tuner.tokenise([flat[i : i + 2] for i in range(0, len(flat), 2)], faults)
    tuner.train(data)
    records = [json.loads(line) for line in (root / preset / "metrics.jsonl").read_text().splitlines()]
    return [{key: record[key] for key in ("step", *KEYS) if key in record} for record in records]


@contextmanager
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """Write losses.json."""
    with tempfile.TemporaryDirectory() as root, one_thread():
        made = {preset: losses(preset, Path(root)) for preset in PRESETS}
    (HERE / "losses.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
