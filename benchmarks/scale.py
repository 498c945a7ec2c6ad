"""What a large data set costs before the first update: rows written, opened, split, ordered; time and memory of each.

    python -m benchmarks.scale --rows 1000000

The codes are made up and few (2 frames a clip lie on disk; the index says up to 190), since none of what is measured reads
them. Rows are of one or two turns, of 50 speakers, with a name and a text each.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

WORDS = tuple("the quick brown fox jumps over a lazy dog and sleeps in warm sun until night falls".split())  # noqa: SIM905
DIALOGUES = 0.2  # share of conversations that have two turns
TEXT_ROWS = 24


def measure(rows: int, folder: Path, batch_size: int = 8, budget: int = 3000) -> dict[str, Any]:
    """Seconds of each stage, bytes on disk and the highest memory, of a folder of `rows` rows."""
    from csm.data.batches import EpochBatches
    from csm.data.codes import data_fingerprint
    from csm.data.codes_folder import read_turns
    from csm.data.examples import ExampleSet
    from csm.data.sources import make_sources
    from csm.data.split import split

    out: dict[str, Any] = {"rows": rows}
    _stage(out, "write", lambda: write(folder, rows))
    out["bytes_a_row"] = round((folder / "rows").stat().st_size / rows, 1)
    out["memory_before_mb"] = _resident()
    turns, _ = _stage(out, "open", lambda: read_turns(folder, "codec"))
    _stage(out, "fingerprint", lambda: data_fingerprint(turns))
    sources = _stage(out, "sources", lambda: make_sources(turns, Tokenizer(), 2))  # type: ignore[arg-type]
    training, validation = _stage(out, "split", lambda: split(sources, 0.05, 0))
    examples = ExampleSet(training, 2, 2048, 0)
    for name, limit in (("order", 0), ("order_with_budget", budget)):
        batches = _stage(out, name, lambda limit=limit: EpochBatches(examples, batch_size, 1, 1.0, 0, None, limit))
        out[f"{name}_batches"] = batches.updates
    _stage(out, "first_batch", lambda: EpochBatches(ExampleSet(training, 0, 2048, 0), 8, 1, 1.0, 0).update(0, 0))
    held = len(training) + len(validation)
    out["memory_after_mb"], out["peak_mb"] = _resident(), round(_peak(), 1)
    out["array_bytes_a_row"] = round(array_bytes(training, validation, examples, batches) / held, 1)
    return out


class Tokenizer:
    """Stands for the one that the texts were counted with."""

    fingerprint = "tokenizer"

    def encode(self, text: str, speaker: int) -> np.ndarray:
        return np.full(TEXT_ROWS, 5 + speaker)


def write(folder: Path, count: int) -> None:
    """A folder of codes, its rows made one at a time."""
    from csm.data.clips import SETTINGS
    from csm.data.codes_folder import Head, Part, write_rows
    from csm.data.row import Row
    from csm.data.shards import CodeShards

    shards, draw = CodeShards(folder), np.random.default_rng(0)
    place = shards.add(bytes(32), np.ones((2, 2), np.int64))
    shards.close()
    base = np.array(shards.entry(place))

    def turns() -> Iterator[tuple[int, Row, int, np.ndarray, int]]:
        lengths, pairs = draw.integers(12, 190, count), draw.random(count) < DIALOGUES
        conversation = -1
        for i in range(count):
            conversation += not (i and pairs[i] and not pairs[i - 1])
            text = " ".join(WORDS[(i + k * (i % 7 + 1)) % len(WORDS)] for k in range(4 + i % 14))
            name = f"speaker{i % 50:02d}/clip{i:07d}"
            row = Row(name, Path(f"/data/{name}.flac"), f"{text} {i}", i % 50, Path("/data/metadata.jsonl"), i + 1)
            entry = base.copy()
            entry["frames"], entry["sound"] = lengths[i], i
            yield conversation, row, place, entry, TEXT_ROWS

    head = Head("", "codec", SETTINGS, 24_000, 12.5, 2, "tokenizer")
    assert write_rows(folder, Part(), head, turns())


def array_bytes(*holders: Any) -> int:
    """Bytes of the arrays that objects hold, each array once, those that are mapped left out."""
    seen: dict[int, int] = {}

    def look(value: Any, depth: int) -> None:
        if isinstance(value, np.ndarray):
            base = value
            while isinstance(base.base, np.ndarray):
                base = base.base
            if not isinstance(base, np.memmap):
                seen[id(base)] = base.nbytes
        elif depth and isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                look(part, depth - 1)
        elif depth and callable(value) and getattr(value, "__closure__", None):
            for cell in value.__closure__:
                look(cell.cell_contents, depth - 1)
        elif depth and hasattr(value, "__dict__"):
            look(vars(value), depth - 1)

    for holder in holders:
        look(holder, 8)
    return sum(seen.values())


def _stage(out: dict[str, Any], name: str, work: Any) -> Any:
    began, cpu = time.perf_counter(), time.process_time()
    made = work()
    out[f"{name}_cpu_s"] = round(time.process_time() - cpu, 3)
    out[f"{name}_s"] = round(time.perf_counter() - began, 3)
    return made


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _resident() -> float:
    statm = Path("/proc/self/statm")
    return round(int(statm.read_text().split()[1]) * 4096 / 1e6, 1) if statm.is_file() else 0.0


def main() -> None:
    """One JSON object on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(parser.parse_args().rows, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
