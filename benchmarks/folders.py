"""Model folders to measure: random weights, the same every time, in transformers' layout, a LoRA adapter inside."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.shapes import AUDIO_VOCAB, csm_config

if TYPE_CHECKING:
    from transformers import CsmForConditionalGeneration

ADAPTED = r"(backbone_model|depth_decoder\.model)\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
UNSAYABLE = [0, *range(2048, AUDIO_VOCAB)]  # the end of speech, and codes that no codec has


def ready_folder(config: str, dtype: str, folder: Path | None = None) -> Path:
    """`folder`, or the config's own in the temporary folder; made where it is missing."""
    path = folder or Path(tempfile.gettempdir()) / "csm-bench" / f"{config}-{dtype}"
    if not path.exists():
        print(f"making {path}", file=sys.stderr, flush=True)
        make_folder(config, path, dtype)
    return path


def make_folder(config: str, path: Path, dtype: str) -> None:
    """Write the model `config` to `path` and an adapter to `path`/lora; `path` appears when all of it is there."""
    import torch
    from transformers import CsmForConditionalGeneration

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = CsmForConditionalGeneration(csm_config(config))
    silence(model)
    beside = Path(tempfile.mkdtemp(dir=path.parent))
    model.to(getattr(torch, dtype)).save_pretrained(beside, max_shard_size="100GB")
    write_adapter(model, beside / "lora")
    beside.rename(path)


def silence(model: CsmForConditionalGeneration) -> None:
    """Give the unsayable codes the logit 0: among 2051 random ones 0 is never the best, so no generation ends early."""
    model.lm_head.weight.data[UNSAYABLE] = 0
    model.depth_decoder.codebooks_head.weight.data[:, :, UNSAYABLE] = 0


def write_adapter(model: CsmForConditionalGeneration, path: Path) -> None:
    """A LoRA adapter in PEFT's layout, random in B too: a wrong scale or place then shows in the first loss."""
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=ADAPTED, init_lora_weights=False)
    get_peft_model(model, adapter).save_pretrained(str(path))
