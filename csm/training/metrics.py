"""`metrics.jsonl`: one line a step, cut back to the checkpoint on resume, so that a run's record is that of a straight one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from csm.errors import CsmError
from csm.whole_file import whole_file


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
        """All records; a last line that a kill cut short is dropped.

        Raises:
            CsmError: a whole line is no record.
        """
        if not self.path.is_file():
            return []
        records = []
        for number, line in enumerate(self.path.read_text(errors="replace").splitlines(keepends=True), 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
            elif line.endswith("\n"):
                raise CsmError(
                    f"{self.path}, line {number} is no record of a step.", "Take the line out, or use --fresh."
                )
        return records

    def rewind(self, step: int) -> None:
        """Keep the records up to and including `step`."""
        kept = [json.dumps(r) + "\n" for r in self.read() if r["step"] <= step]
        with whole_file(self.path) as file:
            file.write("".join(kept).encode())
