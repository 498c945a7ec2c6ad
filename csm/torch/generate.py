"""One frame at a time, made for a batch of one: caches allocated once, q/k/v and gate/up in one matmul each, norms folded
into the matrices after them, every view of a position prepared before its layers run, random numbers drawn once a frame.

Codes equal transformers' greedy ones but where the two best logits are closer than fused matmuls round (about 1e-6).
Letters in shapes: L new rows, W width, H query heads, G key heads, D head width, K codebooks, V audio vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csm.backend import Sampling
from csm.config import Stack
from csm.frames import Frames, is_end
from csm.torch.model import Csm, Layer, Linear, Transformer, rope_tables


def fused(*weights: Tensor, norm: Tensor | None = None) -> Tensor:
    """One matrix (in, sum of outs) for several (out, in) over the same rows, the norm's weight before them folded in.

    fp32 on CPU is laid out input-major: one row passes a wide matrix a quarter faster (measured, docs/performance.md).
    """
    weight = torch.cat([w.detach() for w in weights]) if len(weights) > 1 else weights[0].detach()
    if norm is not None:
        weight = (weight.float() * norm.detach().float()).to(weight.dtype)
    input_major = weight.device.type == "cpu" and weight.dtype == torch.float32
    return weight.t().contiguous() if input_major else weight.t()


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


class CachedStack:
    """A Llama stack that remembers keys and values. Every cache row is written before it is read."""

    def __init__(self, transformer: Transformer, length: int):
        self.stack: Stack = transformer.stack
        self.norm = transformer.norm.weight.detach()
        self.layers = [FusedLayer(layer) for layer in transformer.layers]  # type: ignore[arg-type]
        self.eps = torch.tensor(self.stack.rms_norm_eps, device=self.norm.device)
        self.cos, self.sin = rope_tables(self.stack, length, self.norm.device, self.norm.dtype)
        shape = (len(self.layers), 2, self.stack.num_key_value_heads, length, self.stack.head_dim)
        self.cache = self.norm.new_empty(shape)

    def append(self, rows: Tensor, span: Span) -> Tensor:
        """Run `rows` (L, W) at the span's positions; the last one's output (1, W)."""
        x = rows.clone()
        for layer, memory in zip(self.layers, span.memories, strict=True):
            layer.qkv(self._normed(x), span.qkv)
            torch.bmm(span.unturned, span.turn, out=span.turned)
            memory.new_keys.copy_(span.keys)
            memory.new_values.copy_(span.values)
            mixed = F.scaled_dot_product_attention(
                span.queries, memory.keys, memory.values, span.mask, scale=1.0, enable_gqa=True
            )
            layer.out.add_to(x, span.rows_of(mixed))
            layer.gate_up(self._normed(x), span.gate_up)
            layer.down.add_to(x, F.silu(span.gate).mul_(span.up))
        return self._normed(x[-1:]).mul_(self.norm)

    def _normed(self, rows: Tensor) -> Tensor:
        """RMSNorm without its weight."""
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
        scale = torch.addcmul(self.eps, length, length, value=1 / rows.shape[-1]).rsqrt_()
        return (rows * scale).to(rows.dtype)


class Memory:
    """Views of one layer's cache (2, G, length, D) for rows start..end-1: where they write, and what they look at."""

    def __init__(self, cache: Tensor, start: int, end: int):
        self.new_keys, self.new_values = cache[:, :, start:end]
        self.keys, self.values = cache[:, None, :, :end]


class Span:
    """Positions start..end-1 of a stack: buffers and views for L rows, made once and not for every layer."""

    def __init__(self, stack: CachedStack, start: int, end: int):
        shape, new = stack.stack, end - start
        heads, groups, width = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        self.memories = [Memory(cache, start, end) for cache in stack.cache]
        self.qkv = stack.norm.new_empty(new, (heads + 2 * groups) * width)
        split = self.qkv.view(new, -1, width)
        self.unturned, self.values = split[:, : heads + groups], split[:, heads + groups :].transpose(0, 1)
        self.turn = rotations(stack.cos[start:end, 0], stack.sin[start:end, 0])
        self.turned = stack.norm.new_empty(new, heads + groups, width)
        self.keys = self.turned[:, heads:].transpose(0, 1)
        self.gate_up = stack.norm.new_empty(new, 2 * shape.intermediate_size)
        self.gate, self.up = self.gate_up.chunk(2, -1)
        self.one = new == 1
        if self.one:  # query heads that share a key head become rows, so no key is repeated
            self.queries, self.mask = self.turned[:, :heads].view(1, groups, -1, width), None
        else:
            self.queries = self.turned[:, :heads].transpose(0, 1)[None]
            self.mask = torch.ones(new, end, dtype=torch.bool, device=self.qkv.device).tril(start)

    def rows_of(self, mixed: Tensor) -> Tensor:
        """What attention gave, as rows (L, H * D)."""
        return mixed.view(1, -1) if self.one else mixed[0].transpose(0, 1).flatten(1)


def rotations(cos: Tensor, sin: Tensor) -> Tensor:
    """cos and signed sin (L, D) -> matrices (L, D, D) that turn heads by their position: one product for three passes."""
    return torch.diag_embed(cos) + torch.diag_embed(sin).roll(cos.shape[-1] // 2, -2)


class TorchFrameGenerator:
    """A `Csm` made ready to speak. It keeps fused copies; the model it was made of can be let go.

    Args:
        model: on the device and in the dtype it shall run in.
    """

    @torch.inference_mode()
    def __init__(self, model: Csm):
        config, depth = model.config, model.depth_decoder
        self.codebooks, self.capacity = config.num_codebooks, config.backbone.max_position_embeddings
        self.backbone = CachedStack(model.backbone_model, self.capacity)
        self.depth = CachedStack(depth.model, self.codebooks)
        self.spans = [Span(self.depth, 0 if i == 1 else i, i + 1) for i in range(1, self.codebooks)]
        self.project = Fused(depth.model.inputs_embeds_projector)
        spoken, heads = config.spoken_codes, depth.codebooks_head.weight.detach()
        self.first_bias = None if model.lm_head.bias is None else model.lm_head.bias.detach()[:spoken]
        self.heads = [fused(model.lm_head.weight[:spoken]), *heads[:, :, :spoken].unbind(0)]
        self.audio_table, self.text_table = model.audio_table.detach(), model.embed_text_tokens.weight.detach()
        self.table_of = self.audio_table.split(config.vocab_size)
        self.offsets = model.offsets()

    @torch.inference_mode()
    def frames(self, prompt: Frames, sampling: Sampling, limit: int) -> Iterator[np.ndarray]:
        """Yield frames of codes `(K,)` int64 until the end frame, which is not given out, or `limit` of them."""
        assert len(prompt) + limit - 1 <= self.capacity, "prompt and frames exceed the cache"
        picker = Picker(sampling, self.codebooks, self.audio_table.device)
        rows, start = self.embed(prompt), 0
        for _ in range(limit):
            end = start + rows.shape[0]
            state = self.backbone.append(rows, Span(self.backbone, start, end))
            start = end
            codes = self._frame(state, picker)
            values = codes.cpu().numpy()
            if is_end(values):
                return
            yield values
            rows = F.embedding(codes + self.offsets, self.audio_table).sum(0, keepdim=True)

    def embed(self, prompt: Frames) -> Tensor:
        """The prompt's rows (L, W)."""
        device = self.audio_table.device
        audio = torch.from_numpy(prompt.audio_rows).to(device)
        frames = torch.from_numpy(prompt.frames).long().to(device)
        rows = F.embedding(frames[:, -1], self.text_table)
        if audio.any():
            rows[audio] = F.embedding(frames[audio, :-1] + self.offsets, self.audio_table).sum(1)
        return rows

    def _frame(self, state: Tensor, picker: Picker) -> Tensor:
        """All K codes of one frame from the backbone's state (1, W): K - 1 depth steps, the first over two rows."""
        picker.new_frame()
        logits = torch.mm(state, self.heads[0])
        codes = [picker(logits if self.first_bias is None else logits + self.first_bias, 0)]
        rows = torch.cat([state, F.embedding(codes[0], self.table_of[0])])
        for i, span in enumerate(self.spans, 1):
            out = self.depth.append(self.project(rows), span)
            codes.append(picker(torch.mm(out, self.heads[i]), i))
            rows = F.embedding(codes[i], self.table_of[i])
        return torch.cat(codes)


class Picker:
    """Greedy or top-k choice; the noise of a whole frame is drawn at once (Gumbel's trick)."""

    def __init__(self, sampling: Sampling, codebooks: int, device: torch.device):
        self.temperature, self.top_k, self.codebooks = sampling.temperature, sampling.top_k, codebooks
        self.device, self.noise = device, torch.empty(0)
        self.generator = torch.Generator(device).manual_seed(sampling.seed)

    def new_frame(self) -> None:
        if self.temperature > 0 and self.top_k > 0:
            shape = (self.codebooks, self.top_k)
            self.noise = torch.empty(shape, device=self.device).exponential_(generator=self.generator).log_()

    def __call__(self, logits: Tensor, codebook: int) -> Tensor:
        """logits (1, V) -> the chosen code (1,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.float() / self.temperature
        if self.top_k == 0:
            noise = torch.empty_like(scaled).exponential_(generator=self.generator).log_()
            return scaled.sub_(noise).argmax(-1)
        best, ids = scaled.topk(min(self.top_k, scaled.shape[-1]))
        return ids.gather(-1, (best - self.noise[codebook, : best.shape[-1]]).argmax(-1, keepdim=True)).squeeze(-1)
