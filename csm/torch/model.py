"""CSM in torch: a Llama backbone over text and audio frames, and a Llama depth decoder over the codebooks of a frame.

Parameter names are those of `transformers.CsmForConditionalGeneration`, so nothing is renamed on the way in or out; the
audio table, which backbone and depth decoder share, exists once, under the name it is saved by. Source: Sesame's
"Crossing the uncanny valley of conversational voice" (2025) and the CSM-1B checkpoint; layouts as in transformers.

Letters in shapes: B batch, T rows, N audio frames, K codebooks, W backbone width, D depth width, V audio vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from csm.config import ModelConfig, Stack
from csm.torch.kernels import feed_forward, rms_norm, rotate, swiglu

LowRank = tuple[Tensor, Tensor]  # what heads read a second time (C, N, r), and the heads of that (C, r, V)


class Linear(nn.Module):
    """A matrix that follows its input's dtype, so that fp32 weights can serve bf16 activations.

    A CSM has no biases; only an adapter that was trained with them and merged leaves one (`csm.torch.lora`).
    """

    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.register_parameter("bias", None)

    def forward(self, rows: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(rows.dtype)
        return F.linear(rows, self.weight.to(rows.dtype), bias)

    @property
    def is_plain(self) -> bool:
        """Whether it is its weight and nothing more."""
        return self.bias is None

    def with_others(self, rows: Tensor, *others: Linear) -> tuple[Tensor, ...]:
        """What this one and `others` make of the same rows."""
        return tuple(linear(rows) for linear in (self, *others))

    def heads(self, dtype: torch.dtype) -> Tensor:
        """The matrix as one head, (1, in, out)."""
        return self.weight.t()[None].to(dtype)

    def low_rank(self, rows: Tensor) -> LowRank | None:
        """What is to be added to the logits of `rows` (1, N, in): nothing, where there is no adapter and no bias."""
        if self.bias is None:
            return None
        return rows.new_ones(*rows.shape[:2], 1), self.bias.to(rows.dtype)[None, None]


class Table(nn.Module):
    """An embedding table `(entries, width)`; with `sparse` set, its gradient has the rows that were read and no others."""

    sparse = False

    def __init__(self, entries: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(entries, width))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight, sparse=self.sparse)


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich, 2019), computed in fp32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, rows: Tensor) -> Tensor:
        return rms_norm(rows, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with grouped key heads and rotary positions."""

    def __init__(self, stack: Stack):
        super().__init__()
        self.head_dim, self.groups = stack.head_dim, stack.num_key_value_heads
        queries, keys = stack.num_attention_heads * stack.head_dim, self.groups * stack.head_dim
        self.q_proj, self.o_proj = Linear(stack.hidden_size, queries), Linear(queries, stack.hidden_size)
        self.k_proj, self.v_proj = Linear(stack.hidden_size, keys), Linear(stack.hidden_size, keys)

    def forward(self, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width); `cos` and signed `sin` are `(T, 1, head_dim)`."""
        batch, length, _ = rows.shape
        query, key, value = (
            part.view(batch, length, -1, self.head_dim)
            for part in self.q_proj.with_others(rows, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, stack: Stack):
        super().__init__()
        self.gate_proj = Linear(stack.hidden_size, stack.intermediate_size)
        self.up_proj = Linear(stack.hidden_size, stack.intermediate_size)
        self.down_proj = Linear(stack.intermediate_size, stack.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        parts = (self.gate_proj, self.up_proj, self.down_proj)
        if all(part.is_plain for part in parts):
            return feed_forward(rows, *(part.weight.to(rows.dtype) for part in parts))
        return self.down_proj(swiglu(*self.gate_proj.with_others(rows, self.up_proj)))


class Layer(nn.Module):
    """Attention and feed-forward, each behind its norm and beside its residual."""

    def __init__(self, stack: Stack):
        super().__init__()
        self.self_attn, self.mlp = Attention(stack), FeedForward(stack)
        self.input_layernorm = Norm(stack.hidden_size, stack.rms_norm_eps)
        self.post_attention_layernorm = Norm(stack.hidden_size, stack.rms_norm_eps)

    def forward(self, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows = rows + self.self_attn(self.input_layernorm(rows), cos, sin)
        return rows + self.mlp(self.post_attention_layernorm(rows))


class Transformer(nn.Module):
    """A Llama stack over embedded rows `(B, T, width)`, its final norm included.

    With `checkpointing` set, on this instance alone, a layer keeps its input only and is run again for its gradients
    (Chen et al., 2016): the same numbers for less memory.
    """

    def __init__(self, stack: Stack):
        super().__init__()
        self.stack, self.checkpointing = stack, False
        self.layers = nn.ModuleList(Layer(stack) for _ in range(stack.num_hidden_layers))
        self.norm = Norm(stack.hidden_size, stack.rms_norm_eps)

    def forward(self, rows: Tensor) -> Tensor:
        cos, sin = rope_tables(self.stack, rows.shape[1], rows.device, rows.dtype)
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                rows = checkpoint(layer, rows, cos, sin, use_reentrant=False)
            else:
                rows = layer(rows, cos, sin)
        return self.norm(rows)


class DepthTransformer(Transformer):
    """The depth decoder's stack, which owns the shared audio table and the projection from backbone width."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.depth)
        self.embed_tokens = Table(config.num_codebooks * config.vocab_size, config.backbone.hidden_size)
        self.inputs_embeds_projector = Linear(config.backbone.hidden_size, config.depth.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        """(N, K, W): the backbone's state, then the embedded codes 0..K-2 -> (N, K, D)."""
        return super().forward(self.inputs_embeds_projector(rows))


class CodebookHeads(nn.Module):
    """One head for each codebook after the first: `weight` is `(K - 1, D, V)`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_codebooks - 1, config.depth.hidden_size, config.vocab_size))

    def forward(self, rows: Tensor) -> Tensor:
        """(K - 1, N, D) -> logits (K - 1, N, V)."""
        logits = torch.bmm(rows, self.heads(rows.dtype))
        added = self.low_rank(rows)
        return logits if added is None else torch.baddbmm(logits, *added)

    def heads(self, dtype: torch.dtype) -> Tensor:
        """(K - 1, D, V)."""
        return self.weight.to(dtype)

    def low_rank(self, rows: Tensor) -> LowRank | None:
        """What is to be added to the logits of `rows` (K - 1, N, D): nothing, where there is no adapter."""
        return None


class DepthDecoder(nn.Module):
    """From a backbone state and the codes so far to the next code of the same frame."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.model, self.codebooks_head = DepthTransformer(config), CodebookHeads(config)


class Csm(nn.Module):
    """The whole model without its codec.

    `forward` gives logits for looking at and for tests; training goes through `csm.torch.loss`, generation through
    `csm.torch.generate`, which use the same parts and compute no logits that nobody needs.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_text_tokens = Table(config.text_vocab_size, config.backbone.hidden_size)
        self.backbone_model = Transformer(config.backbone)
        self.lm_head = Linear(config.backbone.hidden_size, config.vocab_size)
        self.depth_decoder = DepthDecoder(config)

    def checkpoint_layers(self, on: bool) -> None:
        """Whether this model's layers trade time for memory in training; see `Transformer`."""
        self.backbone_model.checkpointing = self.depth_decoder.model.checkpointing = on

    @property
    def audio_table(self) -> Tensor:
        """(K * V, W): row `codebook * V + code`."""
        return self.depth_decoder.model.embed_tokens.weight

    def offsets(self) -> Tensor:
        """(K,): where each codebook's rows start in the audio table."""
        return torch.arange(self.config.num_codebooks, device=self.audio_table.device) * self.config.vocab_size

    def embed(self, frames: Tensor, mask: Tensor) -> Tensor:
        """frames, mask (B, T, K + 1) -> (B, T, W): the sum of the embeddings of the columns that the mask lets in."""
        audio = self.depth_decoder.model.embed_tokens(frames[..., :-1] + self.offsets())
        text = self.embed_text_tokens(frames[..., -1])
        return (audio * mask[..., :-1, None]).sum(2) + text * mask[..., -1:]

    def forward(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits of every row.

        Args:
            frames: (B, T, K + 1) int64.
            mask: (B, T, K + 1) bool.

        Returns:
            logits of codebook 0 for row t + 1, (B, T, V), and of codebooks 1..K-1 of row t + 1 given its earlier codes,
            (B, T - 1, K - 1, V), meaningful where row t + 1 is an audio frame.
        """
        hidden = self.backbone_model(self.embed(frames, mask))
        first = self.lm_head(hidden)
        codes = frames[:, 1:, :-1]
        depth = self.depth_logits(hidden[:, :-1].flatten(0, 1), codes.flatten(0, 1))
        return first, depth.unflatten(0, codes.shape[:2])

    def depth_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """hidden (N, W) and codes (N, K) -> logits (N, K - 1, V) of codes 1..K-1."""
        embedded = self.depth_decoder.model.embed_tokens(codes[:, :-1] + self.offsets()[:-1])
        out = self.depth_decoder.model(torch.cat([hidden[:, None], embedded], 1))
        return self.depth_decoder.codebooks_head(out[:, 1:].transpose(0, 1)).transpose(0, 1)


def rope_tables(stack: Stack, length: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin `(length, 1, head_dim)`; sin carries the minus of the half that is rotated down."""
    frequency = torch.from_numpy(stack.inverse_frequencies()).to(device)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)
