"""Many prompts side by side: one pass over the weights makes a frame of every row, which is what a frame costs.

Each row has its own prompt, sampling, limit and random numbers, and its own part of the cache, which is as long as the
longest row needs. A row that ends leaves, those after it move up, and the next prompt takes the free place. A row's codes are
those it gets alone, but where two logits are closer than a product of several rows rounds (about 1e-6).

Letters in shapes: as in `csm.torch.generate`; B counts the rows that are speaking.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from csm.backend import FrameRequest
from csm.frames import is_end
from csm.torch.choice import Picker, Pickers
from csm.torch.generate import FusedStack, Memory, Span, TorchFrameGenerator, rotations, span
from csm.torch.memory import available_memory

ROWS = {"cpu": 16}  # rows that pay (docs/performance.md)
ROWS_ELSEWHERE = 64
SHARE_OF_MEMORY = 4  # the caches take at most this part of what is free


@dataclass
class Row:
    """A request that is being spoken."""

    number: int
    request: FrameRequest
    picker: Picker
    position: int
    frames: list[np.ndarray] = field(default_factory=list)

    @cached_property
    def codes(self) -> np.ndarray:
        """(K, T)."""
        return np.stack(self.frames, 1) if self.frames else np.zeros((self.picker.shape[0], 0), np.int64)

    def take(self, codes: np.ndarray) -> bool:
        """Add a frame (K,); whether there is more to come."""
        if is_end(codes):
            return False
        self.frames.append(codes)
        return len(self.frames) < self.request.limit


def speak_rows(
    model: TorchFrameGenerator, requests: Sequence[FrameRequest], size: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """See `csm.backend.FrameGenerator.batch`."""
    if not requests:
        return iter(())
    length = max(len(request.prompt) + request.limit - 1 for request in requests)
    assert length <= model.capacity, "prompt and frames exceed the cache"
    return Batch(model, min(len(requests), size or useful_rows(model, length)), length).speak(requests)


def useful_rows(model: TorchFrameGenerator, length: int) -> int:
    """How many rows of this length pay on the model's device, and fit."""
    device = model.audio_table.device
    one = model.backbone.cache(1, 1)
    fit = available_memory(device) // (SHARE_OF_MEMORY * one.nbytes * length)
    return max(1, min(ROWS.get(device.type, ROWS_ELSEWHERE), fit))


class Batch:
    """Places for `size` rows of up to `length` positions; made for one call."""

    @torch.inference_mode()
    def __init__(self, model: TorchFrameGenerator, size: int, length: int):
        self.model, self.size = model, size
        self.cache = model.backbone.cache(
            size, length
        ).zero_()  # hidden positions are multiplied by 0, so must be finite
        self.spans: dict[int, list[Span]] = {}
        self.rows: list[Row] = []

    @torch.inference_mode()
    def speak(self, requests: Sequence[FrameRequest]) -> Iterator[tuple[int, np.ndarray]]:
        """The number and the codes (K, T) of each request, in the order in which they end."""
        waiting, codes, picker = deque(enumerate(requests)), None, None
        while self.rows or waiting:
            states = [] if codes is None else [self._step(codes)]
            if waiting and len(self.rows) < self.size:
                states += self._admit(waiting)
                picker = None
            picker = picker or Pickers([row.picker for row in self.rows])
            codes = self.model.frame(torch.cat(states), picker, self._depth_spans())
            values = codes.cpu().numpy()
            going = [i for i, row in enumerate(self.rows) if row.take(values[i])]
            if len(going) < len(self.rows):
                ended = [row for i, row in enumerate(self.rows) if i not in going]
                codes, picker = self._keep(going, codes), None
                yield from ((row.number, row.codes) for row in ended)

    def _step(self, codes: Tensor) -> Tensor:
        """The backbone over one frame (B, K) of the rows that were there before; their states (B, W)."""
        rows, stack = self.rows, self.model.backbone
        step = ragged_span(stack, self.cache[:, :, : len(rows)], [row.position for row in rows])
        for row in rows:
            row.position += 1
        return stack.append(self.model.embed_codes(codes), step)

    def _admit(self, waiting: deque[tuple[int, FrameRequest]]) -> list[Tensor]:
        """Let requests take the free places; the states (1, W) after their prompts, which are read one by one."""
        states = []
        while waiting and len(self.rows) < self.size:
            place = len(self.rows)
            number, request = waiting.popleft()
            picker = self.model.picker(request.sampling)
            rows, stack = self.model.embed(request.prompt), self.model.backbone
            own = self.cache[:, :, place : place + 1]
            states.append(stack.append(rows, span(stack, own, 0, len(rows))))
            self.rows.append(Row(number, request, picker, len(rows)))
        return states

    def _keep(self, going: Sequence[int], codes: Tensor) -> Tensor | None:
        """Move the rows that go on to the first places; their codes."""
        for place, at in enumerate(going):
            if place != at:
                end = self.rows[at].position
                self.cache[:, :, place, :, :end] = self.cache[:, :, at, :, :end]
        self.rows = [self.rows[at] for at in going]
        return codes[torch.tensor(going, device=codes.device)] if going else None

    def _depth_spans(self) -> list[Span]:
        count = len(self.rows)
        if count not in self.spans:
            self.spans[count] = self.model.depth_spans(count)
        return self.spans[count]


class RaggedMemory(Memory):
    """As `Memory`, for one new row at a place of its own in each sequence."""

    def __init__(self, cache: Tensor, at: tuple[Tensor, Tensor], end: int):
        self.cache, self.at = cache, at
        self.keys, self.values = cache[:, :, :, :end]

    def write(self, keys: Tensor, values: Tensor) -> None:
        sequences, positions = self.at
        for cache, new in zip(self.cache, (keys, values), strict=True):
            cache[sequences, :, positions] = new[:, :, 0]


def ragged_span(stack: FusedStack, cache: Tensor, positions: Sequence[int]) -> Span:
    """One new row for each sequence of the cache, at a position of its own; what lies beyond is hidden."""
    at, end = torch.tensor(positions, device=cache.device), max(positions) + 1
    hidden = torch.arange(end, device=cache.device) > at[:, None]
    mask = torch.zeros(hidden.shape, dtype=cache.dtype, device=cache.device).masked_fill_(hidden, -torch.inf)
    memories = [RaggedMemory(layer, (torch.arange(len(at), device=at.device), at), end) for layer in cache]
    return Span(stack, memories, rotations(stack.cos[at], stack.sin[at]), len(at), mask[:, None, None])
