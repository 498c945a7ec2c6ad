"""Adapters: the same numbers as PEFT's on transformers' CSM, both ways; what learns, what stays, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOY_CODEBOOKS
from safetensors.torch import load_file, save_file
from test_model import random_turn, transformers_rows
from test_run import cache, data, train, tuner  # noqa: F401 - fixtures
from test_trainer import batch, trainer

from csm.adapters.origin import Origin, write_base
from csm.adapters.plan import plan_adapters
from csm.adapters.settings import LoraSettings
from csm.adapters.targets import SINGLES
from csm.backend import Sampling
from csm.errors import CsmError
from csm.frames import text_rows
from csm.model_folder import ModelFolder, open_folder
from csm.recipe import Recipe
from csm.torch.checkpoint import load_model, write_adapter
from csm.torch.generate import TorchFrameGenerator
from csm.torch.lora import adapter_state, attach, is_adapter_name, merge, unmerge
from csm.torch.lora_file import load_adapter
from csm.torch.model import Csm
from csm.torch.trainer import TorchTrainer, group_of

pytestmark = pytest.mark.filterwarnings("ignore")
LINEAR = ("attn", "projection", "codebook0_head")
EVERYTHING = (*LINEAR, "acoustic_heads", "text_embeddings", "audio_embeddings")
KINDS_OF: dict[str, dict[str, Any]] = {
    "attn": {"targets": ("attn",)},
    "everything": {"targets": EVERYTHING},
    "automatic": {},
    "rslora": {"targets": EVERYTHING, "rslora": True},
    "dora": {"targets": LINEAR, "dora": True},
    "dora and rslora": {"targets": LINEAR, "dora": True, "rslora": True},
    "bias": {"targets": LINEAR, "bias": True},
    "parts": {
        "targets": ("backbone.q_proj", "decoder.attn", *SINGLES), "layers": (1,), "decoder_layers": (0,),
        "ranks": ("decoder=3", "acoustic_heads=2", "audio_embeddings=5"), "alphas": ("backbone=7", "text_embeddings=3"),
    },
}  # fmt: skip


def shaken(folder: Path, seed: int = 3, **settings: Any) -> tuple[Csm, Any]:
    """The toy model with an adapter in which no tensor is zero."""
    model = load_model(open_folder(folder)).eval()
    plan = plan_adapters(model.config, LoraSettings(**{"rank": 4, "alpha": 8.0, **settings}))
    attach(model, plan)
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter_state(model).values():
        if (tensor > 0).all():  # DoRA's lengths
            tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
        else:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model, plan


def saved(model: Csm, plan: Any, base: ModelFolder, out: Path) -> Path:
    write_base(Origin(base.name, "toy", base.hash), out.with_name(f"{out.name}-unchanged"))
    out.mkdir()
    write_adapter(model, plan, out.with_name(f"{out.name}-unchanged"), out)
    return out


def logits(model: Csm, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rows = random_turn(seed)
    with torch.no_grad():
        first, depth = model(torch.from_numpy(rows.frames).long()[None], torch.from_numpy(rows.mask)[None])
    return first, depth[0, np.flatnonzero(rows.audio_rows) - 1]


def their_logits(model: Any, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rows = random_turn(seed)
    with torch.no_grad():
        embeds, labels = transformers_rows(model.base_model.model if hasattr(model, "peft_config") else model, rows)
        out = model(inputs_embeds=embeds, labels=labels, use_cache=False)
    return out.logits, out.depth_decoder_logits


def transformers_model(folder: Path) -> Any:
    from transformers import CsmForConditionalGeneration

    return CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def assert_logits(one: tuple[torch.Tensor, ...], two: tuple[torch.Tensor, ...]) -> None:
    """To 1e-5 of the largest, which is about 5: without any adapter the toy is up to 1.5e-5 from transformers."""
    for x, y in zip(one, two, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5 * max(1.0, float(y.abs().max())), rtol=0)


@pytest.mark.parametrize("kind", KINDS_OF)
def test_peft_loads_ours_with_equal_logits(toy_folder: Path, tmp_path: Path, kind: str) -> None:
    from peft import PeftModel

    base = open_folder(toy_folder)
    model, plan = shaken(toy_folder, **KINDS_OF[kind])
    folder = saved(model, plan, base, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # PEFT's warning of patterns that match nothing
        theirs = PeftModel.from_pretrained(transformers_model(toy_folder), folder).eval()
    assert_logits(logits(model), their_logits(theirs))
    plain = logits(load_model(base).eval())
    assert (logits(model)[0] - plain[0]).abs().max() > 1e-2, "the adapter acts"


PEFT_MADE: dict[str, dict[str, Any]] = {
    "a list": {"target_modules": ["q_proj", "v_proj"]},
    "a pattern, its start in B too": {
        "target_modules": r"(backbone_model|depth_decoder\.model)\.layers\.\d+\..*_proj", "init_lora_weights": False,
    },
    "rsLoRA": {"target_modules": r"backbone_model.*_proj|lm_head", "use_rslora": True},
    "DoRA": {"target_modules": r"(backbone_model|depth_decoder).*_(proj|projector)", "use_dora": True},
    "bias": {"target_modules": r"(backbone_model|depth_decoder).*_proj", "lora_bias": True},
    "some layers, ranks by pattern": {
        "target_modules": ["gate_proj", "o_proj"], "layers_to_transform": [1], "rank_pattern": {"mlp.gate_proj": 2},
        "alpha_pattern": {r"backbone_model\.layers\.\d+\.self_attn\.o_proj": 3},
    },
    "heads and tables": {
        "target_modules": [
            "lm_head", "embed_text_tokens", "backbone_model.embed_tokens.embed_audio_tokens",
            "depth_decoder.model.embed_tokens", "depth_decoder.model.inputs_embeds_projector",
        ],
        "target_parameters": ["depth_decoder.codebooks_head.weight"],
    },
}  # fmt: skip


def peft_folder(toy_folder: Path, out: Path, shake: bool = True, **settings: Any) -> Any:
    """An adapter that PEFT made and saved, no tensor of it zero but on the codec, the tied tables alike; its model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    model = get_peft_model(transformers_model(toy_folder), LoraConfig(r=4, lora_alpha=9, **settings)).eval()
    tied: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not shake or ".lora_" not in name or "codec_model" in name:
            continue
        if "magnitude" in name:
            tensor.mul_(1 + 0.3 * torch.rand(tensor.shape))
        else:
            key = name.replace("backbone_model.embed_tokens.embed_audio_tokens", "depth_decoder.model.embed_tokens")
            tensor.copy_(tied.setdefault(key, 0.1 * torch.randn(tensor.shape)))
    model.save_pretrained(out)
    return model


@pytest.mark.parametrize("kind", PEFT_MADE)
def test_pefts_loads_in_ours_with_equal_logits(toy_folder: Path, tmp_path: Path, kind: str) -> None:
    """Also through a model path, merged: PEFT's own folder says where its base is."""
    theirs = peft_folder(toy_folder, tmp_path / "peft", **PEFT_MADE[kind])
    ours = load_model(open_folder(toy_folder)).eval()
    load_adapter(ours, tmp_path / "peft")
    assert_logits(logits(ours), their_logits(theirs))
    assert_logits(logits(load_model(open_folder(tmp_path / "peft")).eval()), their_logits(theirs))


def test_heads_of_peft_up_to_0_19_0_are_turned(toy_folder: Path, tmp_path: Path) -> None:
    """It had (r * heads, inputs) in A and (outputs, r * heads) in B, and W[h] += scale * A_h^T B_h^T."""
    model, plan = shaken(toy_folder, targets=("acoustic_heads",))
    folder = saved(model, plan, open_folder(toy_folder), tmp_path / "adapter")
    name = "base_model.model.depth_decoder.codebooks_head.lora_{}.weight"
    heads, width, outputs = model.depth_decoder.codebooks_head.weight.shape
    a, b = 0.1 * torch.randn(4 * heads, width), 0.1 * torch.randn(outputs, 4 * heads)
    save_file({name.format("A"): a, name.format("B"): b}, folder / "adapter_model.safetensors")
    change = torch.einsum("ore,eri->eio", b.reshape(outputs, 4, heads), a.reshape(heads, 4, width)) * 2.0
    merged = load_model(open_folder(folder)).depth_decoder.codebooks_head.weight
    torch.testing.assert_close(merged, model.depth_decoder.codebooks_head.weight + change, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS_OF)
def test_merged_equals_adapter_on_and_unmerge_gives_the_bits_back(toy_folder: Path, tmp_path: Path, kind: str) -> None:
    base = open_folder(toy_folder)
    model, plan = shaken(toy_folder, **KINDS_OF[kind])
    on, before = logits(model), {n: t.clone() for n, t in model.state_dict().items()}
    merge(model)
    assert_logits(logits(model), on)
    unmerge(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    untouched = load_model(base).state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in untouched.items())
    opened = open_folder(saved(model, plan, base, tmp_path / "adapter"))
    loaded = load_model(opened).eval()
    assert_logits(logits(loaded), on)
    assert not adapter_state(loaded), "nothing is left of the adapter but the weights"
    assert opened.hash != base.hash


@pytest.mark.parametrize("kind", ["everything", "bias", "dora"])
def test_an_adapter_speaks(toy_folder: Path, tmp_path: Path, kind: str) -> None:
    """Greedy frames of the generator are the argmax of the adapted model's own logits."""
    model, plan = shaken(toy_folder, seed=9, **KINDS_OF[kind])
    folder = saved(model, plan, open_folder(toy_folder), tmp_path / "adapter")
    speaker = TorchFrameGenerator(load_model(open_folder(folder)))
    prompt = text_rows(np.arange(5, 14), TOY_CODEBOOKS)
    frame = next(iter(speaker.frames(prompt, Sampling(0.0), 1)))
    rows = torch.zeros(1, len(prompt) + 1, TOY_CODEBOOKS + 1, dtype=torch.long)
    rows[0, :-1] = torch.from_numpy(prompt.frames)
    rows[0, -1, :-1] = torch.from_numpy(frame)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    mask[0, :-1] = torch.from_numpy(prompt.mask)
    mask[0, -1, :-1] = True
    with torch.no_grad():
        first, depth = model(rows, mask)
    spoken = model.config.spoken_codes
    assert frame[0] == first[0, len(prompt) - 1, :spoken].argmax()
    np.testing.assert_array_equal(frame[1:], depth[0, len(prompt) - 1, :, :spoken].argmax(-1))


# ---- training -------------------------------------------------------------------------------------------------------


def adapting(folder: Path, **recipe: Any) -> TorchTrainer:
    return trainer(folder, method="lora", **recipe)


@pytest.mark.parametrize("kind", KINDS_OF)
def test_only_adapters_learn_and_all_of_them_do(toy_folder: Path, kind: str) -> None:
    one = adapting(toy_folder, **{f"lora_{key}": value for key, value in KINDS_OF[kind].items()})
    names = dict(one.model.named_parameters())
    assert one.trained_names == {name for name in names if is_adapter_name(name)} == set(adapter_state(one.model))
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    for _ in range(2):  # in the first update one of each pair is still nothing, and so is the other's gradient
        one.step([batch(1, 2, 3)], 1e-2)
    for name, tensor in one.model.state_dict().items():
        assert bool((tensor != before[name]).any()) == is_adapter_name(name), name
    assert all(parameter.grad is None for parameter in names.values())


def test_it_starts_as_the_base(toy_folder: Path) -> None:
    """B is nothing at first, or A, for tables: the losses are the base's, bit for bit or nearly."""
    one, base = adapting(toy_folder, lora_targets=EVERYTHING), trainer(toy_folder)
    assert one.step([batch(1, 2)], 0.0)["loss"] == pytest.approx(base.step([batch(1, 2)], 0.0)["loss"], rel=1e-6)
    zero = {name for name, tensor in adapter_state(one.model).items() if not tensor.any()}
    wanted = {n for n in one.trained_names if n.endswith("lora_B.weight") or n.endswith("lora_embedding_A")}
    assert zero == wanted


@pytest.mark.parametrize("kind", ["everything", "dora", "bias"])
def test_gradients_equal_those_of_the_merged_weights(toy_folder: Path, kind: str) -> None:
    """The fused paths against plain autograd: a step along the adapters' gradients changes the loss as it should."""
    settings = {f"lora_{key}": value for key, value in KINDS_OF[kind].items()}
    one = adapting(toy_folder, **settings)
    model, _ = shaken(toy_folder, **{"rank": 8, "alpha": 16.0, **KINDS_OF[kind]})
    one.model.load_state_dict(model.state_dict())
    one.model.train()
    slopes = gradients(one, batch(1, 2, 3))
    if kind == "everything":  # W + 2 B A, so dB = 2 G A^T and dA = 2 B^T G, where G is the slope of the merged weight
        merge(model)
        weights = trainer(toy_folder)
        weights.model.load_state_dict({n: t for n, t in model.state_dict().items() if not is_adapter_name(n)})
        full, state = gradients(weights, batch(1, 2, 3)), one.model.state_dict()
        for name in (
            "backbone_model.layers.0.self_attn.k_proj",
            "depth_decoder.model.layers.1.mlp.down_proj",
            "lm_head",
        ):
            a, b, slope = (
                x[f"{name}.{n}"] for x, n in ((state, "lora_A.weight"), (state, "lora_B.weight"), (full, "weight"))
            )
            torch.testing.assert_close(slopes[f"{name}.lora_B.weight"], 2 * slope @ a.t(), atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(slopes[f"{name}.lora_A.weight"], 2 * b.t() @ slope, atol=1e-5, rtol=1e-3)
    assert slopes.keys() == one.trained_names
    for name, slope in slopes.items():
        if kind == "dora" and not name.endswith("magnitude_vector"):
            continue  # the norm is held constant, so a difference quotient says something else
        check_slope(one, name, slope)


def mean_loss(one: TorchTrainer, mine: Any) -> torch.Tensor:
    semantic, acoustic = one._losses(mine)
    return semantic / len(mine.targets) + acoustic / mine.acoustic_tokens


def gradients(one: TorchTrainer, mine: Any) -> dict[str, torch.Tensor]:
    one.optimizer.zero_grad()
    mean_loss(one, mine).backward()
    return {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}


def check_slope(one: TorchTrainer, name: str, slope: torch.Tensor) -> None:
    mine, parameter = batch(1, 2, 3), dict(one.model.named_parameters())[name]
    direction, losses = slope / slope.norm(), []
    with torch.no_grad():
        for step in (2e-2, -2e-2):
            parameter += step * direction
            losses.append(mean_loss(one, mine).item())
            parameter -= step * direction
    assert (losses[0] - losses[1]) / 4e-2 == pytest.approx(slope.norm().item(), rel=0.05, abs=2e-4), name


@pytest.mark.parametrize("frozen", ["backbone", "decoder", "embeddings"])
def test_a_frozen_group_takes_no_adapter(toy_folder: Path, frozen: str) -> None:
    targets = tuple(t for t in EVERYTHING if t in ("attn",) or group_of(f"{SINGLES[t]}.x") != frozen)
    one = adapting(toy_folder, lora_targets=targets, **{f"freeze_{frozen}": True})
    assert {group_of(name) for name in one.trained_names} == {"backbone", "decoder", "embeddings"} - {frozen}
    assert adapting(toy_folder, **{f"freeze_{frozen}": True}).trained_names


def test_rates_and_decay_of_the_groups(toy_folder: Path) -> None:
    one = adapting(toy_folder, lora_targets=EVERYTHING, backbone_rate=0.1, embeddings_rate=0.5, weight_decay=0.25)
    one.step([batch(1)], 1e-3)
    for group in one.optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-3 * {"backbone": 0.1, "decoder": 1.0, "embeddings": 0.5}[group["group"]])
        assert group["weight_decay"] == (0.0 if group["group"] == "embeddings" else 0.25)
    dora = adapting(toy_folder, lora_dora=True, weight_decay=0.25)
    plain = [g for g in dora.optimizer.param_groups if g["weight_decay"] == 0.0]
    assert {name.rsplit(".", 1)[1] for g in plain for name in g["names"]} == {"lora_magnitude_vector"}


def test_kept_states_hold_only_while_backbone_and_embeddings_rest(toy_folder: Path) -> None:
    """Adapters on the decoder alone: states are kept, and equal to computed ones. With one in the backbone or on a table
    they move with every update, and nothing is kept."""
    frozen = {"freeze_backbone": True, "freeze_embeddings": True}
    keeps, computes = adapting(toy_folder, **frozen), adapting(toy_folder, **frozen)
    assert keeps.keeps_states
    computes.keeps_states = False
    for numbers in ([1, 2], [2, 15], [1, 2]):
        one, two = (t.step([batch(*numbers)], 1e-2) for t in (keeps, computes))
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert len(keeps._states) == 3
    assert adapting(toy_folder, lora_targets=("decoder.attn",)).keeps_states
    for moving in (
        adapting(toy_folder, lora_targets=("backbone.q_proj", "decoder.attn")),
        adapting(toy_folder, freeze_backbone=True, lora_targets=("attn", "text_embeddings")),
        adapting(toy_folder, freeze_backbone=True, lora_targets=("attn", "audio_embeddings")),
    ):
        assert not moving.keeps_states
        first = moving.score(batch(1))["semantic"][0]
        for _ in range(2):
            moving.step([batch(1)], 1e-2)
        assert moving.score(batch(1))["semantic"][0] != first
        assert not moving._states


@pytest.mark.parametrize("target", ["q_proj", "codebook0_head", "acoustic_heads", "projection"])
def test_dropout_is_before_a_and_in_training_alone(toy_folder: Path, target: str) -> None:
    """The first update leaves A and moves B by what A made of the input that was left: it differs from draw to draw.
    Scores do not."""
    one = adapting(toy_folder, lora_targets=(target,), lora_dropout=0.5)
    still = adapting(toy_folder, lora_targets=(target,))
    for each in (one, still):
        generator = torch.Generator().manual_seed(2)
        for tensor in adapter_state(each.model).values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    drawn = {one.step([batch(1, 2)], 0.0)["loss"] for _ in range(4)}
    assert len(drawn) == 4
    scores = [one.score(batch(1, 2)) for _ in range(2)] + [still.score(batch(1, 2))]
    for key in scores[0]:
        np.testing.assert_array_equal(scores[0][key], scores[1][key])
        np.testing.assert_allclose(scores[0][key], scores[2][key], rtol=1e-5)
    assert len({still.step([batch(1, 2)], 0.0)["loss"] for _ in range(3)}) == 1
    assert still.step([batch(1, 2)], 0.0)["loss"] == pytest.approx(np.mean(list(drawn)), rel=0.3)


def test_accumulation_equals_one_big_batch(toy_folder: Path) -> None:
    whole, parts = (adapting(toy_folder, lora_targets=EVERYTHING) for _ in range(2))
    for _ in range(2):
        one = whole.step([batch(1, 2, 3, 15, keep=3)], 1e-3)
        many = parts.step([batch(*numbers, keep=3) for numbers in ([1, 2], [3], [15])], 1e-3)
        assert one["loss"] == pytest.approx(many["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(many["grad_norm"], rel=1e-4)


def test_a_trained_step_equals_pefts(toy_folder: Path, tmp_path: Path) -> None:
    """Three updates of the same adapter from the same start on the same frames: our losses are transformers' with PEFT."""
    from peft import LoraConfig, get_peft_model

    from csm.data.batches import collate
    from csm.data.examples import Example

    torch.manual_seed(0)
    wanted = LoraConfig(
        r=8, lora_alpha=16, init_lora_weights=False, target_parameters=["depth_decoder.codebooks_head.weight"],
        target_modules=r"(backbone_model|depth_decoder).*_proj|lm_head|depth_decoder\.model\.inputs_embeds_projector",
    )  # fmt: skip
    theirs = get_peft_model(transformers_model(toy_folder), wanted)
    theirs.save_pretrained(tmp_path / "start")
    rows = random_turn(2)
    embeds, labels = transformers_rows(theirs.base_model.model, rows)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01)
    one = adapting(toy_folder)
    from csm.torch.lora_file import read_adapter_of, set_adapter

    set_adapter(one.model, read_adapter_of(one.model, tmp_path / "start"))
    example = Example("a", rows, 0)
    mine = collate([example], [np.ones(len(example.targets), bool)])
    for _ in range(3):
        loss = theirs(inputs_embeds=embeds.detach(), labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert one.step([mine], 1e-2)["loss"] == pytest.approx(loss.item(), abs=1e-4)


# ---- runs -----------------------------------------------------------------------------------------------------------

LORA_RUN: dict[str, Any] = {"method": "lora", "lora_targets": EVERYTHING, "lora_dropout": 0.3}


@pytest.fixture(scope="module")
def straight(toy_folder: Path, data: Any, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    run = tmp_path_factory.mktemp("lora") / "run"
    train(tuner(toy_folder, run, cache, **LORA_RUN), data)
    return run


def state_of(run: Path, step: int = 8) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    momenta = load_file(folder / "trainer" / "optimizer.safetensors")
    return {**load_file(folder / "adapter_model.safetensors"), **{f"trainer/{k}": v for k, v in momenta.items()}}


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_resume_from_any_step_equals_straight_through(
    toy_folder: Path, data: Any, cache: Path, straight: Path, tmp_path: Path, stop_at: int  # noqa: F811
) -> None:  # fmt: skip
    """With dropout on, whose draws must go on where they were."""
    from csm.training.interrupt import Interrupted

    with pytest.raises(Interrupted) as caught:
        train(tuner(toy_folder, tmp_path / "run", cache, **LORA_RUN), data, stop_at)
    assert caught.value.exit_code == 128 + signal.SIGINT
    assert train(tuner(toy_folder, tmp_path / "run", cache, **LORA_RUN), data).from_step == stop_at
    one, two = state_of(straight), state_of(tmp_path / "run")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_is_an_adapter_folder_and_the_run_a_model(toy_folder: Path, straight: Path) -> None:
    from csm.generator import load_generator

    checkpoints = sorted((straight / "checkpoints").iterdir())
    for folder in checkpoints:
        files = {p.name for p in folder.iterdir()} - {"trainer"}
        assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors", "base.json"}
    base = open_folder(toy_folder)
    assert json.loads((checkpoints[0] / "base.json").read_text()) == {
        "schema_version": 1, "name": "model", "path": str(toy_folder.resolve()), "hash": base.hash,
    }  # fmt: skip
    assert len({(p / "base.json").stat().st_ino for p in checkpoints}) == 1
    keys = set(load_file(checkpoints[-1] / "adapter_model.safetensors"))
    trained = adapting(toy_folder, lora_targets=EVERYTHING).trained_names
    alias = "base_model.model.backbone_model.embed_tokens.embed_audio_tokens."
    assert {k for k in keys if not k.startswith(alias)} == {f"base_model.model.{name}" for name in trained}
    opened = open_folder(straight)
    assert opened.path.name == (straight / "best").read_text().strip()
    assert opened.base is not None
    assert opened.base.hash == base.hash
    assert len(load_generator(straight, "cpu").speak("hello.", max_audio_length_ms=400, seed=1).codes) == TOY_CODEBOOKS


def test_the_validation_loss_of_a_run_is_its_merged_checkpoints(
    toy_folder: Path, data: Any, cache: Path, straight: Path  # noqa: F811
) -> None:  # fmt: skip
    """What was measured beside the adapter is what the folder gives when it is opened."""
    from csm.training.loop import validate

    made = tuner(straight / "checkpoints" / "step-000006", straight.with_name("unused"), cache)
    parts = made._parts(*made._split(data), None)
    recorded = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert validate(parts)["validation_loss"] == pytest.approx(recorded[6]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_stage_goes_on_from_an_adapter(
    toy_folder: Path, data: Any, cache: Path, straight: Path, tmp_path: Path, method: str  # noqa: F811
) -> None:  # fmt: skip
    """Full training leaves whole folders of the merged weights; an adapter on an adapter refers to the one below."""
    frozen = {"freeze_backbone": True} if method == "full" else {}
    train(tuner(straight, tmp_path / "next", cache, method=method, max_steps=1, **frozen), data)
    opened = open_folder(tmp_path / "next")
    below, above = load_model(open_folder(straight)), load_model(opened)
    name = "backbone_model.layers.0.self_attn.q_proj.weight"
    if method == "full":
        assert opened.base is None
        assert torch.equal(below.state_dict()[name], above.state_dict()[name])
        transformers_model(opened.path)
    else:
        assert opened.base is not None
        assert opened.base.base is not None
        assert opened.beside == Path(toy_folder)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_another_base_is_refused_by_hash(toy_folder: Path, straight: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy_folder, other)
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    adapter = tmp_path / "adapter"
    shutil.copytree(straight / "checkpoints" / "step-000008", adapter)
    values = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").unlink()
    (adapter / "base.json").write_text(json.dumps({**values, "path": str(other)}))
    with pytest.raises(CsmError, match="is another model") as caught:
        open_folder(adapter)
    assert values["hash"][:12] in caught.value.message
    assert open_folder(other).hash[:12] in caught.value.message
    (adapter / "base.json").write_text(json.dumps({**values, "path": str(tmp_path / "gone")}))
    with pytest.raises(CsmError, match="cannot be opened"):
        open_folder(adapter)


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], **config: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))


def test_unmatched_keys_are_all_named(toy_folder: Path, tmp_path: Path) -> None:
    peft_folder(toy_folder, tmp_path / "a", target_modules=r"(backbone_model|depth_decoder).*\.(q|v)_proj")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        prefix = "base_model.model.backbone_model.layers"
        del tensors[f"{prefix}.0.self_attn.q_proj.lora_A.weight"]
        tensors[f"{prefix}.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 48)
        tensors[f"{prefix}.1.self_attn.v_proj.lora_B.weight"] = torch.zeros(3, 4)

    spoil(tmp_path / "a", change)
    with pytest.raises(CsmError, match="3 tensors") as caught:
        load_adapter(load_model(open_folder(toy_folder)), tmp_path / "a")
    for part in ("layers.0.self_attn.q_proj.lora_A.weight is missing", "layers.9.self_attn.q_proj.lora_A.weight is of no",
                 "layers.1.self_attn.v_proj.lora_B.weight is [3, 4], wanted [16, 4]"):  # fmt: skip
        assert part in caught.value.message


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight is missing"),
        ({"target_modules": "q_proj("}, "pattern that cannot be read"),
        ({"target_modules": 5}, "target_modules 5"),
        ({"modules_to_save": "lm_head"}, "modules_to_save 'lm_head'"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"r": "four"}, "no whole number"),
        ({"lora_alpha": None}, "alpha that is no number"),
        ({"bias": "all"}, "bias"),
        ({"target_modules": ["nothing"]}, "adapts nothing"),
    ],
)
def test_peft_options_that_mean_something_else_are_refused(
    toy_folder: Path, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    peft_folder(toy_folder, tmp_path / "a", target_modules=["q_proj"])
    spoil(tmp_path / "a", lambda _: None, **config)
    with pytest.raises(CsmError, match=says):
        load_adapter(load_model(open_folder(toy_folder)), tmp_path / "a")


def test_what_a_csm_cannot_express_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    model = load_model(open_folder(toy_folder))
    tables = ["backbone_model.embed_tokens.embed_audio_tokens", "depth_decoder.model.embed_tokens"]
    peft_folder(toy_folder, tmp_path / "one", target_modules=tables[:1])
    with pytest.raises(CsmError, match="one table"):
        load_adapter(model, tmp_path / "one")
    peft_folder(toy_folder, tmp_path / "two", target_modules=tables)
    spoil(tmp_path / "two", lambda t: t[f"base_model.model.{tables[0]}.lora_embedding_B"].add_(1))
    with pytest.raises(CsmError, match="differently"):
        load_adapter(model, tmp_path / "two")
    peft_folder(toy_folder, tmp_path / "codec", target_modules=["q_proj"])
    spoil(tmp_path / "codec", lambda t: [v.fill_(1) for k, v in t.items() if "codec" in k and "lora_B" in k])
    with pytest.raises(CsmError, match="does not adapt the codec"):
        load_adapter(model, tmp_path / "codec")
    peft_folder(toy_folder, tmp_path / "copy", target_modules=["lm_head"])
    spoil(tmp_path / "copy", lambda t: t["base_model.model.lm_head.base_layer.weight"].add_(1))
    with pytest.raises(CsmError, match=r"another base: its copies of lm_head\.weight"):
        load_adapter(model, tmp_path / "copy")


def test_biases_have_no_place_in_a_model_folder(
    toy_folder: Path, data: Any, cache: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    model, plan = shaken(toy_folder, **KINDS_OF["bias"])
    folder = saved(model, plan, open_folder(toy_folder), tmp_path / "adapter")
    with pytest.raises(CsmError, match="lora_bias"):
        train(tuner(folder, tmp_path / "run", cache, max_steps=1), data)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "qlora"}, "method is 'qlora'"),
        ({"method": "full", "lora_rank": 4}, "lora_rank is for the method lora"),
        ({"lora_rank": 0}, "lora_rank is 0; it goes from 1"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0; it goes from 0 to 0.99"),
        ({"lora_targets": ("q_prj",)}, "'q_prj', which is no part"),
        ({"lora_targets": ("decoder.projection",)}, "is no part"),
        ({"lora_targets": "attn"}, "which is no list"),
        ({"lora_layers": ("one",)}, "which is no int"),
        ({"lora_ranks": ("tail=3",)}, "PART=NUMBER"),
        ({"lora_ranks": ("decoder=0.5",)}, "whole number"),
        ({"lora_alphas": ("decoder=much",)}, "PART=NUMBER"),
        ({"lora_dora": True, "lora_bias": True}, "exclude each other"),
        ({"lora_dora": True, "lora_targets": ("attn", "acoustic_heads")}, "lora_dora cannot be had for acoustic_heads"),
        ({"lora_bias": True, "lora_targets": ("text_embeddings",)}, "lora_bias cannot be had for text_embeddings"),
    ],
)
def test_a_recipe_is_checked_in_a_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(CsmError) as caught:
        Recipe(**{"method": "lora", **settings})
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_layers": (0, 2)}, "layer 2; the backbone's layers go from 0 to 1."),
        ({"lora_decoder_layers": (7,)}, "layer 7; the decoder's layers go from 0 to 1."),
        ({"lora_layers": (0,), "freeze_backbone": True}, "where nothing is adapted"),
        ({"lora_targets": ("projection",), "freeze_decoder": True}, "decoder group, where it is, is frozen"),
        ({"lora_targets": ("text_embeddings",), "freeze_embeddings": True}, "embeddings group"),
        ({"freeze_backbone": True, "freeze_decoder": True}, "no adapter is left"),
    ],
)
def test_what_the_model_lacks_is_named(toy_folder: Path, settings: dict[str, Any], says: str) -> None:
    recipe = Recipe(method="lora", **settings)
    with pytest.raises(CsmError) as caught:
        plan_adapters(open_folder(toy_folder).config, recipe.lora, recipe.frozen)
    assert says in caught.value.message


def test_parts_have_their_own_targets_layers_ranks_and_alphas(toy_folder: Path) -> None:
    plan = plan_adapters(open_folder(toy_folder).config, LoraSettings(**KINDS_OF["parts"]))
    found = {site.path: (site.rank, site.alpha) for site in plan.sites}
    layers = {path for path in found if ".layers." in path}
    assert {p for p in layers if p.startswith("backbone")} == {"backbone_model.layers.1.self_attn.q_proj"}
    assert {p.split(".")[3] for p in layers if p.startswith("depth")} == {"0"}
    assert len(layers) == 8
    assert found["backbone_model.layers.1.self_attn.q_proj"] == (8, 7.0)
    assert found["depth_decoder.model.layers.0.mlp.up_proj"] == (3, 16.0)
    assert found["depth_decoder.codebooks_head"] == (2, 16.0)
    assert found["depth_decoder.model.embed_tokens"] == (5, 16.0)
    assert found["embed_text_tokens"] == (8, 3.0)


# ---- the command line -----------------------------------------------------------------------------------------------


def dry_run(toy_folder: Path, tmp_path: Path, *flags: str) -> Any:
    from click.testing import CliRunner

    from csm.cli.finetune import main

    out = ["--model-path", str(toy_folder), "--output-dir", str(tmp_path / "run"), "--dry-run"]
    return CliRunner().invoke(main, ["voice-adapt", *out, *flags])


def test_flags_reach_the_recipe_and_the_adapters_are_told(toy_folder: Path, tmp_path: Path) -> None:
    flags = ["--method", "lora", "--lora-rank", "4", "--lora-alpha", "32", "--lora-dropout", "0.1", "--rslora",
             "--no-freeze-backbone", "--target-layers", "0,1", "--target-modules", "attn projection"]  # fmt: skip
    done = dry_run(toy_folder, tmp_path, *flags)
    assert done.exit_code == 0, done.output
    shown = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert shown["method"] == ["lora", "flag"]
    assert shown["lora_rank"] == ["4", "flag"]
    assert shown["lora_alpha"] == ["32.0", "flag"]
    assert shown["lora_targets"] == ["attn,projection", "flag"]
    assert shown["lora_layers"] == ["0,1", "flag"]
    assert shown["lora_rslora"] == ["True", "flag"]
    assert "adapters: backbone 14, decoder 14, projection; " in done.stderr
    again = dry_run(toy_folder, tmp_path, *flags[:-4], "--target-layers", "0", "--target-layers", "1",
                    "--target-modules", "attn", "--target-modules", "projection")  # fmt: skip
    spaced = dry_run(
        toy_folder, tmp_path, *flags[:-4], "--target-layers", "0", "1", "--target-modules", "attn", "projection"
    )
    assert again.stdout == done.stdout == spaced.stdout
    assert "lora_" not in dry_run(toy_folder, tmp_path).stdout


def test_every_flag_is_in_the_table(toy_folder: Path, tmp_path: Path) -> None:
    from csm.cli.options import ADAPTER_FLAGS

    flags = ["--method", "lora", "--lora-rank", "3", "--lora-alpha", "9", "--lora-dropout", "0.2", "--rslora",
             "--target-modules", "backbone.attn", "decoder.attn", "--target-layers", "1", "--no-freeze-backbone",
             "--lora-decoder-layers", "0", "--lora-ranks", "decoder=2", "--lora-alphas", "decoder=5",
             "--no-train-embeddings"]  # fmt: skip
    for last, absent in (("--dora", "lora_bias"), ("--lora-bias", "lora_dora")):
        done = dry_run(toy_folder, tmp_path, *flags, last)
        shown = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  ")}
        found = {key for key, source in shown.items() if source == "flag"}
        assert found == {*ADAPTER_FLAGS, "freeze_backbone"} - {absent}


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--lora-rank", "4"), 1, "Add --method lora"),
        (("--method", "lora", "--target-layers", "0"), 1, "where nothing is adapted"),
        (("--method", "lora", "--target-layers", "one"), 2, "not a whole number"),
        (("--method", "lora", "--target-modules", "attention"), 1, "is no part of a CSM"),
        (("--method", "lora", "--dora", "--target-modules", "acoustic_heads"), 1, "lora_dora cannot be had"),
    ],
)
def test_a_wrong_flag_is_told(toy_folder: Path, tmp_path: Path, flags: tuple[str, ...], code: int, says: str) -> None:
    done = dry_run(toy_folder, tmp_path, *flags)
    assert done.exit_code == code
    assert says in done.stderr


def test_a_recipe_file_may_hold_parts(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "method: lora\nlora_ranks: {decoder: 2, acoustic_heads: 3}\nlora_targets: [attn, acoustic_heads]\n"
    )
    done = dry_run(toy_folder, tmp_path, "--recipe", str(tmp_path / "r.yaml"))
    assert done.exit_code == 0, done.output
    assert "lora_ranks" in done.stdout
    assert "decoder=2" in done.stdout or "(2)" in done.stdout
