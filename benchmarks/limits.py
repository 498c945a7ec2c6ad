"""What the machine could do at best on one thread: its matmul and memory rates, and the least time that the work needs.

    python -m benchmarks.limits --config small

A training step is bound by its multiplications, a generated frame by reading the weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from benchmarks.report import show
from benchmarks.shapes import AUDIO_VOCAB, SHAPES, Shape, Stack
from benchmarks.work import TEXT_TOKENS, TRAIN_FRAMES

FORWARD_AND_BACKWARD = 6  # flops for each weight and row: a product forward, two backward


def main() -> None:
    """Measure, work it out, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=SHAPES, default="small", help="default %(default)s")
    config = parser.parse_args().config
    shape = SHAPES[config]
    flops = matmul_rate()
    record = {"limits": config, "matmul_gflops": flops / 1e9}
    for fraction in (1.0, 1 / 16):
        record[f"step_s_at_{fraction}"] = step_flops(shape, 2, fraction) / flops
    show(record | {"read_gb_per_s": 2**29 / read_seconds(2**27) / 1e9, "frame_ms": 1000 * frame_seconds(shape)})


def layer_weights(stack: Stack) -> int:
    """Weights of one layer's matrices."""
    width, head = stack.hidden_size, stack.hidden_size // stack.num_attention_heads
    attention = 2 * width * head * (stack.num_attention_heads + stack.num_key_value_heads)
    return attention + 3 * width * stack.intermediate_size


def stack_weights(stack: Stack) -> int:
    return stack.num_hidden_layers * layer_weights(stack)


def step_flops(shape: Shape, batch: int, fraction: float) -> float:
    """Of a full training step's matrices; attention itself adds a hundredth."""
    frames = batch * TRAIN_FRAMES
    depth_frames = frames * fraction
    projection = shape.backbone.hidden_size * shape.depth.hidden_size
    first_head = shape.backbone.hidden_size * AUDIO_VOCAB
    heads = (shape.codebooks - 1) * shape.depth.hidden_size * AUDIO_VOCAB
    weights_by_rows = (
        stack_weights(shape.backbone) * (frames + batch * TEXT_TOKENS)
        + first_head * frames
        + (stack_weights(shape.depth) + projection) * depth_frames * shape.codebooks
        + heads * depth_frames
    )
    return FORWARD_AND_BACKWARD * weights_by_rows


def frame_seconds(shape: Shape) -> float:
    """Of a frame at batch 1: backbone and heads are read once, the depth decoder for each codebook after the first."""
    others = shape.codebooks - 1
    heads = (shape.backbone.hidden_size + others * shape.depth.hidden_size) * AUDIO_VOCAB
    depth = stack_weights(shape.depth) + shape.backbone.hidden_size * shape.depth.hidden_size
    return read_seconds(stack_weights(shape.backbone) + heads) + others * read_seconds(depth)


def matmul_rate() -> float:
    """Flops a second of fp32 products of 2048 x 2048."""
    import torch

    torch.set_num_threads(1)
    left, right, out = (torch.rand(2048, 2048) for _ in range(3))
    return 2 * 2048**3 / best_time(lambda: torch.mm(left, right, out=out))


def read_seconds(weights: float) -> float:
    """How long one row takes through that many fp32 weights, in matrices of 2 MB; what fits a cache is read from there."""
    import torch

    torch.set_num_threads(1)
    row, matrices = torch.rand(1, 512), torch.rand(max(1, round(weights / 2**19)), 512, 1024)
    return best_time(lambda: [torch.mm(row, matrix) for matrix in matrices])


def best_time(work: Callable[[], object]) -> float:
    """Seconds of the fastest of ten tries."""
    work()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
