"""How long scoring takes: everything but words and opinions, on clips of 3 s that say what the reference says.

python -m benchmarks.evaluation [--clips 100]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

VOICE = Path(__file__).parents[1] / "examples" / "voice"
SECONDS = 3.0


def main(clips: int) -> None:
    """Score so many clips with one thread; prints seconds, all in and of the processor alone."""
    import torch

    from csm.audio import load_wave
    from evaluation.reference import Reference, transcript
    from evaluation.score import Sample, score_system

    torch.set_num_threads(1)
    rate, samples = 24_000, []
    paths = sorted((VOICE / "audio").glob("*.flac"))
    for number in range(clips):
        path = paths[number % len(paths)]
        wave = np.resize(load_wave(path, rate), round(SECONDS * rate))
        samples.append(Sample(f"{number}", transcript(path, VOICE), number // len(paths), wave, rate))
    reference = Reference.from_recordings("recordings", samples[:8])
    first = samples[:8]  # of the same text as a recording: melody and loudness are compared too
    samples = [Sample(s.name, first[at % 8].text, s.seed, s.wave, s.rate) for at, s in enumerate(samples)]
    wall, own = time.perf_counter(), time.process_time()
    scores = score_system("clips", samples, reference)
    record = {"clips": clips, "seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - own}
    assert scores.summary["pitch_contour_distance_semitones"] is not None
    print(json.dumps(record))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How long scoring takes.")
    parser.add_argument("--clips", type=int, default=100)
    main(parser.parse_args().clips)
