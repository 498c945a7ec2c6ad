"""One frame at a time, made for a batch of one: caches allocated once, q/k/v and gate/up in one matmul each, rotary tables
and heads prepared at load, no mask after the prompt, random numbers drawn once a frame.

Codes equal transformers' greedy ones but where the two best logits are closer than fused matmuls round (about 1e-6).
Letters in shapes: L new rows, W width, H query heads, G key heads, D head width, K codebooks, V audio vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.backend import Sampling
from csm.config import Stack
from csm.frames import END_CODE, Frames
from csm.torch.model import Csm, Layer, Linear, Transformer, rope_tables

Matmul = Callable[[Tensor], Tensor]
Pick = Callable[[Tensor, int], Tensor]


def fused(*linears: Linear) -> Matmul:
    """One matmul for several linears over the same rows, biases included where an adapter left any."""
    weights = [linear.weight for linear in linears]
    plain = fused_weights(*weights)
    if all(linear.bias is None for linear in linears):
        return plain
    nothing = [weight.new_zeros(len(weight)) for weight in weights]
    biases = [z if linear.bias is None else linear.bias for linear, z in zip(linears, nothing, strict=True)]
    bias = torch.cat(biases).detach()
    return lambda rows: plain(rows).add_(bias)


def fused_weights(*weights: Tensor) -> Matmul:
    """One matmul for several matrices over the same rows: (L, in) -> (L, sum of outs).

    A wide fp32 matrix is kept input-major on CPU: one row passes it a quarter faster (measured, docs/performance.md).
    """
    weight = torch.cat([w.detach() for w in weights]) if len(weights) > 1 else weights[0].detach()
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[0] > weight.shape[1]:
        weight = weight.t().contiguous().t()
    return lambda rows: F.linear(rows, weight)


def spoken_rows(head: Linear, spoken: int) -> Linear:
    """The head of the first `spoken` codes alone."""
    part = Linear(0, 0)
    part.weight = nn.Parameter(head.weight.detach()[:spoken], requires_grad=False)
    if head.bias is not None:
        part.bias = nn.Parameter(head.bias.detach()[:spoken], requires_grad=False)
    return part


class FusedLayer:
    """The weights of one layer, ready for few rows."""

    def __init__(self, layer: Layer):
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = fused(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = fused(attention.o_proj)
        self.gate_up = fused(mlp.gate_proj, mlp.up_proj)
        self.down = fused(mlp.down_proj)
        self.norm_in = layer.input_layernorm.weight.detach()
        self.norm_mid = layer.post_attention_layernorm.weight.detach()


class CachedStack:
    """A Llama stack that remembers keys and values. Every cache row is written before it is read."""

    def __init__(self, transformer: Transformer, length: int):
        stack: Stack = transformer.stack
        norm = transformer.norm.weight.detach()
        self.layers = [FusedLayer(layer) for layer in transformer.layers]  # type: ignore[arg-type]
        self.norm, self.eps, self.length = norm, stack.rms_norm_eps, length
        self.heads, self.groups, self.head_dim = stack.num_attention_heads, stack.num_key_value_heads, stack.head_dim
        self.width = stack.hidden_size
        self.cos, self.sin = rope_tables(stack, length, norm.device, norm.dtype)
        shape = (len(self.layers), 2, self.groups, length, self.head_dim)
        self.cache = torch.empty(shape, dtype=norm.dtype, device=norm.device)

    def append(self, rows: Tensor, start: int) -> Tensor:
        """Run `rows` (L, W) at positions start..start+L-1; the last one's output (1, W)."""
        new = rows.shape[0]
        end = start + new
        cos, sin = self.cos[start:end], self.sin[start:end]
        slots = self.cache[..., start:end, :].unbind(0)
        past = self.cache[:, :, :, :end].unbind(0)
        mask = self._causal(new, start) if new > 1 else None
        x = rows
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(self._normed(x, layer.norm_in)).view(new, -1, self.head_dim)
            rotated = qkv[:, : self.heads + self.groups]
            turned = rotated.roll(self.head_dim // 2, -1)
            rotated.mul_(cos).addcmul_(turned, sin)
            slots[i].copy_(qkv[:, self.heads :].unflatten(1, (2, self.groups)).permute(1, 2, 0, 3))
            mixed = F.scaled_dot_product_attention(self._grouped(qkv[:, : self.heads]), past[i][0], past[i][1], mask)
            x = x + layer.out(self._ungrouped(mixed, new))
            gate, up = layer.gate_up(self._normed(x, layer.norm_mid)).chunk(2, -1)
            x = x + layer.down(F.silu(gate).mul_(up))
        return self._normed(x[-1:], self.norm)

    def _normed(self, rows: Tensor, weight: Tensor) -> Tensor:
        return torch.rms_norm(rows, (self.width,), weight, self.eps)

    def _grouped(self, query: Tensor) -> Tensor:
        """(L, H, D) -> (G, H/G * L, D): query heads that share a key head become rows, so no key is repeated."""
        if query.shape[0] == 1:
            return query.view(self.groups, -1, self.head_dim)
        return query.unflatten(1, (self.groups, -1)).permute(1, 2, 0, 3).flatten(1, 2)

    def _ungrouped(self, mixed: Tensor, new: int) -> Tensor:
        """(G, H/G * L, D) -> (L, H * D)."""
        if new == 1:
            return mixed.reshape(1, -1)
        return mixed.unflatten(1, (-1, new)).permute(2, 0, 1, 3).reshape(new, -1)

    def _causal(self, new: int, start: int) -> Tensor:
        """(H/G * L, start + L) bool, in the row order of `_grouped`."""
        allowed = torch.ones(new, start + new, dtype=torch.bool, device=self.norm.device).tril(start)
        return allowed.repeat(self.heads // self.groups, 1)


class TorchFrameGenerator:
    """A `Csm` made ready to speak. It keeps fused copies; the model it was made of can be let go.

    Args:
        model: on the device and in the dtype it shall run in.
    """

    def __init__(self, model: Csm):
        config, depth = model.config, model.depth_decoder
        self.codebooks, self.capacity = config.num_codebooks, config.backbone.max_position_embeddings
        self.backbone = CachedStack(model.backbone_model, self.capacity)
        self.depth = CachedStack(depth.model, self.codebooks)
        self.project = fused(depth.model.inputs_embeds_projector)
        spoken = config.spoken_codes
        self.first_head = fused(spoken_rows(model.lm_head, spoken))
        self.heads = [fused_weights(head.t()[:spoken]) for head in depth.codebooks_head.weight.detach().unbind(0)]
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
            state = self.backbone.append(rows, start)
            start += rows.shape[0]
            codes = self._frame(state, picker)
            values = codes.cpu().numpy()
            if (values[:-1] == END_CODE).all():
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
        code = picker(self.first_head(state), 0)
        codes = [code]
        rows, start = torch.cat([state, F.embedding(code, self.table_of[0])]), 0
        for i in range(1, self.codebooks):
            out = self.depth.append(self.project(rows), start)
            start += rows.shape[0]
            code = picker(self.heads[i - 1](out), i)
            codes.append(code)
            rows = F.embedding(code, self.table_of[i])
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
