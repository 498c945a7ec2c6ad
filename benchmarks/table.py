"""Every bar in one run: full, LoRA and voice steps and generation beside transformers, as a Markdown table.

    python -m benchmarks.table                     # fp32, then bf16; decoder fractions 1 and 1/16
    python -m benchmarks.table --dtypes float32 --rounds 3

Ratios are transformers over csm, round by round: above 1, csm is faster, or smaller. They stand as median (lowest to
highest). Memory is what the work needs above the loaded model, csm's share of transformers'.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from benchmarks.folders import ready_folder
from benchmarks.report import Rounds, ratios
from benchmarks.shapes import SHAPES
from benchmarks.work import BATCHES, TRAIN_BATCH, WORKS, Job
from benchmarks.worker import run_rounds

PEERS = ("transformers", "ours")
HEAD = "| work | dtype | fraction | transformers, s | csm, s | wall time | CPU time | memory above the model |"


def main(argv: Sequence[str]) -> None:
    """Print a row as soon as it is measured."""
    args = parse(argv)
    print(HEAD, "|" + " --- |" * (HEAD.count("|") - 1), sep="\n", flush=True)
    for dtype in args.dtypes.split(","):
        folder = str(ready_folder(args.config, dtype))
        for work in args.works.split(","):
            for fraction in (1.0,) if work in BATCHES else (1.0, 1 / 16):
                batch = BATCHES.get(work, TRAIN_BATCH)
                jobs = [Job(peer, work, args.config, folder, dtype, 1, batch, 50, fraction, 1) for peer in PEERS]
                print(row(jobs, run_rounds(jobs, args.rounds)), flush=True)


def row(jobs: Sequence[Job], results: Sequence[Rounds]) -> str:
    """One line of the table."""
    job, of = jobs[0], {record["of"]: record for record in ratios(jobs, results)}
    times = [f"{median(result['seconds'] for result in rounds):.2f}" for rounds in results]
    spread = [f"{r['median']:.2f} ({r['min']:.2f} - {r['max']:.2f})" for r in (of["seconds"], of["cpu_seconds"])]
    grown = [max(result["grown_rss_mb"] for result in rounds) for rounds in results]
    memory = f"{grown[1] / grown[0]:.2f} ({grown[0]:.0f} MB, {grown[1]:.0f} MB)"
    fraction = "" if job.generates else "1" if job.decoder_fraction == 1 else "1/16"
    return f"| {' | '.join([job.work, job.dtype, fraction, *times, *spread, memory])} |"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=SHAPES, default="small", help="default %(default)s")
    parser.add_argument("--works", default=",".join(WORKS), help="default %(default)s")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
