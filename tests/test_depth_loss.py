"""The depth decoder's loss in pieces beside the whole: logits in full, torch's cross entropy, autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from csm.model_folder import open_folder
from csm.torch import depth_loss as module
from csm.torch.checkpoint import load_model
from csm.torch.depth_loss import depth_loss, depth_losses_each
from csm.torch.model import Csm

FRAMES = 7


@pytest.fixture
def model(toy_folder: Path) -> Csm:
    return load_model(open_folder(toy_folder))


@pytest.mark.parametrize("together", [1, 3, 64])
@pytest.mark.parametrize("frozen", ["", "inputs", "codebooks_head", "model.layers"])
def test_pieces_make_the_gradients_of_the_whole(
    model: Csm, monkeypatch: pytest.MonkeyPatch, together: int, frozen: str
) -> None:
    """Whatever learns: the states, the table, the heads, the layers, each in its turn left out."""
    monkeypatch.setattr(module, "FRAMES_CPU", together)
    draw, config = torch.Generator().manual_seed(1), model.config
    codes = torch.randint(0, config.vocab_size, (FRAMES, config.num_codebooks), generator=draw)
    codes[1] = codes[0]
    states = torch.randn(FRAMES, config.backbone.hidden_size, generator=draw).requires_grad_(frozen != "inputs")
    decoder = model.depth_decoder
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    decoder.model.embed_tokens.weight.requires_grad_(frozen != "inputs")
    learned = [p for p in (states, *decoder.parameters()) if p.requires_grad]

    losses = F.cross_entropy(model.depth_logits(states, codes).transpose(1, 2), codes[:, 1:], reduction="none")
    expected = torch.autograd.grad(0.5 * losses.sum(), learned)

    ours = 0.5 * depth_loss(decoder, states, decoder.model.embed_tokens.weight, codes + model.offsets(), codes)
    assert ours.item() == pytest.approx(0.5 * losses.sum().item(), rel=1e-6)
    for found, wanted in zip(torch.autograd.grad(ours, learned), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    each = depth_losses_each(decoder, states, decoder.model.embed_tokens.weight, codes + model.offsets(), codes)
    torch.testing.assert_close(each, losses.detach(), rtol=1e-5, atol=1e-6)


def test_no_frame_is_no_loss(model: Csm) -> None:
    """A batch in which no frame trains the depth decoder."""
    decoder, books = model.depth_decoder, model.config.num_codebooks
    none = torch.zeros(0, books, dtype=torch.int64)
    states = torch.zeros(0, model.config.backbone.hidden_size)
    loss = depth_loss(decoder, states, decoder.model.embed_tokens.weight, none, none)
    assert loss.item() == 0
    loss.backward()
    assert depth_losses_each(decoder, states, decoder.model.embed_tokens.weight, none, none).shape == (0, books - 1)
