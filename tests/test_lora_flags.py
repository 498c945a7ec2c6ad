"""Every flag of the method lora that names parts or biases: what a run of two updates leaves differs as it should."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from csm.cli.finetune import main

PREFIX = "base_model.model."
TARGETS = ("backbone.q_proj", "decoder.q_proj", "projection")
BACKBONE, DECODER = (f"{stack}.layers.{{}}.self_attn.q_proj" for stack in ("backbone_model", "depth_decoder.model"))
PROJECTION = "depth_decoder.model.inputs_embeds_projector"


@dataclass(frozen=True)
class Left:
    """What a run left: the tensors of its adapter by name, and PEFT's config."""

    tensors: dict[str, Tensor]
    config: dict[str, object]

    def rank(self, module: str) -> int:
        return len(self.tensors[f"{module}.lora_A.weight"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def go(toy: Path, clips: Path, cache: Path, out: Path, *flags: str) -> Left:
    words = ["--model-path", toy, "--audio-dir", clips / "audio", "--transcript-dir", clips / "transcripts", "--speaker-id",
             5, "--output-dir", out, "--cache-dir", cache, "--threads", 1, "--max-steps", 2, "--method", "lora",
             "--no-freeze-backbone", "--target-modules", *TARGETS, "--log-to", "none", *flags]  # fmt: skip
    done = CliRunner().invoke(main, ["voice-adapt", *map(str, words)])
    assert done.exit_code == 0, done.output
    folder = out / "checkpoints" / "step-000002"
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    return Left({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}, config)


@pytest.fixture(scope="module")
def plain(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Left:
    return go(toy_folder, clip_folder, cache, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture
def left(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Left:
    return go(toy_folder, clip_folder, cache, tmp_path / "run", *request.param)


@pytest.mark.parametrize("left", [("--lora-bias",)], indirect=True)
def test_biases_learn(plain: Left, left: Left) -> None:
    biases = {name for name in left.tensors if name.endswith("lora_B.bias")}
    assert biases == set(left.tensors) - set(plain.tensors)
    assert len(biases) == 5
    assert all(left.tensors[name].any() for name in biases)
    assert left.config["lora_bias"] is True


@pytest.mark.parametrize("left", [("--lora-ranks", "decoder=3", "projection=2")], indirect=True)
def test_parts_have_their_own_ranks(plain: Left, left: Left) -> None:
    modules = (BACKBONE.format(1), DECODER.format(1), PROJECTION)
    assert [plain.rank(module) for module in modules] == [8, 8, 8]
    assert [left.rank(module) for module in modules] == [8, 3, 2]


@pytest.mark.parametrize("left", [("--lora-alphas", "decoder=160")], indirect=True)
def test_parts_have_their_own_alphas(plain: Left, left: Left) -> None:
    """Ten times the weight on the decoder: PEFT is told, and what is learned differs."""
    patterns = left.config["alpha_pattern"]
    assert isinstance(patterns, dict)
    assert {(name.replace("\\", ""), alpha) for name, alpha in patterns.items()} == {
        (DECODER.format(layer), 160.0) for layer in (0, 1)
    }
    name = f"{DECODER.format(1)}.lora_B.weight"
    assert not torch.equal(left.tensors[name], plain.tensors[name])


@pytest.mark.parametrize("left", [("--lora-decoder-layers", "1")], indirect=True)
def test_layers_of_the_decoder(plain: Left, left: Left) -> None:
    gone = {name.split(".lora_")[0] for name in set(plain.tensors) - set(left.tensors)}
    assert gone == {DECODER.format(0)}
    assert not set(left.tensors) - set(plain.tensors)
