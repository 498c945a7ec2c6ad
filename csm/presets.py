"""The presets: what each staged fine-tune is, as recipes to be compared on one screen.

Numbers are those of the CSM fine-tuning architecture document (stages voice, style, domain, conversation). Where it gives a
range of epochs, the minutes of the data say where in it a run lies; the recipe's own number holds until they are known.
Rates of groups: 0.1 / 1 / 0.5 for a voice, balanced for style and conversation. `full` and `lora` are csm-mlx's commands of
these names, `finetune-lora` is `python -m csm.cli.finetune_lora`, each with its documented defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csm.recipe import Recipe

CODEBOOKS = 32


def first_codebook_weights(multiplier: float) -> dict[str, float]:
    """csm-mlx's weight of the first codebook as the two weights of our loss.

    It sums the cross entropies of 32 codebooks, each over 32, the first times `multiplier`.
    """
    return {"semantic_weight": multiplier / CODEBOOKS, "acoustic_weight": (CODEBOOKS - 1) / CODEBOOKS}


@dataclass(frozen=True)
class EpochRange:
    """From `fewest` to `most` epochs, so that about `minutes_heard` minutes of speech are heard in all.

    The documents ask for 5-10 minutes and 5-10 epochs (voice), 3-5 and 3-5 (style), 20 and more and 5-8 (domain). The
    least data with the most epochs and the most data with the fewest come to the same: 50, 15 and 160 minutes.
    """

    fewest: int
    most: int
    minutes_heard: float

    def epochs(self, minutes: float) -> int:
        """The number of epochs for so many minutes of training data."""
        wanted = self.minutes_heard / max(minutes, 1e-3)
        return min(max(round(wanted), self.fewest), self.most)

    def reason(self, minutes: float) -> str:
        """Where the number comes from, as a recipe shows it."""
        span = f"{self.fewest}-{self.most} documented, about {self.minutes_heard:g} minutes heard in all"
        return f"{minutes:.1f} minutes of data ({span})"


EPOCHS = {
    "voice-adapt": EpochRange(5, 10, 50.0),
    "style-tune": EpochRange(3, 5, 15.0),
    "domain": EpochRange(5, 8, 160.0),
}

CSM_MLX: dict[str, Any] = dict(
    **first_codebook_weights(1.0), decoder_fraction=1 / 16, embeddings_rate=1.0, schedule="constant", warmup_share=0.0,
    max_grad_norm=0.0, context_turns=4, clip_context=False, val_split=0.0, log_every=10,
)  # fmt: skip
"""What csm-mlx's two commands have in common."""

MINUTES: dict[str, tuple[float, float | None]] = {
    "voice-adapt": (5.0, 10.0),
    "style-tune": (3.0, 5.0),
    "domain": (20.0, None),
}
"""The minutes of speech that a preset asks for: of each speaker, for a domain of all together; None is no upper end."""

PRESETS: dict[str, Recipe] = {
    "voice-adapt": Recipe(
        learning_rate=2e-5, epochs=5, semantic_weight=20.0, acoustic_weight=1.0, decoder_fraction=1.0,
        freeze_backbone=True, freeze_embeddings=True, backbone_rate=0.1, decoder_rate=1.0, embeddings_rate=0.5,
    ),
    "style-tune": Recipe(
        learning_rate=1e-5, epochs=4, semantic_weight=50.0, acoustic_weight=1.0, decoder_fraction=1.0,
        backbone_rate=1.0, decoder_rate=1.0, embeddings_rate=0.5,
    ),
    "domain": Recipe(
        learning_rate=5e-6, epochs=6, semantic_weight=150.0, acoustic_weight=1.0, decoder_fraction=1 / 16,
        freeze_decoder=True, backbone_rate=1.0, decoder_rate=1.0, embeddings_rate=0.5,
    ),
    "conversation": Recipe(
        learning_rate=2e-5, epochs=3, semantic_weight=1.0, acoustic_weight=1.0, decoder_fraction=1 / 16,
        backbone_rate=1.0, decoder_rate=1.0, embeddings_rate=0.5, context_turns=4,
    ),
    "full": Recipe(
        learning_rate=1e-5, epochs=5, batch_size=4, weight_decay=1e-4, save_every=100, **CSM_MLX,
    ),
    "lora": Recipe(
        learning_rate=5e-4, epochs=10, batch_size=8, weight_decay=1e-4, save_every=100, **CSM_MLX,
        method="lora", lora_rank=8, lora_alpha=16.0, lora_targets=("attn", "projection"),
    ),
    "finetune-lora": Recipe(
        learning_rate=1e-4, epochs=5, batch_size=2, semantic_weight=100.0, acoustic_weight=1.0, decoder_fraction=1.0,
        embeddings_rate=1.0, weight_decay=0.01, schedule="constant", warmup_share=0.0, context_turns=2,
        max_seq_len=2048, val_split=0.1, val_every=100, save_every=500,
        method="lora", lora_rank=8, lora_alpha=16.0, lora_targets=("q_proj", "v_proj"),
    ),
}  # fmt: skip
