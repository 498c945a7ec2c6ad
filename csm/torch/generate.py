"""One frame at a time: caches allocated once, q/k/v and gate/up in one matmul each, norms folded into the matrices after
them, every view of a position prepared before its layers run, random numbers drawn once a frame.

Codes equal transformers' greedy ones but where the two best logits are closer than fused matmuls round (about 1e-6).
Letters in shapes: B sequences (one here, several in `csm.torch.batch`), L new rows of each, W width, H query heads, G key
heads, D head width, K codebooks, V audio vocabulary. Rows stand sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csm.backend import FrameRequest, Sampling
from csm.config import Stack
from csm.frames import Frames, is_end
from csm.torch.choice import Choice, Picker
from csm.torch.model import Csm, Layer, Linear, Transformer, rope_tables

GAP = 16  # floats: a cache line


def fused(*weights: Tensor, norm: Tensor | None = None) -> Tensor:
    """One matrix (in, sum of outs) for several (out, in) over the same rows, the norm's weight before them folded in.

    fp32 on CPU is laid out input-major, with a gap after each row: one row passes a wide matrix a quarter faster, and sixteen
    rows one whose rows would lie a power of two apart by a third (measured, docs/performance.md).
    """
    weight = torch.cat([w.detach() for w in weights]) if len(weights) > 1 else weights[0].detach()
    if norm is not None:
        weight = (weight.float() * norm.detach().float()).to(weight.dtype)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return weight.t()
    outputs, inputs = weight.shape
    return weight.new_empty(inputs, outputs + GAP)[:, :outputs].copy_(weight.t())


class Fused:
    """Several linears over the same rows as one matrix; a bias where an adapter left one (`csm.torch.lora`).

    `first` scales the first of them.
    """

    def __init__(self, *linears: Linear, norm: Tensor | None = None, first: float = 1.0):
        scales = [first, *[1.0] * (len(linears) - 1)]
        weights = [
            linears[0].weight * first if first != 1 else linears[0].weight,
            *(each.weight for each in linears[1:]),
        ]
        self.matrix = fused(*weights, norm=norm)
        self.bias: Tensor | None = None
        if any(each.bias is not None for each in linears):
            zeros = [each.weight.new_zeros(len(each.weight)) for each in linears]
            found = [z if each.bias is None else each.bias for each, z in zip(linears, zeros, strict=True)]
            self.bias = torch.cat([bias.detach() * s for bias, s in zip(found, scales, strict=True)])

    def __call__(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """(L, in) -> (L, sum of outs)."""
        if self.bias is None:
            return torch.mm(rows, self.matrix, out=out)
        return torch.addmm(self.bias, rows, self.matrix, out=out)

    def add_to(self, sums: Tensor, rows: Tensor) -> None:
        """Add what it makes of `rows` to `sums`."""
        sums.addmm_(rows, self.matrix)
        if self.bias is not None:
            sums.add_(self.bias)


class FusedLayer:
    """The weights of one layer, ready for few rows. Scores are scaled by way of the queries' weights."""

    def __init__(self, layer: Layer):
        attention, mlp = layer.self_attn, layer.mlp
        linears, scale = (attention.q_proj, attention.k_proj, attention.v_proj), attention.head_dim**-0.5
        self.qkv = Fused(*linears, norm=layer.input_layernorm.weight, first=scale)
        self.out = Fused(attention.o_proj)
        self.gate_up = Fused(mlp.gate_proj, mlp.up_proj, norm=layer.post_attention_layernorm.weight)
        self.down = Fused(mlp.down_proj)


class FusedStack:
    """A Llama stack that reads its past from caches which its callers own. Every cache row is written before it is read."""

    def __init__(self, transformer: Transformer, length: int):
        self.stack: Stack = transformer.stack
        self.length = length
        self.norm = transformer.norm.weight.detach()
        self.layers = [FusedLayer(layer) for layer in transformer.layers]  # type: ignore[arg-type]
        self.eps = torch.tensor(self.stack.rms_norm_eps, device=self.norm.device)
        self.cos, self.sin = (
            table[:, 0] for table in rope_tables(self.stack, length, self.norm.device, self.norm.dtype)
        )

    def cache(self, sequences: int, length: int) -> Tensor:
        """Room for the keys and values of every layer, (layers, 2, B, G, length, D), not filled."""
        shape = self.stack
        return self.norm.new_empty(len(self.layers), 2, sequences, shape.num_key_value_heads, length, shape.head_dim)

    def append(self, rows: Tensor, span: Span) -> Tensor:
        """Run `rows` (B * L, W) at the span's positions; the output of each sequence's last (B, W)."""
        x = rows.clone()
        for layer, memory in zip(self.layers, span.memories, strict=True):
            layer.qkv(self._normed(x), span.qkv)
            torch.bmm(span.unturned, span.turn, out=span.turned)
            memory.write(span.keys, span.values)
            mixed = F.scaled_dot_product_attention(
                span.queries, memory.keys, memory.values, span.mask, scale=1.0, enable_gqa=True
            )
            layer.out.add_to(x, span.rows_of(mixed))
            layer.gate_up(self._normed(x), span.gate_up)
            layer.down.add_to(x, F.silu(span.gate).mul_(span.up))
        return self._normed(x[span.last]).mul_(self.norm)

    def _normed(self, rows: Tensor) -> Tensor:
        """RMSNorm without its weight."""
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.eps, length, length, value=1 / rows.shape[-1]).rsqrt_()
        return (rows * scale).to(rows.dtype)


class Memory:
    """Views of one layer's cache (2, B, G, length, D) for positions start..end-1: where they write, and what they see."""

    def __init__(self, cache: Tensor, start: int, end: int):
        self.new_keys, self.new_values = cache[:, :, :, start:end]
        self.keys, self.values = cache[:, :, :, :end]

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values (B, G, L, D)."""
        self.new_keys.copy_(keys)
        self.new_values.copy_(values)


class Span:
    """Buffers and views for L new rows of each of B sequences, made once and not for every layer.

    Args:
        memories: one for each layer.
        turn: rotations (B * L, D, D) of the rows' positions.
        mask: which of the `end` positions a row sees, to be spread over (B, H, L, end); None for all.
    """

    def __init__(
        self, stack: FusedStack, memories: Sequence[Memory], turn: Tensor, sequences: int, mask: Tensor | None
    ):
        shape, rows = stack.stack, len(turn)
        heads, groups, width = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self.memories, self.turn, self.mask = memories, turn, mask
        self.qkv = stack.norm.new_empty(rows, (heads + 2 * groups) * width)
        new = rows // sequences
        self.unturned = self.qkv.view(rows, -1, width)[:, : heads + groups]
        self.values = self.qkv.view(sequences, new, -1, width)[:, :, heads + groups :].transpose(1, 2)
        self.turned = stack.norm.new_empty(rows, heads + groups, width)
        turned = self.turned.view(sequences, new, -1, width).transpose(1, 2)
        self.keys = turned[:, heads:]
        self.gate_up = stack.norm.new_empty(rows, 2 * shape.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, -1)
        self.one, self.last = new == 1, slice(new - 1, None, new)
        # Query heads that share a key head become rows, so no key is repeated.
        self.queries = self.turned[:, :heads].view(sequences, groups, -1, width) if self.one else turned[:, :heads]

    def rows_of(self, mixed: Tensor) -> Tensor:
        """What attention gave, as rows (B * L, H * D)."""
        return mixed.flatten(1) if self.one else mixed.transpose(1, 2).flatten(2).flatten(0, 1)


def span(stack: FusedStack, cache: Tensor, start: int, end: int) -> Span:
    """Positions start..end-1 of all sequences of a cache (layers, 2, B, G, length, D)."""
    sequences, new, device = cache.shape[2], end - start, cache.device
    turn = rotations(stack.cos[start:end], stack.sin[start:end])
    if sequences > 1:
        turn = turn.expand(sequences, *turn.shape).flatten(0, 1) if new > 1 else turn.expand(sequences, -1, -1)
    mask = None if new == 1 else torch.ones(new, end, dtype=torch.bool, device=device).tril(start)
    return Span(stack, [Memory(layer, start, end) for layer in cache], turn, sequences, mask)


def rotations(cos: Tensor, sin: Tensor) -> Tensor:
    """cos and signed sin (L, D) -> matrices (L, D, D) that turn heads by their position: one product for three passes."""
    return torch.diag_embed(cos) + torch.diag_embed(sin).roll(cos.shape[-1] // 2, -2)


class Room:
    """What one call of `frames` writes to: its caches, and the depth decoder's prepared positions."""

    def __init__(self, generator: TorchFrameGenerator):
        self.cache = generator.backbone.cache(1, generator.capacity)
        self.spans = generator.depth_spans(1)


class TorchFrameGenerator:
    """A `Csm` made ready to speak. It keeps fused copies; the model it was made of can be let go.

    Threads may call it at the same time: each call has a room of its own, kept for the next.

    Args:
        model: on the device and in the dtype it shall run in.
    """

    @torch.inference_mode()
    def __init__(self, model: Csm):
        config, depth = model.config, model.depth_decoder
        self.codebooks, self.capacity = config.num_codebooks, config.backbone.max_position_embeddings
        self.backbone = FusedStack(model.backbone_model, self.capacity)
        self.depth = FusedStack(depth.model, self.codebooks)
        self.project = Fused(depth.model.inputs_embeds_projector)
        spoken, heads = config.spoken_codes, depth.codebooks_head.weight.detach()
        self.first_bias = None if model.lm_head.bias is None else model.lm_head.bias.detach()[:spoken]
        self.heads = [fused(model.lm_head.weight[:spoken]), *heads[:, :, :spoken].unbind(0)]
        self.audio_table, self.text_table = model.audio_table.detach(), model.embed_text_tokens.weight.detach()
        self.table_of = self.audio_table.split(config.vocab_size)
        self.offsets = model.offsets()
        self.idle = [Room(self)]

    @torch.inference_mode()
    def frames(self, prompt: Frames, sampling: Sampling, limit: int) -> Iterator[np.ndarray]:
        """Yield frames of codes `(K,)` int64 until the end frame, which is not given out, or `limit` of them."""
        assert len(prompt) + limit - 1 <= self.capacity, "prompt and frames exceed the cache"
        picker = self.picker(sampling)
        try:
            room = self.idle.pop()
        except IndexError:
            room = Room(self)
        try:
            rows, start = self.embed(prompt), 0
            for _ in range(limit):
                end = start + rows.shape[0]
                state = self.backbone.append(rows, span(self.backbone, room.cache, start, end))
                start = end
                codes = self.frame(state, picker, room.spans)
                values = codes[0].cpu().numpy()
                if is_end(values):
                    return
                yield values
                rows = self.embed_codes(codes)
        finally:
            self.idle.append(room)

    def batch(self, requests: Sequence[FrameRequest], size: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Speak many prompts side by side; see `csm.backend.FrameGenerator.batch`."""
        from csm.torch.batch import speak_rows

        return speak_rows(self, requests, size)

    def picker(self, sampling: Sampling) -> Picker:
        """What chooses one row's codes."""
        return Picker(sampling, self.codebooks, self.heads[0].shape[1], self.audio_table.device)

    def depth_spans(self, sequences: int) -> list[Span]:
        """The depth decoder's steps over a cache of their own: positions 0 and 1, then each one up to K - 1."""
        cache = self.depth.cache(sequences, self.codebooks)
        return [span(self.depth, cache, 0 if i == 1 else i, i + 1) for i in range(1, self.codebooks)]

    def embed(self, prompt: Frames) -> Tensor:
        """The prompt's rows (L, W)."""
        device = self.audio_table.device
        audio = torch.from_numpy(prompt.audio_rows).to(device)
        frames = torch.from_numpy(prompt.frames).long().to(device)
        rows = F.embedding(frames[:, -1], self.text_table)
        if audio.any():
            rows[audio] = self.embed_codes(frames[audio, :-1])
        return rows

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Frames of codes (B, K) as the backbone reads them (B, W)."""
        return F.embedding(codes + self.offsets, self.audio_table).sum(1)

    def frame(self, states: Tensor, picker: Choice, spans: Sequence[Span]) -> Tensor:
        """All codes (B, K) of one frame from the backbone's states (B, W): K - 1 depth steps, the first over two rows."""
        picker.new_frame()
        logits = torch.mm(states, self.heads[0])
        codes = [picker(logits if self.first_bias is None else logits + self.first_bias, 0)]
        rows = torch.stack([states, F.embedding(codes[0], self.table_of[0])], 1).flatten(0, 1)
        for i, positions in enumerate(spans, 1):
            out = self.depth.append(self.project(rows), positions)
            codes.append(picker(torch.mm(out, self.heads[i]), i))
            rows = F.embedding(codes[i], self.table_of[i])
        return torch.stack(codes, 1)
