"""`metrics.jsonl`: one line a step, cut back to the checkpoint on resume, so that a run's record is that of a straight one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """Append-only lines; `rewind(step)` drops what came after a step."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; floats are rounded to 7 significant digits."""
        rounded = {key: float(f"{value:.7g}") if isinstance(value, float) else value for key, value in record.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(rounded, allow_nan=False) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; a last line cut by a kill is dropped."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def rewind(self, step: int) -> None:
        """Keep the records up to and including `step`."""
        kept = [json.dumps(r) + "\n" for r in self.read() if r["step"] <= step]
        beside = self.path.with_suffix(".part")
        beside.write_text("".join(kept))
        os.replace(beside, self.path)
