"""From what users hand to the Python API to tokenised conversations: Segments, Conversations, or files already read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from csm.codec import Codec
from csm.config import ModelConfig
from csm.data.clips import prepare_sound, text_fault
from csm.data.codes import CodeCache, CodedTurn, Tokenised
from csm.data.faults import Fault, require_usable
from csm.data.row import Row, clean_text, weight_problem
from csm.errors import CsmError
from csm.segment import Conversation, Segment, checked_turns, is_list


def tokenise_segments(
    data: Sequence[Segment | Conversation], codec: Codec, cache: CodeCache, config: ModelConfig
) -> Tokenised:
    """Codes of every segment; a lone Segment is a conversation of one turn.

    Sound files go through the checks and the cache; waves (24 kHz) are trimmed and levelled in the same way; codes are
    taken as they are.

    Raises:
        CsmError: it is no list of Segments and Conversations, a segment has no audio, or nothing usable is left.
    """
    if not is_list(data):
        raise CsmError(
            f"the data are {data!r:.60}; they are a list of Segments and Conversations.",
            "Files are read by csm.data.manifest.read_data and CSMFineTuner.tokenise, or by csm-finetune --data-path.",
        )
    conversations, faults = [], []
    for i, item in enumerate(data):
        name = f"train_dataset[{i}]"
        turns = checked_turns([item] if isinstance(item, Segment) else item, name)
        coded = []
        for j, segment in enumerate(turns):
            result = _code(segment, f"{i:05d}-{j:03d}", codec, cache, config)
            if isinstance(result, Fault):
                faults.append(result)
            else:
                coded.append(result)
        if coded:
            conversations.append(coded)
    require_usable(len(conversations), faults)
    return Tokenised(conversations, faults, codec.frame_rate)


def _code(segment: Segment, name: str, codec: Codec, cache: CodeCache, config: ModelConfig) -> CodedTurn | Fault:
    text, source = clean_text(segment.text), Path(f"segment {name}")
    if segment.audio is None:
        raise CsmError(f"segment {name} has no audio.", "Training needs the sound of every segment.")
    if wrong := weight_problem(segment.weight):
        raise CsmError(f"segment {name} {wrong}.", "1 is a turn like the others, 0 is context only.")
    if isinstance(segment.audio, str | Path):
        path = Path(segment.audio).expanduser()
        row = Row(name, path, text, segment.speaker, path, weight=float(segment.weight))
        codes = cache.codes_of(row)
        return codes if isinstance(codes, Fault) else CodedTurn(row, codes)
    raw = segment.audio
    array = np.asarray(raw.detach().cpu() if hasattr(raw, "detach") else raw)
    row = Row(name, source, text, segment.speaker, source, weight=float(segment.weight))
    if array.ndim == 2 and np.issubdtype(array.dtype, np.integer):
        problem = config.code_problem(array)
        return Fault(source, problem) if problem else CodedTurn(row, array.astype(np.int64))
    if array.ndim != 1:
        return Fault(source, f"has audio of shape {array.shape}; it is (samples,), or integer codes (K, T)")
    wave = prepare_sound(array.astype(np.float32), codec.sample_rate, codec.sample_rate)
    if isinstance(wave, str):
        return Fault(source, wave)
    codes = codec.encode(wave)
    return text_fault(row, codes.shape[1] / codec.frame_rate) or CodedTurn(row, codes)
