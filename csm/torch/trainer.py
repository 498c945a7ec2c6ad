"""One optimiser over one model: an update from however many micro-batches, scores without gradients, exact state.

Where backbone and embeddings are frozen and no context is drawn, the backbone's states are constants of the data: they are
computed once for each example, alone and therefore always alike, and kept.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from csm.adapters.plan import plan_adapters
from csm.data.batches import Batch, some_examples
from csm.errors import CsmError
from csm.json_file import read_json
from csm.recipe import Recipe
from csm.torch.adamw import AdamW, clip_gradients
from csm.torch.checkpoint import save_tensors, write_adapter, write_checkpoint
from csm.torch.heap import keep_freed_memory
from csm.torch.lora import attach, is_adapter_name
from csm.torch.loss import Codes, backbone_states, loss, losses_each, read_codes
from csm.torch.model import Csm

STATES_BYTES = 4 << 30  # frozen states beyond this are computed again rather than kept
BETAS, EPSILON = (0.9, 0.999), 1e-8


def group_of(name: str) -> str:
    """The group of a parameter or adapter: backbone, decoder (heads and projection included) or embeddings."""
    if ".embed_tokens." in name or name.startswith("embed_text_tokens."):
        return "embeddings"
    return "backbone" if name.startswith("backbone_model.") else "decoder"


def parameter_groups(model: Csm, recipe: Recipe) -> list[dict[str, Any]]:
    """Freeze what the recipe freezes; groups of an optimiser for the rest: a rate each, no decay on norms and embeddings.

    Where the model has adapters, they alone learn, and what the recipe learns whole beside them.
    """
    rates = {"backbone": recipe.backbone_rate, "decoder": recipe.decoder_rate, "embeddings": recipe.embeddings_rate}
    frozen = {name: getattr(recipe, f"freeze_{name}") for name in rates}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        group = group_of(name)
        adapts = recipe.method == "lora"
        learns = is_adapter_name(name) or name in recipe.lora.whole if adapts else not frozen[group]
        parameter.requires_grad_(learns)
        if not learns:
            continue
        decays = group != "embeddings" and parameter.ndim > 1
        key = (group, decays)
        groups.setdefault(key, dict(params=[], names=[], group=group, rate=rates[group]))
        groups[key]["weight_decay"] = recipe.weight_decay if decays else 0.0
        groups[key]["by_row"] = group == "embeddings" and (recipe.method, recipe.optimizer) == ("full", "adamw")
        groups[key]["params"].append(parameter)
        groups[key]["names"].append(name)
    return list(groups.values())


def make_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with decoupled decay (Loshchilov & Hutter, 2019); Adam and plain SGD with decay in the gradient."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate)
    kind = AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate, betas=BETAS, eps=EPSILON, fused=True)


class TorchTrainer:
    """One optimiser over the parameters that the recipe does not freeze, or over adapters on them.

    Args:
        model: in the dtype its parameters are to be trained in (fp32 on CPU).
        recipe: weights of the losses, frozen groups, rates, decay, clipping.
        activations: dtype of what flows through; the parameters' own where it is None.
    """

    def __init__(self, model: Csm, recipe: Recipe, activations: torch.dtype | None = None):
        self.model, self.recipe = model, recipe
        self.dtype = activations or model.audio_table.dtype
        torch.manual_seed(recipe.seed)
        self.plan = plan_adapters(model.config, recipe.lora, recipe.frozen) if recipe.method == "lora" else None
        if self.plan:
            attach(model, self.plan, recipe.seed)
        elif any(name.endswith(".bias") for name, _ in model.named_parameters()):
            raise CsmError(
                "the model is an adapter with biases (lora_bias), and a model folder has no place for them.",
                "Train another adapter on it: --method lora.",
            )
        model.checkpoint_layers(recipe.gradient_ckpt)
        groups = parameter_groups(model, recipe)
        if model.audio_table.device.type == "cpu":
            keep_freed_memory()
        by_row = any(group["by_row"] for group in groups)
        for table in (model.embed_text_tokens, model.depth_decoder.model.embed_tokens):
            table.sparse = by_row and table.weight.device.type in ("cpu", "cuda")
        self.optimizer = make_optimizer(groups, recipe)
        self.keeps_states = {group["group"] for group in groups} == {"decoder"} and recipe.context_turns == 0
        self._states: dict[bytes, Tensor] = {}
        self._states_bytes = 0

    @property
    def trained_names(self) -> set[str]:
        return {name for group in self.optimizer.param_groups for name in group["names"]}

    def step(self, batches: Sequence[Batch], learning_rate: float) -> dict[str, float]:
        """One update from all `batches`; losses are means over the tokens of all of them, each of its example's weight.

        Returns:
            loss, semantic_loss, acoustic_loss (before the update) and grad_norm (before clipping).

        Raises:
            FloatingPointError: the loss or the gradient is not finite; nothing was changed.
        """
        tokens = sum(b.semantic_tokens for b in batches), sum(b.acoustic_tokens for b in batches)
        semantic, acoustic = self.accumulate(list(zip(self.draws(len(batches)), batches, strict=True)), tokens)
        return self.apply(semantic, acoustic, learning_rate)

    def draws(self, count: int) -> list[int]:
        """A seed of dropout for each micro-batch of an update: drawn together, so that it does not matter who draws them."""
        return torch.randint(2**62, (count,)).tolist() if self.recipe.lora_dropout else [0] * count

    def accumulate(self, batches: Sequence[tuple[int, Batch]], tokens: tuple[float, float]) -> tuple[float, float]:
        """Leave the gradients of micro-batches, each with its seed, in the parameters.

        Args:
            batches: all micro-batches of an update, or those that fall to this process.
            tokens: semantic and acoustic tokens of the whole update, by weight.

        Returns:
            what these add to the update's mean semantic and acoustic loss.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        semantic = acoustic = 0.0
        for seed, batch in batches:
            with self._drawing(seed):
                for weight, part in batch.by_weight():
                    first, others = self._losses(part)
                    first, others = weight * first / tokens[0], weight * others / tokens[1]
                    (self.recipe.semantic_weight * first + self.recipe.acoustic_weight * others).backward()
                    semantic, acoustic = semantic + first.item(), acoustic + others.item()
        return semantic, acoustic

    def apply(self, semantic: float, acoustic: float, learning_rate: float) -> dict[str, float]:
        """The update from the gradients that stand in the parameters; returns and raises as `step`."""
        norm = self._clip()
        if not np.isfinite([semantic, acoustic, norm]).all():
            self.optimizer.zero_grad(set_to_none=True)
            raise FloatingPointError("the loss is not finite")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "loss": self.recipe.semantic_weight * semantic + self.recipe.acoustic_weight * acoustic,
            "semantic_loss": semantic,
            "acoustic_loss": acoustic,
            "grad_norm": norm,
        }

    def score(self, batch: Batch) -> dict[str, np.ndarray]:
        """Losses of each example without gradients: `semantic`, `acoustic` sums and their token counts, each (B,), and
        `acoustic_each` (B, K - 1), the sums of each codebook after the first; all times the example's weight.
        """
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            codes = read_codes(self.model, batch)
            semantic, acoustic = losses_each(self.model, batch, codes, self._states_of(batch, codes))
        self.model.train(was_training)
        size, of = batch.shape[0], batch.example_of
        weights = np.ones(size) if batch.weights is None else batch.weights
        depth_of = of[batch.depth]
        each = acoustic.double().cpu().numpy()
        by_book = np.stack([np.bincount(depth_of, column, size) for column in each.T], 1)
        return {
            "semantic": np.bincount(of, semantic.double().cpu().numpy(), size) * weights,
            "semantic_tokens": np.bincount(of, minlength=size) * weights,
            "acoustic": np.bincount(depth_of, acoustic.double().sum(1).cpu().numpy(), size) * weights,
            "acoustic_tokens": np.bincount(depth_of, minlength=size) * acoustic.shape[1] * weights,
            "acoustic_each": by_book * weights[:, None],
        }

    def scores(self, batches: Sequence[Batch]) -> list[dict[str, np.ndarray]]:
        """`score` of each batch."""
        return [self.score(batch) for batch in batches]

    def is_finite(self) -> bool:
        """Whether every trained weight is a number."""
        groups = self.optimizer.param_groups
        return all(bool(torch.isfinite(p).all()) for group in groups for p in group["params"])

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        codes = read_codes(self.model, batch)
        return loss(self.model, batch, codes, self._states_of(batch, codes))

    def _states_of(self, batch: Batch, codes: Codes) -> Tensor:
        if not self.keeps_states:
            return backbone_states(self.model, batch, codes, self.dtype)
        with torch.no_grad():
            return torch.cat([self._example_states(batch, i) for i in range(batch.shape[0])])

    def _example_states(self, batch: Batch, index: int) -> Tensor:
        key = batch.keys[index]
        if key not in self._states:
            alone = some_examples(batch, [index])
            states = backbone_states(self.model, alone, read_codes(self.model, alone), self.dtype)
            if self._states_bytes + states.nbytes > STATES_BYTES:
                return states
            self._states[key] = states
            self._states_bytes += states.nbytes
        return self._states[key]

    def _clip(self) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return clip_gradients(parameters, self.recipe.max_grad_norm)

    def save(self, folder: Path) -> None:
        """Write momenta, step counts and torch's random state into `folder`."""
        tensors = {}
        for group in self.optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                for key, value in self.optimizer.state[parameter].items():
                    tensors[f"{key}/{name}"] = value.contiguous()
        tensors["random_state"] = torch.get_rng_state()
        if self.model.audio_table.is_cuda:
            tensors["cuda_random_state"] = torch.cuda.get_rng_state(self.model.audio_table.device)
        save_tensors(tensors, folder / "optimizer.safetensors")
        (folder / "backend.json").write_text(json.dumps({"backend": "torch", "torch": torch.__version__}))

    def _momenta_of(self, parameter: Tensor, rows: Tensor | None) -> dict[str, torch.Size]:
        """What the optimiser keeps of a parameter, or of those `rows` of it, with its shapes."""
        if self.recipe.optimizer == "sgd":
            return {}
        shape = parameter.shape if rows is None else torch.Size([len(rows), *parameter.shape[1:]])
        own = {} if rows is None else {"rows": torch.Size([len(rows)])}
        return {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape} | own

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            CsmError: the state is another backend's, or of other parameters.
        """
        backend = read_json(folder / "backend.json").get("backend")
        if backend != "torch":
            raise CsmError(f"{folder / 'backend.json'} names the backend {backend!r}; momenta do not cross backends.")
        try:
            tensors = load_file(folder / "optimizer.safetensors")
        except SafetensorError as error:
            raise _damaged(folder, str(error)) from None
        for group in self.optimizer.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                found = {key.split("/")[0]: value for key, value in tensors.items() if key.endswith(f"/{name}")}
                if group["by_row"] and "exp_avg" in found and "rows" not in found:
                    found["rows"] = torch.arange(len(parameter))
                shapes = {key: value.shape for key, value in found.items()}
                if shapes != self._momenta_of(parameter, found.get("rows") if group["by_row"] else None):
                    raise _damaged(folder, f"it holds no momenta that fit {name}")
                self.optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in found.items()}
        try:
            torch.set_rng_state(tensors["random_state"])
        except (KeyError, RuntimeError, TypeError):
            raise _damaged(folder, "it holds no random state") from None
        if self.model.audio_table.is_cuda and "cuda_random_state" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_random_state"], self.model.audio_table.device)

    def peak_memory(self) -> int:
        """Bytes: the most that torch held on the GPU, else the most that the process held."""
        device = self.model.audio_table.device
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    @contextmanager
    def _drawing(self, seed: int) -> Iterator[None]:
        """Inside, dropout draws by `seed`; where there is none, nothing is touched."""
        if not self.recipe.lora_dropout:
            yield
            return
        with self.undisturbed():
            torch.manual_seed(seed)
            yield

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Whatever draws random numbers inside, the run goes on as if nothing had."""
        device = self.model.audio_table.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield

    def save_model(self, unchanged: Path, out: Path) -> None:
        """Make `out` a loadable model folder; see `csm.torch.checkpoint.write_checkpoint`. With adapters, one of theirs."""
        if self.plan:
            write_adapter(self.model, self.plan, unchanged, out, self.recipe.lora.whole)
        else:
            write_checkpoint(self.model, self.trained_names, unchanged, out)


def _damaged(folder: Path, why: str) -> CsmError:
    return CsmError(f"{folder / 'optimizer.safetensors'} is damaged ({why}).", "--fresh begins the run anew.")
