"""transformers (and peft) as its Trainer would run it: sdpa, fused AdamW, no cache in training, codes made beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import CsmForConditionalGeneration, logging

from benchmarks.work import BATCHES, LEARNING_RATE, WEIGHT_DECAY, Arrays, read_weights

IGNORED = -100


def load(folder: str, dtype: str, threads: int) -> TransformersPeer:
    """The adapter."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = CsmForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.codec_model.requires_grad_(False)
    return TransformersPeer(Path(folder), model)


class TransformersPeer:
    """See `benchmarks.work.Peer`."""

    def __init__(self, folder: Path, model: CsmForConditionalGeneration):
        self.folder, self.model = folder, model
        self.trained: nn.Module = model
        self.optimizer: torch.optim.AdamW | None = None

    def prepare(self, work: str) -> None:
        if work not in BATCHES:
            self.optimizer = self._optimizer(work)
        read_weights(self.model)

    def train_step(self, batch: Arrays, work: str, decoder_fraction: float) -> float:
        assert self.optimizer
        rows, labels = self._rows({name: torch.from_numpy(array) for name, array in batch.items()})
        loss = self.trained(inputs_embeds=rows, labels=labels, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def generate(self, text_ids: np.ndarray, frames: int) -> np.ndarray:
        ids = torch.from_numpy(text_ids)
        codes = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=frames,
            do_sample=False,
            depth_decoder_do_sample=False,
        )
        return np.asarray(codes)

    def _optimizer(self, work: str) -> torch.optim.AdamW:
        if work == "train-voice":
            for name, weight in self.model.named_parameters():
                weight.requires_grad_(name.startswith(("lm_head.", "depth_decoder.")) and ".embed_tokens." not in name)
        if work == "train-lora":
            from peft import PeftModel

            self.trained = PeftModel.from_pretrained(self.model, self.folder / "lora", is_trainable=True)
        self.trained.train()
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, weight in self.trained.named_parameters():
            if weight.requires_grad:
                groups[weight.ndim > 1 and "embed_" not in name.rsplit(".", 2)[-2]].append(weight)
        decays = [
            {"params": weights, "weight_decay": WEIGHT_DECAY * decay} for decay, weights in groups.items() if weights
        ]
        return torch.optim.AdamW(decays, lr=LEARNING_RATE, fused=True)

    def _rows(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embedded rows (B, T + F, W) and labels (B, T + F, K), ignored on text and where the depth decoder skips.

        Labels of three axes know no -101 ("backbone alone"): it would be taken for an index.
        """
        text, codes = batch["text_ids"], batch["codes"]
        rows = torch.cat([self.model.embed_text_tokens(text), self.model.backbone_model.embed_tokens(codes)], 1)
        labels = codes.clone()
        labels[..., 1:][~batch["depth_frames"]] = IGNORED
        return rows, pad(labels, (0, 0, text.shape[1], 0), value=IGNORED)
