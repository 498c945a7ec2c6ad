"""The presets: what each staged fine-tune is, as recipes to be compared on one screen.

Numbers are those of the CSM fine-tuning architecture document (stages voice, style, domain, conversation); where it gives
a range of epochs the middle is taken. Rates of groups: 0.1 / 1 / 0.5 for a voice, balanced for style and conversation.
"""

from __future__ import annotations

from csm.recipe import Recipe

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
}  # fmt: skip
