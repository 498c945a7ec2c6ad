"""Measure csm beside transformers and peft, or beside any implementation with an adapter; JSON lines on stdout.

    python -m benchmarks.peers generate train-full --interleave transformers,ours
    python -m benchmarks.peers train-full --decoder-fraction 0.0625 --interleave transformers,ours
    python -m benchmarks.peers generate train-full --check

An adapter is a function `load(folder, dtype, threads)` named python:MODULE:FUNCTION; what it returns is described in
benchmarks/work.py. Loading and warm-up are not in the times, but in the peak memory. On a busy machine trust the
ratios, which pair the measurements of one round.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.folders import ready_folder
from benchmarks.report import LOSS_TOLERANCE, comparison, measurement, ratios, show
from benchmarks.shapes import SHAPES
from benchmarks.work import BATCHES, TRAIN_BATCH, WORKS, Job
from benchmarks.worker import ADAPTERS, run_rounds

REFERENCE = "transformers"
CHECKED_UPDATES = 3


def main(argv: Sequence[str]) -> int:
    """Do each work; 1 where a check failed."""
    args = parse(argv)
    args.folder = ready_folder(args.config, args.dtype, args.folder)
    passed = [(check if args.check else measure)(args, work) for work in args.works]
    return 0 if all(passed) else 1


def check(args: argparse.Namespace, work: str) -> bool:
    """Time nothing: does the implementation do transformers' work?"""
    jobs = jobs_of(args, work, [REFERENCE, args.impl])
    rounds = 1 if work in BATCHES else CHECKED_UPDATES
    expected, found = run_rounds([replace(job, warmup=0) for job in jobs], rounds)
    record = comparison(jobs[1], expected, found)
    show(record)
    return bool(record["passed"])


def measure(args: argparse.Namespace, work: str) -> bool:
    """Time one implementation, or several in turn."""
    jobs = jobs_of(args, work, args.interleave.split(",") if args.interleave else [args.impl])
    results = run_rounds(jobs, args.rounds)
    for job, rounds in zip(jobs, results, strict=True):
        show(measurement(job, rounds))
    for record in ratios(jobs, results):
        show(record)
    return True


def jobs_of(args: argparse.Namespace, work: str, impls: Sequence[str]) -> list[Job]:
    """One job for each implementation."""
    batch = args.batch or BATCHES.get(work, TRAIN_BATCH)
    shared = (work, args.config, str(args.folder), args.dtype, args.threads, batch, args.frames, args.decoder_fraction)
    return [Job(impl, *shared, args.warmup) for impl in impls]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    checked = f"has --impl {REFERENCE}' codes, and losses of {CHECKED_UPDATES} updates within {LOSS_TOLERANCE}?"
    known = f"{', '.join(ADAPTERS)} or python:MODULE:FUNCTION"
    add("works", nargs="+", choices=WORKS, metavar="WORK", help=", ".join(WORKS))
    add("--impl", default="ours", help=f"{known} (default %(default)s)")
    add("--interleave", metavar="A,B", help="measure these in turn, and give A over B for each round")
    add("--check", action="store_true", help=f"time nothing: {checked}; exit status 1 if not")
    add("--config", choices=SHAPES, default="small", help="default %(default)s")
    add("--folder", type=Path, help="model folder, made where it is missing (default: in the temporary folder)")
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="default %(default)s; --check is for float32",
    )
    add(
        "--decoder-fraction", type=share, default=1.0, help="share of frames that train the depth decoder (default 1.0)"
    )
    add("--batch", type=int, help="default 2 to train, 1 to generate, 8 to generate-batch")
    add("--frames", type=int, default=50, help="frames to generate (default %(default)s)")
    add("--rounds", type=int, default=5, help="measured rounds (default %(default)s)")
    add("--warmup", type=int, default=1, help="rounds before them (default %(default)s)")
    add("--threads", type=int, default=1, help="default %(default)s")
    return parser.parse_args(argv)


def share(text: str) -> float:
    """A number above 0 and up to 1; transformers fails where no frame is left."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("it goes from above 0 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
