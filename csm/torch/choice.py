"""From logits to codes: greedy or top-k, for one row or for several with settings and random numbers of their own.

Letters in shapes: B rows, K codebooks, V audio vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from csm.backend import Sampling


class Choice(Protocol):
    """From logits to codes, a frame's K in turn."""

    def new_frame(self) -> None: ...

    def __call__(self, logits: Tensor, codebook: int) -> Tensor:
        """logits (B, V) -> the chosen codes (B,)."""
        ...


class Picker:
    """Greedy or top-k choice for one row; the noise of a whole frame is drawn at once (Gumbel's trick).

    Each code of each codebook has noise of its own. So where rounding turns two candidates' ranks about, as a product of
    other shape does now and then, the choice stays.

    Args:
        sampling: temperature, top-k and seed.
        codebooks: K.
        codes: V, how many logits there are to choose from.
        device: where they are.
    """

    def __init__(self, sampling: Sampling, codebooks: int, codes: int, device: torch.device):
        self.temperature, self.shape = sampling.temperature, (codebooks, codes)
        self.top_k = min(sampling.top_k, codes) or codes
        self.noise = torch.empty(self.shape if self.temperature > 0 else 0, device=device)
        self.generator = torch.Generator(device).manual_seed(sampling.seed)

    def new_frame(self) -> None:
        if self.temperature > 0:
            self.draw(self.noise)

    def draw(self, noise: Tensor) -> None:
        """Fill (K, V) with a frame's noise, which is to be taken from the logits."""
        torch.rand(self.shape, generator=self.generator, out=noise)
        noise.log_().neg_().log_()

    def __call__(self, logits: Tensor, codebook: int) -> Tensor:
        """logits (1, V) -> the chosen code (1,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled, noise = logits.float() / self.temperature, self.noise[codebook]
        if self.top_k == len(noise):
            return (scaled - noise).argmax(-1)
        best, ids = scaled.topk(self.top_k, sorted=False)
        return ids.gather(-1, (best - noise.take(ids)).argmax(-1, keepdim=True)).squeeze(-1)


class Pickers:
    """Chooses for several rows at once what each row's own `Picker` would, from the same random numbers."""

    def __init__(self, rows: Sequence[Picker]):
        device = rows[0].noise.device
        self.drawing = [(i, row) for i, row in enumerate(rows) if row.temperature > 0]
        self.greedy = torch.tensor([row.temperature == 0 for row in rows], device=device)
        self.temperatures = torch.tensor([[row.temperature or 1.0] for row in rows], device=device)
        widths = [row.top_k if row.temperature > 0 else 1 for row in rows]
        self.widest, self.alike = max(widths), min(widths) == max(widths)
        self.beyond = torch.arange(self.widest, device=device) >= torch.tensor(widths, device=device)[:, None]
        self.noise = torch.zeros(len(rows), *rows[0].shape, device=device) if self.drawing else None

    def new_frame(self) -> None:
        for i, row in self.drawing:
            assert self.noise is not None
            row.draw(self.noise[i])

    def __call__(self, logits: Tensor, codebook: int) -> Tensor:
        """logits (B, V) -> the chosen codes (B,)."""
        if self.noise is None:
            return logits.argmax(-1)
        best, ids = (logits.float() / self.temperatures).topk(self.widest, sorted=not self.alike)
        best = best - self.noise[:, codebook].gather(-1, ids)
        if not self.alike:
            best.masked_fill_(self.beyond, -torch.inf)
        picked = ids.gather(-1, best.argmax(-1, keepdim=True)).squeeze(-1)
        return picked if len(self.drawing) == len(logits) else torch.where(self.greedy, logits.argmax(-1), picked)
