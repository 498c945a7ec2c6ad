"""Our model against transformers' on random weights: logits, losses, folders both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOY_CODEBOOKS

from csm.errors import CsmError
from csm.frames import join, turn
from csm.model_folder import open_folder
from csm.recipe import Recipe
from csm.torch.checkpoint import load_model, write_checkpoint, write_unchanged
from csm.torch.trainer import TorchTrainer

TEXT, FRAMES = 9, 14


def random_turn(seed: int, frames: int = FRAMES) -> Any:
    rng = np.random.default_rng(seed)
    return turn(rng.integers(5, 54, TEXT), rng.integers(1, 64, (TOY_CODEBOOKS, frames)), TOY_CODEBOOKS)


def transformers_rows(model: Any, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """inputs_embeds (1, T, W) and labels (1, T, K) of our rows."""
    frames = torch.from_numpy(rows.frames).long()
    audio = torch.from_numpy(rows.audio_rows)
    embeds = model.embed_text_tokens(frames[:, -1]).clone()
    embeds[audio] = model.backbone_model.embed_tokens(frames[None, audio, :-1])[0]
    labels = torch.where(audio[:, None], frames[:, :-1], -100)
    return embeds[None], labels[None]


def test_logits_equal_transformers(toy_folder: Path, toy_transformers: Any) -> None:
    rows = join([random_turn(0), random_turn(1)])
    model = load_model(open_folder(toy_folder))
    with torch.no_grad():
        embeds, labels = transformers_rows(toy_transformers, rows)
        theirs = toy_transformers(inputs_embeds=embeds, labels=labels, use_cache=False)
        first, depth = model(torch.from_numpy(rows.frames).long()[None], torch.from_numpy(rows.mask)[None])
    torch.testing.assert_close(first, theirs.logits, atol=1e-4, rtol=0)
    audio = np.flatnonzero(rows.audio_rows)
    torch.testing.assert_close(depth[0, audio - 1], theirs.depth_decoder_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("keep_every", [1, 3])
def test_losses_equal_transformers(toy_folder: Path, toy_transformers: Any, keep_every: int) -> None:
    """The same frames, all of them or every third in the depth decoder's loss."""
    from csm.data.batches import collate
    from csm.data.examples import Example

    rows = random_turn(2)
    example = Example("a", rows, 0)
    chosen = np.arange(len(example.targets)) % keep_every == 0
    embeds, labels = transformers_rows(toy_transformers, rows)
    skipped = torch.from_numpy(example.targets[~chosen])
    labels[0, skipped, 1:] = -100
    with torch.no_grad():
        theirs = toy_transformers(inputs_embeds=embeds, labels=labels, use_cache=False)
    trainer = TorchTrainer(load_model(open_folder(toy_folder)), Recipe())
    scores = trainer.score(collate([example], [chosen]))
    ours = scores["semantic"].sum() / scores["semantic_tokens"].sum()
    assert ours == pytest.approx(theirs.backbone_loss.item(), abs=1e-5)
    ours = scores["acoustic"].sum() / scores["acoustic_tokens"].sum()
    assert ours == pytest.approx(theirs.depth_decoder_loss.item(), abs=1e-5)


def test_a_saved_checkpoint_loads_in_transformers(toy_folder: Path, tmp_path: Path) -> None:
    """Train a step, save; transformers reads the sharded folder, codec included, and gives the same logits."""
    from transformers import CsmForConditionalGeneration

    from csm.data.batches import collate
    from csm.data.examples import Example

    base = open_folder(toy_folder)
    trainer = TorchTrainer(load_model(base), Recipe(learning_rate=1e-2, freeze_backbone=True))
    example = Example("a", random_turn(3), 0)
    trainer.step([collate([example], [np.ones(FRAMES + 1, bool)])], 1e-2)
    write_unchanged(base, trainer.trained_names, tmp_path / "unchanged")
    out = tmp_path / "out"
    out.mkdir()
    write_checkpoint(trainer.model, trainer.trained_names, tmp_path / "unchanged", out)

    theirs = CsmForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    ours = load_model(open_folder(out))
    rows = random_turn(4)
    with torch.no_grad():
        embeds, labels = transformers_rows(theirs, rows)
        got = theirs(inputs_embeds=embeds, labels=labels, use_cache=False)
        first, _ = ours(torch.from_numpy(rows.frames).long()[None], torch.from_numpy(rows.mask)[None])
    torch.testing.assert_close(first, got.logits, atol=1e-4, rtol=0)
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)
    codec = theirs.codec_model.state_dict()
    for name, tensor in CsmForConditionalGeneration.from_pretrained(toy_folder).codec_model.state_dict().items():
        torch.testing.assert_close(codec[name], tensor, rtol=0, atol=0)


def test_every_wrong_tensor_is_named_at_once(toy_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(toy_folder / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["stranger.weight"] = torch.zeros(2)
    tensors["embed_text_tokens.weight"] = torch.zeros(3, 48)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((toy_folder / "config.json").read_text())
    with pytest.raises(CsmError, match="does not fit") as caught:
        open_folder(tmp_path)
    for part in ("lm_head.weight is missing", "stranger.weight does not belong", "embed_text_tokens.weight is [3, 48]"):
        assert part in caught.value.message


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    """A pickle that would create a file when read is refused, and the file is not created."""
    import pickle

    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return (open, (str(trap), "w"))

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CsmError, match="pickle"):
        open_folder(tmp_path / "model.pt")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CsmError):
        open_folder(folder)
    assert not trap.exists()
