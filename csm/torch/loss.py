"""The loss of a batch: cross entropy of codebook 0 from the backbone, and of codebooks 1..K-1 from the depth decoder.

The row before a target predicts it. The audio table is read once a batch, by its distinct entries, so that its gradient
is made once however often a code occurs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csm.data.batches import Batch
from csm.torch.depth_loss import depth_loss, depth_losses_each
from csm.torch.kernels import cross_entropy_each, cross_entropy_sum
from csm.torch.model import Csm


@dataclass(frozen=True)
class Codes:
    """The codes of a batch's audio rows: distinct rows of the audio table (U, W) and which is where, `(Na, K)`."""

    table: Tensor
    at: Tensor
    targets: Tensor


def read_codes(model: Csm, batch: Batch) -> Codes:
    """Gather the audio table's rows that the batch needs."""
    device = model.audio_table.device
    offsets = np.arange(batch.codes.shape[1]) * model.config.vocab_size
    distinct, at = np.unique(batch.codes + offsets, return_inverse=True)
    table = model.depth_decoder.model.embed_tokens(torch.from_numpy(distinct).to(device))
    return Codes(table, torch.from_numpy(at.reshape(batch.codes.shape)).to(device), _on(device, batch.codes))


def backbone_states(model: Csm, batch: Batch, codes: Codes, dtype: torch.dtype) -> Tensor:
    """The backbone's state before each target, (N, W)."""
    device = codes.at.device
    text = model.embed_text_tokens(_on(device, batch.text_ids))
    audio = F.embedding_bag(codes.at, codes.table, mode="sum")
    rows = text.new_zeros(batch.shape[0] * batch.shape[1], text.shape[1])
    rows = rows.index_copy(0, _on(device, batch.text_at), text)
    rows = rows.index_copy(0, _on(device, batch.audio_at), audio)
    hidden = model.backbone_model(rows.view(*batch.shape, -1).to(dtype)).flatten(0, 1)
    return hidden[_on(device, batch.audio_at[batch.targets] - 1)]


def loss(model: Csm, batch: Batch, codes: Codes, states: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of cross entropies, (semantic, acoustic), each a scalar with a gradient."""
    first = codes.targets[_on(states.device, batch.targets)][:, 0]
    added = model.lm_head.low_rank(states[None])
    semantic = cross_entropy_sum(states[None], model.lm_head.heads(states.dtype), first[None], added)
    return semantic, depth_loss(model.depth_decoder, *_depth_frames(batch, codes, states))


@torch.no_grad()
def losses_each(model: Csm, batch: Batch, codes: Codes, states: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropies one by one: of codebook 0 (N,), of the others (S, K - 1)."""
    first = codes.targets[_on(states.device, batch.targets)][:, 0]
    added = model.lm_head.low_rank(states[None])
    semantic = cross_entropy_each(states[None], model.lm_head.heads(states.dtype), first[None], added)
    return semantic[0], depth_losses_each(model.depth_decoder, *_depth_frames(batch, codes, states))


def _depth_frames(batch: Batch, codes: Codes, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `depth_loss` needs of the frames that train the depth decoder: states, table, which rows of it, targets."""
    frames = _on(states.device, batch.targets[batch.depth])
    return states[_on(states.device, batch.depth)], codes.table, codes.at[frames], codes.targets[frames]


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
