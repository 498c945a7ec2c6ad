"""How long a turn may be: sound that is cut at a limit, and turns that no row of the model is left for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csm.data.codes import Tokenised
from csm.data.faults import Fault, require_usable
from csm.data.sources import text_rows
from csm.errors import CsmError
from csm.model_folder import ModelFolder
from csm.recipe import Recipe
from csm.tokenizer import TextTokenizer


def longest_rows(base: ModelFolder, recipe: Recipe) -> int:
    """Rows that an example may have: the model's, or fewer where the recipe says so."""
    most = base.config.backbone.max_position_embeddings
    return min(most, recipe.max_seq_len or most)


def fit_turns(data: Tokenised, base: ModelFolder, recipe: Recipe, strict: bool = False) -> Tokenised:
    """The data with its sound cut at `max_audio_length_ms`, without the turns that are still too long: they become faults.

    A turn that was cut has no end to learn. Data that was fitted before comes back as it is.

    Raises:
        CsmError: nothing is left, or `strict` and a turn is too long; the limit is below one frame.
    """
    turns, longest = data.turns, longest_rows(base, recipe)
    if recipe.max_audio_length_ms:
        turns = turns.cut_at(_frames(data, recipe))
    ended = 1 if turns.ends is None else turns.ends
    rows = text_rows(turns, TextTokenizer(base.beside)) + turns.frames + ended
    faults = list(data.faults)
    for number in np.flatnonzero(rows > longest).tolist():
        faults.append(Fault(turns.row(number).audio, _too_long(int(rows[number]), longest, base)))
    kept = turns.take(rows <= longest)
    require_usable(len(kept), faults, strict)
    return replace(data, conversations=kept, faults=faults)


def _too_long(rows: int, longest: int, base: ModelFolder) -> str:
    whose = "the model takes" if longest == base.config.backbone.max_position_embeddings else "max_seq_len is"
    return f"needs {rows} rows and {whose} {longest}; cut it into clips"


def _frames(data: Tokenised, recipe: Recipe) -> int:
    frames = int(recipe.max_audio_length_ms * data.frame_rate / 1000)
    if frames < 1:
        raise CsmError(
            f"max_audio_length_ms is {recipe.max_audio_length_ms:g}, less than one frame ({1000 / data.frame_rate:g} ms)."
        )
    return frames


def describe_limits(data: Tokenised, base: ModelFolder, recipe: Recipe) -> list[str]:
    """Sentences on what the limits did to fitted data; none where they did nothing."""
    told, most = [], base.config.backbone.max_position_embeddings
    cut = 0 if data.turns.ends is None else int((~data.turns.ends).sum())
    if cut:
        many = "1 turn was" if cut == 1 else f"{cut} turns were"
        told.append(f"{many} cut at {recipe.max_audio_length_ms:g} ms; where they end is not learned from them")
    if recipe.max_seq_len > most:
        told.append(f"max_seq_len is {recipe.max_seq_len}, and this model takes {most} rows: {most} hold")
    return told
