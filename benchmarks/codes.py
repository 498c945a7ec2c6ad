"""How fast clips become codes beside the codec alone, and an epoch's batches beside both.

    python -m benchmarks.codes                       # csm-tiny's codec
    python -m benchmarks.codes --codec mimi          # Mimi in its own shape, weights random
    python -m benchmarks.codes --audio FOLDER        # of recordings, in place of made-up clips

One JSON object on stdout: in each round the codec alone encodes the prepared waves, then the same clips are tokenised from
their files into an empty folder, then an epoch is read from it; medians over the rounds of each ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def measure(codec: Any, files: list[Path], folder: Path, rounds: int) -> dict[str, Any]:
    """The rounds' ratios; see the module."""
    from csm.data.ahead import spare_threads
    from csm.data.batches import EpochBatches
    from csm.data.clips import load_sound
    from csm.data.codes import CodeCache, tokenise
    from csm.data.examples import ExampleSet
    from csm.data.row import Row
    from csm.data.sources import make_sources
    from csm.model_folder import open_folder
    from csm.tokenizer import TextTokenizer

    tokenizer, seconds, waves, rows = TextTokenizer(open_folder("csm-tiny").beside), 0.0, [], []
    for path in files:
        wave = load_sound(path, codec.sample_rate)
        if isinstance(wave, np.ndarray):
            waves.append(wave)
            seconds += len(wave) / codec.sample_rate
            rows.append([Row(path.stem, path, "a" * max(1, int(5 * len(wave) / codec.sample_rate)), 0, path)])
    codec.encode(waves[0])
    found: list[dict[str, float]] = []
    for number in range(rounds):
        cache = CodeCache(folder / str(number), codec)
        alone = _seconds(lambda: [codec.encode(wave) for wave in waves])
        ours = _seconds(lambda cache=cache: tokenise(rows, cache, threads=spare_threads()))
        again = CodeCache(folder / str(number), codec)
        cached = _seconds(lambda again=again: tokenise(rows, again, threads=spare_threads()))
        turns = tokenise(rows, again).turns
        batches = EpochBatches(ExampleSet(make_sources(turns, tokenizer, codec.codebooks), 0, 4096, 0), 8, 1, 1.0, 0)
        epoch = _seconds(lambda batches=batches: [batches.update(0, n) for n in range(batches.updates)])
        found.append({"codec_s": alone, "tokenise_s": ours, "found_again_s": cached, "epoch_s": epoch})
    ratios = {
        "codec_over_tokenise": [r["codec_s"] / r["tokenise_s"] for r in found],
        "codec_over_epoch": [r["codec_s"] / r["epoch_s"] for r in found],
        "tokenise_over_epoch": [r["tokenise_s"] / r["epoch_s"] for r in found],
        "tokenise_over_found_again": [r["tokenise_s"] / r["found_again_s"] for r in found],
    }
    out: dict[str, Any] = {"clips": len(waves), "seconds_of_sound": round(seconds, 1), "threads_ahead": spare_threads()}
    out |= {key: round(statistics.median(r[key] for r in found), 4) for key in found[0]}
    return out | {key: [round(f(values), 2) for f in (statistics.median, min, max)] for key, values in ratios.items()}


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def made_up_clips(folder: Path, count: int) -> list[Path]:
    """Clips of 2 to 8 s in wav and flac at 16, 24 and 44.1 kHz."""
    import soundfile

    files, draw = [], np.random.default_rng(0)
    for i in range(count):
        rate, seconds = (16_000, 24_000, 44_100)[i % 3], draw.uniform(2, 8)
        t = np.arange(int(seconds * rate)) / rate
        pitch = 2 * np.pi * np.cumsum(120 + 20 * np.sin(5 * t) + 5 * i) / rate
        wave = sum(np.sin(k * pitch) / k for k in range(1, 9)) * (0.6 + 0.4 * np.sin(20 * t))
        files.append(folder / f"{i:03d}.{('wav', 'flac')[i % 2]}")
        soundfile.write(files[-1], 0.1 * wave + 0.002 * draw.standard_normal(len(t)), rate)
    return files


def make_codec(name: str) -> Any:
    """csm-tiny's codec, or Mimi's own shape with random weights: as slow as Kyutai's."""
    from csm.backend import Backend
    from csm.model_folder import open_folder

    if name == "csm-tiny":
        return Backend("cpu", "float32", "").codec(open_folder("csm-tiny"))
    from transformers import MimiConfig, MimiModel
    from transformers.core_model_loading import revert_weight_conversion

    from csm.codec import load_codec

    model = MimiModel(MimiConfig())
    return load_codec({**model.config.to_dict()}, revert_weight_conversion(model, model.state_dict()), "cpu", 32)


def main() -> None:
    """One JSON object on stdout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", choices=("csm-tiny", "mimi"), default="csm-tiny")
    parser.add_argument("--audio", type=Path, help="a folder of recordings")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = sorted(p for p in chosen.audio.rglob("*") if p.is_file())[: chosen.clips] if chosen.audio else None
        files = found or made_up_clips(Path(folder), chosen.clips)
        print(json.dumps(measure(make_codec(chosen.codec), files, Path(folder) / "codes", chosen.rounds), indent=1))


if __name__ == "__main__":
    main()
