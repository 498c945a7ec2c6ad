"""What a model is worth at a step: losses over the whole validation set, and figures of what it says."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from csm.recipe import BY_SOUND, Recipe

if TYPE_CHECKING:
    from csm.training.loop import Parts

SPEAKING = ".speaking"


def validate(parts: Parts) -> dict[str, float]:
    """Mean losses over the whole validation set, of each codebook too, and apart for clips with terms; empty without one.

    FloatingPointError where they are not finite.
    """
    if not parts.validation:
        return {}
    scores = parts.trainer.scores(parts.validation)
    each = {key: np.concatenate([score[key] for score in scores]) for key in scores[0]}
    found = _losses(each, parts.recipe)
    if not math.isfinite(found["loss"]):
        raise FloatingPointError
    out = {f"validation_{key}": value for key, value in found.items()}
    books = len(each["acoustic_each"][0])
    frames = math.fsum(each["acoustic_tokens"].tolist()) / books
    out["validation_codebook_0_loss"] = found["semantic_loss"]
    for book in range(books):
        out[f"validation_codebook_{book + 1}_loss"] = math.fsum(each["acoustic_each"][:, book].tolist()) / frames
    if parts.term_clips is not None and parts.term_clips.any():
        with_terms = parts.term_clips
        for name, which in (("terms", with_terms), ("other", ~with_terms)):
            if which.any():
                out[f"validation_{name}_loss"] = _losses({k: v[which] for k, v in each.items()}, parts.recipe)["loss"]
    return out


def _losses(each: Mapping[str, np.ndarray], recipe: Recipe) -> dict[str, float]:
    total = {key: math.fsum(values.tolist()) for key, values in each.items() if values.ndim == 1}
    semantic = total["semantic"] / total["semantic_tokens"]
    acoustic = total["acoustic"] / total["acoustic_tokens"]
    weighted = recipe.semantic_weight * semantic + recipe.acoustic_weight * acoustic
    return {"loss": weighted, "semantic_loss": semantic, "acoustic_loss": acoustic}


def listen(parts: Parts, step: int, due: bool) -> dict[str, float]:
    """Figures of samples of the model as it stands, where samples are due; the model is lent out as a folder.

    Nothing of the run's state is touched: a run with samples learns what one without learns.
    """
    recipe = parts.recipe
    chooses = due and recipe.select_by in BY_SOUND
    speaks = recipe.sample_every > 0 and step % recipe.sample_every == 0
    if parts.watch.listen is None or not (chooses or speaks):
        return {}
    folder = parts.run.path / SPEAKING
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        parts.trainer.save_model(parts.unchanged, folder)
        with parts.trainer.undisturbed():
            return parts.watch.listen(folder, step)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def distance(values: Mapping[str, float], select_by: str) -> float | None:
    """What `best` goes by, lower is better: the validation loss, or 1 less a figure of the samples (0 where there is none)."""
    if select_by in BY_SOUND:
        return 1.0 - values.get(select_by, 0.0)
    return values.get("validation_loss")
