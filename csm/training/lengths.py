"""How long a turn may be: sound that is cut at a limit, and turns that no row of the model is left for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from csm.data.codes import CodedTurn, Tokenised
from csm.data.faults import Fault, require_usable
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
    cut, longest = _cutter(data, recipe), longest_rows(base, recipe)
    tokenizer = TextTokenizer(base.beside)
    faults, kept = list(data.faults), []
    for conversation in data.conversations:
        turns = []
        for turn in map(cut, conversation):
            rows = len(tokenizer.encode(turn.row.text, turn.row.speaker)) + turn.codes.shape[1] + turn.ends
            if rows <= longest:
                turns.append(turn)
            else:
                faults.append(Fault(turn.row.audio, _too_long(rows, longest, base)))
        if turns:
            kept.append(turns)
    require_usable(len(kept), faults, strict)
    return Tokenised(kept, faults, data.frame_rate)


def _too_long(rows: int, longest: int, base: ModelFolder) -> str:
    whose = "the model takes" if longest == base.config.backbone.max_position_embeddings else "max_seq_len is"
    return f"needs {rows} rows and {whose} {longest}; cut it into clips"


def _cutter(data: Tokenised, recipe: Recipe) -> Callable[[CodedTurn], CodedTurn]:
    if not recipe.max_audio_length_ms:
        return lambda turn: turn
    frames = int(recipe.max_audio_length_ms * data.frame_rate / 1000)
    if frames < 1:
        raise CsmError(
            f"max_audio_length_ms is {recipe.max_audio_length_ms:g}, less than one frame ({1000 / data.frame_rate:g} ms)."
        )
    return lambda turn: (
        turn if turn.codes.shape[1] <= frames else replace(turn, codes=turn.codes[:, :frames], ends=False)
    )


def describe_limits(data: Tokenised, base: ModelFolder, recipe: Recipe) -> list[str]:
    """Sentences on what the limits did to fitted data; none where they did nothing."""
    told, most = [], base.config.backbone.max_position_embeddings
    cut = sum(not turn.ends for conversation in data.conversations for turn in conversation)
    if cut:
        many = "1 turn was" if cut == 1 else f"{cut} turns were"
        told.append(f"{many} cut at {recipe.max_audio_length_ms:g} ms; where they end is not learned from them")
    if recipe.max_seq_len > most:
        told.append(f"max_seq_len is {recipe.max_seq_len}, and this model takes {most} rows: {most} hold")
    return told
