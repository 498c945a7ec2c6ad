"""Weights in Sesame's and csm-mlx's layouts: the same numbers, the same logits, every fault told, nothing half-written."""

from __future__ import annotations

import json
import pickle
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import ASSETS, TOY_CODEBOOKS
from safetensors.torch import load_file, save_file

from csm.cli.main import main
from csm.config import ModelConfig, Stack
from csm.errors import CsmError
from csm.flavours import read_config, write_config
from csm.layouts import CSM_MLX, SESAME, TRANSFORMERS, halves_apart, into_layout, pairs_together, stored_name
from csm.model_folder import ModelFolder, open_folder
from csm.torch.checkpoint import load_model, write_checkpoint, write_unchanged
from csm.torch.convert import convert
from csm.torch.model import rope_tables
from csm.weights import parameter_shapes

FIVE = {
    "backbone_flavor": "llama-1B",
    "decoder_flavor": "llama-100M",
    "text_vocab_size": 128256,
    "audio_vocab_size": 2051,
    "audio_num_codebooks": 32,
}
FILES = {SESAME: "model.safetensors", CSM_MLX: "ckpt.safetensors"}


def csm(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert isinstance(done.exception, SystemExit | None), done.exc_info
    assert done.exit_code == code, done.stderr
    return done


def same_folder(one: Path, two: Path) -> None:
    """The same files but for the card, each equal to the byte."""
    names = [{p.name for p in folder.iterdir()} - {"README.md"} for folder in (one, two)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def rotate_pairs(rows: torch.Tensor, stack: Stack) -> torch.Tensor:
    """torchtune's rotation of (T, heads, head_dim): neighbours (0, 1), (2, 3), ... are the pairs."""
    angle = torch.arange(len(rows))[:, None] * torch.from_numpy(stack.inverse_frequencies())
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    even, odd = rows[..., 0::2], rows[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


def attend(rows: torch.Tensor, weights: dict[str, torch.Tensor], prefix: str, stack: Stack) -> torch.Tensor:
    """Causal attention over (T, width) in torchtune's convention, keys repeated for the query heads of their group."""
    q, k, v = (
        (rows @ weights[f"{prefix}.{name}_proj.weight"].t()).unflatten(-1, (-1, stack.head_dim)) for name in "qkv"
    )
    q, k = rotate_pairs(q, stack), rotate_pairs(k, stack)
    group = stack.num_attention_heads // stack.num_key_value_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / stack.head_dim**0.5
    scores = scores.masked_fill(torch.ones(len(rows), len(rows)).triu(1).bool(), float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", scores, v).flatten(1) @ weights[f"{prefix}.output_proj.weight"].t()


def normed(rows: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    return rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt() * scale


def sesame_stack(rows: torch.Tensor, weights: dict[str, torch.Tensor], prefix: str, stack: Stack) -> torch.Tensor:
    for i in range(stack.num_hidden_layers):
        at = f"{prefix}.layers.{i}"
        rows = rows + attend(
            normed(rows, weights[f"{at}.sa_norm.scale"], stack.rms_norm_eps), weights, f"{at}.attn", stack
        )
        x = normed(rows, weights[f"{at}.mlp_norm.scale"], stack.rms_norm_eps)
        gate, up = x @ weights[f"{at}.mlp.w1.weight"].t(), x @ weights[f"{at}.mlp.w3.weight"].t()
        rows = rows + (torch.nn.functional.silu(gate) * up) @ weights[f"{at}.mlp.w2.weight"].t()
    return normed(rows, weights[f"{prefix}.norm.scale"], stack.rms_norm_eps)


def sesame_logits(codes: torch.Tensor, weights: dict[str, torch.Tensor], config: ModelConfig) -> tuple[Any, Any]:
    """Frames (T, K) -> logits of codebook 0 (T, V), and of codebooks 1..K-1 of each frame after the first (T - 1, K - 1, V)."""
    table = weights["audio_embeddings.weight"]
    embedded = table[codes + torch.arange(config.num_codebooks) * config.vocab_size]
    hidden = sesame_stack(embedded.sum(1), weights, "backbone", config.backbone)
    depth = []
    for row in range(1, len(codes)):
        inputs = torch.cat([hidden[row - 1 : row], embedded[row, :-1]]) @ weights["projection.weight"].t()
        out = sesame_stack(inputs, weights, "decoder", config.depth)
        depth.append(torch.stack([out[i] @ weights["audio_head"][i - 1] for i in range(1, config.num_codebooks)]))
    return hidden @ weights["codebook0_head.weight"].t(), torch.stack(depth)


@pytest.fixture(scope="module")
def toy(toy_folder: Path) -> ModelFolder:
    return open_folder(toy_folder)


@pytest.fixture(scope="module")
def exported(toy: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy model as folders in the other layouts."""
    root = tmp_path_factory.mktemp("exported")
    for layout in FILES:
        convert(toy, root / layout, layout)
    return {layout: root / layout for layout in FILES}


@pytest.fixture
def bare(exported: dict[str, Path], tmp_path: Path) -> Path:
    """The toy's Sesame weights as a `.pt` with nothing beside."""
    torch.save(load_file(exported[SESAME] / "model.safetensors"), tmp_path / "csm_toy.pt")
    return tmp_path / "csm_toy.pt"


@pytest.mark.parametrize(("heads", "keys", "head_dim"), [(32, 8, 64), (8, 2, 128), (6, 2, 8), (4, 4, 6), (1, 1, 2)])
def test_the_order_of_rows_keeps_every_score(heads: int, keys: int, head_dim: int) -> None:
    """q . k of halves rotated as transformers does equals q . k of pairs rotated as torchtune does, in both stacks' shapes."""
    rope = (("rope_theta", 500000.0), ("rope_type", "default"))
    stack = Stack(24, 1, heads, keys, head_dim, 8, 1e-5, 64, rope)
    torch.manual_seed(heads)
    rows, length = torch.randn(9, 24), 9
    cos, sin = rope_tables(stack, length, torch.device("cpu"), torch.float32)
    halves, pairs = [], []
    for count in (heads, keys):
        weight = torch.randn(count * head_dim, 24)
        plain = (rows @ weight.t()).unflatten(-1, (count, head_dim))
        halves.append(plain * cos + plain.roll(head_dim // 2, -1) * sin)
        turned = (rows @ pairs_together(weight, head_dim).t()).unflatten(-1, (count, head_dim))
        pairs.append(rotate_pairs(turned, stack))
        assert torch.equal(halves_apart(pairs_together(weight, head_dim), head_dim), weight)
        array = weight.numpy()
        assert np.array_equal(pairs_together(array, head_dim), pairs_together(weight, head_dim).numpy())
    group = heads // keys
    scores = [torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(group, 1)) for q, k in (halves, pairs)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-5)
    if head_dim > 2:
        wrong = rotate_pairs((rows @ weight.t()).unflatten(-1, (keys, head_dim)), stack)
        assert not torch.allclose(wrong, pairs[1]), "without the permutation the scores would differ"


def test_the_names_are_those_of_the_published_code() -> None:
    raw = read_config(FIVE, "here")
    raw["num_hidden_layers"] = raw["depth_decoder_config"]["num_hidden_layers"] = 1
    config = ModelConfig.from_dict(raw, "here")
    layer = (
        "attn.q_proj.weight attn.k_proj.weight attn.v_proj.weight attn.output_proj.weight mlp.w1.weight mlp.w2.weight "
    )
    layer += "mlp.w3.weight sa_norm.scale mlp_norm.scale"
    mlx = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj mlp.down_proj mlp.up_proj "
    mlx += "input_layernorm post_attention_layernorm"
    top = {
        "text_embeddings.weight",
        "audio_embeddings.weight",
        "projection.weight",
        "codebook0_head.weight",
        "audio_head",
    }
    found = {layout: {stored_name(name, layout) for name in parameter_shapes(config)} for layout in FILES}
    assert found[SESAME] == top | {
        f"{stack}.{part}"
        for stack in ("backbone", "decoder")
        for part in ["norm.scale", *(f"layers.0.{name}" for name in layer.split())]
    }
    assert found[CSM_MLX] == top | {
        f"{stack}.{part}.weight"
        for stack in ("backbone", "decoder")
        for part in ["norm", *(f"layers.0.{name}" for name in mlx.split())]
    }
    assert stored_name("backbone_model.layers.0.mlp.up_proj.weight", SESAME) == "backbone.layers.0.mlp.w3.weight"
    assert stored_name("backbone_model.layers.0.mlp.down_proj.weight", SESAME) == "backbone.layers.0.mlp.w2.weight"


def test_the_flavours_are_csm_1b() -> None:
    """Five fields give the published number of parameters, transformers' shape and Sesame's RoPE."""
    from transformers import CsmConfig

    raw = read_config(FIVE, "here")
    config = ModelConfig.from_dict(raw, "here")
    shapes = parameter_shapes(config)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 1_552_791_552
    assert len(shapes) == 187
    for stack in (config.backbone, config.depth):
        plain = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0)
        rope = tuple(sorted({**plain, "original_max_position_embeddings": 8192}.items()))
        other = Stack(1, 1, 1, 1, stack.head_dim, 1, 1e-5, 1, rope)
        assert np.array_equal(other.inverse_frequencies(), stack.inverse_frequencies())
    theirs = CsmConfig(**{k: v for k, v in raw.items() if k not in ("architectures", "model_type")})
    assert ModelConfig.from_dict(theirs.to_dict(), "theirs").backbone.inverse_frequencies() == pytest.approx(
        config.backbone.inverse_frequencies()
    )
    written = write_config(raw, config)
    assert {key: written[key] for key in FIVE} == FIVE
    assert read_config(written, "here") == raw


@pytest.mark.parametrize("path", [(SESAME,), (CSM_MLX,), (SESAME, CSM_MLX), (CSM_MLX, SESAME)], ids="-".join)
def test_a_round_trip_gives_every_byte_back(toy: ModelFolder, tmp_path: Path, path: tuple[str, ...]) -> None:
    """Through one layout or two and back: weights, codec, config and tokenizer, and so the model's hash."""
    folder = toy
    for number, layout in enumerate((*path, TRANSFORMERS)):
        convert(folder, tmp_path / str(number), layout)
        folder = open_folder(tmp_path / str(number))
        assert folder.layout == layout
    same_folder(toy.path, folder.path)
    assert folder.hash == toy.hash


def test_csm_tiny_goes_round_in_its_own_dtype(tmp_path: Path) -> None:
    convert(open_folder("csm-tiny"), tmp_path / "sesame", SESAME)
    convert(open_folder(tmp_path / "sesame"), tmp_path / "back", TRANSFORMERS)
    mine, theirs = load_file(tmp_path / "back" / "model.safetensors"), load_file(ASSETS / "model.safetensors")
    assert set(mine) == set(theirs)
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)
    assert json.loads((tmp_path / "sesame" / "config.json").read_text())["backbone_flavor"] == "custom"


def other_heads(toy: ModelFolder, folder: Path) -> ModelFolder:
    """The toy with wider heads in its depth decoder than in its backbone, as CSM-1B has them, and random weights."""
    raw = json.loads((toy.path / "config.json").read_text())
    raw["depth_decoder_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    shapes = parameter_shapes(ModelConfig.from_dict(raw, "toy"))
    torch.manual_seed(3)
    tensors = {n: 0.2 * torch.randn(shape) + (len(shape) == 1) for n, shape in shapes.items()}
    folder.mkdir()
    shutil.copyfile(toy.path / "tokenizer.json", folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(raw))
    codec = {n: t for n, t in load_file(toy.path / "model.safetensors").items() if n.startswith("codec_model.")}
    save_file({**tensors, **codec}, folder / "model.safetensors")
    return open_folder(folder)


@pytest.mark.parametrize("heads", ["alike", "other"])
def test_a_forward_as_sesame_has_it_gives_our_logits(toy: ModelFolder, tmp_path: Path, heads: str) -> None:
    folder = toy if heads == "alike" else other_heads(toy, tmp_path / "other")
    convert(folder, tmp_path / "sesame", SESAME)
    weights = load_file(tmp_path / "sesame" / "model.safetensors")
    codes = torch.from_numpy(np.random.default_rng(0).integers(1, 64, (11, TOY_CODEBOOKS)))
    frames = torch.cat([codes, torch.zeros(11, 1, dtype=torch.long)], 1)[None]
    mask = torch.ones_like(frames, dtype=torch.bool)
    mask[..., -1] = False
    with torch.no_grad():
        first, depth = load_model(folder)(frames, mask)
        theirs_first, theirs_depth = sesame_logits(codes, weights, folder.config)
    torch.testing.assert_close(first[0], theirs_first, atol=1e-4, rtol=0)
    torch.testing.assert_close(depth[0], theirs_depth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", FILES)
def test_a_model_in_another_layout_is_the_same_model(
    toy: ModelFolder, exported: dict[str, Path], layout: str, tmp_path: Path
) -> None:
    """In memory bit for bit, its codec too; what training writes of it is a transformers folder."""
    from transformers import CsmForConditionalGeneration

    from csm.torch.checkpoint import codec_tensors

    folder = open_folder(exported[layout])
    mine, theirs = load_model(folder).state_dict(), load_model(toy).state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert all(torch.equal(tensor, codec_tensors(toy)[name]) for name, tensor in codec_tensors(folder).items())
    trained = {"lm_head.weight"}
    write_unchanged(folder, trained, tmp_path / "unchanged")
    (tmp_path / "out").mkdir()
    write_checkpoint(load_model(folder), trained, tmp_path / "unchanged", tmp_path / "out")
    loaded = CsmForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(loaded.lm_head.weight, theirs["lm_head.weight"])
    name = "backbone_model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(loaded.get_parameter(name), theirs[name])


def test_a_voice_sounds_the_same_from_every_layout(tmp_path: Path) -> None:
    """csm-tiny from its folder, from a csm-mlx folder, and from a bare `.pt` with --base: the same codes."""
    csm("model", "convert", "csm-tiny", tmp_path / "mlx", "--to", "csm-mlx")
    csm("model", "convert", tmp_path / "mlx", tmp_path / "sesame", "--to", "sesame")
    (tmp_path / "alone").mkdir()
    torch.save(load_file(tmp_path / "sesame" / "model.safetensors"), tmp_path / "alone" / "ckpt.pt")
    models = {
        "own": ["csm-tiny"],
        "mlx": [tmp_path / "mlx"],
        "file": [tmp_path / "mlx" / "ckpt.safetensors"],
        "alone": [tmp_path / "alone" / "ckpt.pt", "--base", "csm-tiny"],
    }
    codes = {}
    for name, model in models.items():
        out = tmp_path / f"{name}.npy"
        words = ["--text", "good morning.", "--speaker", 5, "--seed", 1, "--threads", 1]
        csm("generate", "--model-path", *model, *words, "--output", tmp_path / f"{name}.wav", "--codes", out)
        codes[name] = np.load(out)
    assert all(np.array_equal(codes["own"], codes[name]) for name in models)


def test_training_starts_from_bare_weights(bare: Path, toy: ModelFolder, clip_folder: Path, tmp_path: Path) -> None:
    """`csm-finetune --base` trains a `.pt`; its first loss is that of the folder, and what it saves is a whole model."""
    from csm.cli.finetune import main as finetune

    losses = []
    for name, model in (("bare", [bare, "--base", toy.path]), ("folder", [toy.path])):
        data = [
            "--audio-dir",
            clip_folder / "audio",
            "--transcript-dir",
            clip_folder / "transcripts",
            "--speaker-id",
            1,
        ]
        more = ["--max-steps", 1, "--batch-size", 1, "--threads", 1, "--cache-dir", tmp_path / "cache"]
        words = ["voice-adapt", "--model-path", *model, "--output-dir", tmp_path / name, *data, *more]
        done = CliRunner().invoke(finetune, [str(word) for word in words])
        assert done.exit_code == 0, done.stderr
        assert open_folder(tmp_path / name).layout == TRANSFORMERS
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("validation_loss") for line in lines])
    assert losses[0] == losses[1]
    parent = json.loads((tmp_path / "bare" / "lineage.json").read_text())["parent"]
    assert (parent["path"], parent["beside"]) == (str(bare), str(toy.path))


def test_a_bare_file_says_what_it_lacks(bare: Path, toy: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(
        CsmError, match=r"config.json and tokenizer.json and codec.safetensors are not beside it"
    ) as caught:
        open_folder(bare)
    assert "--base" in str(caught.value.hint)
    shutil.copyfile(toy.path / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps(FIVE))
    with pytest.raises(CsmError, match=r"alone: codec.safetensors is not beside"):
        open_folder(bare)
    shutil.copyfile(toy.path / "config.json", tmp_path / "config.json")
    shutil.copyfile(toy.path / "model.safetensors", tmp_path / "model.safetensors")
    assert open_folder(bare).layout == SESAME, "a transformers folder around the file lends its codec"
    with pytest.raises(CsmError, match="whole model folder"):
        open_folder(toy.path, "csm-tiny")


def test_a_base_of_another_shape_is_one_sentence(bare: Path) -> None:
    with pytest.raises(CsmError, match=r"csm_toy.pt does not fit the config.json of the base .*csm-tiny") as caught:
        open_folder(bare, "csm-tiny")
    assert "text_embeddings.weight is [54, 48], wanted [54, 256]" in caught.value.message
    assert "backbone.layers.5.attn.q_proj.weight is missing" in caught.value.message


def test_every_wrong_tensor_is_named_as_the_file_names_it(exported: dict[str, Path], tmp_path: Path) -> None:
    for layout, file in FILES.items():
        shutil.copytree(exported[layout], tmp_path / layout)
        tensors = load_file(tmp_path / layout / file)
        missing = stored_name("backbone_model.layers.1.mlp.up_proj.weight", layout)
        del tensors[missing]
        tensors["stranger"], tensors["projection.weight"] = torch.zeros(2), torch.zeros(2, 2)
        save_file(tensors, tmp_path / layout / file)
        with pytest.raises(CsmError) as caught:
            open_folder(tmp_path / layout)
        for part in (
            f"{missing} is missing",
            "stranger does not belong",
            "projection.weight is [2, 2], wanted [32, 48]",
        ):
            assert part in caught.value.message


def test_masks_that_sesames_code_leaves_behind_are_passed_over(bare: Path, toy: ModelFolder) -> None:
    state = torch.load(bare, weights_only=True)
    state["backbone_causal_mask"] = state["decoder_causal_mask"] = torch.ones(4, 4, dtype=torch.bool)
    torch.save(state, bare)
    loaded = load_model(open_folder(bare, toy.path))
    assert torch.equal(loaded.lm_head.weight, load_model(toy).lm_head.weight)


class _Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["torch", "pickle-2", "pickle-4"])
def test_a_pickle_that_runs_code_is_refused(bare: Path, toy: ModelFolder, tmp_path: Path, how: str) -> None:
    trap = tmp_path / "sprung"
    named = r" \(\S*open\)" if how != "pickle-4" else ""
    if how == "torch":
        torch.save({"backbone.norm.scale": torch.zeros(3), "more": _Trap(trap)}, bare)
    else:
        bare.write_bytes(pickle.dumps(_Trap(trap), int(how[-1])))
    for command in (("info", bare, "--base", toy.path), ("convert", bare, tmp_path / "out", "--to", "transformers")):
        said = csm("model", *command, code=1).stderr
        assert re.search(rf"csm_toy.pt is a pickle that (would|could) run code when read{named}", said)
    assert not trap.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "damaged"),
        (b"not a file of torch at all", "damaged"),
        ({"model": {"a": 1}, "step": 3}, r"more than tensors \(model, step\)"),
        ([1, 2], "no state dict"),
        ({"foreign.weight": torch.zeros(2)}, r"no weights of a CSM .*foreign.weight"),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CsmError, match=sentence):
        open_folder(path, "csm-tiny")


def test_a_torn_pt_is_one_sentence(bare: Path) -> None:
    whole = bare.read_bytes()
    for share in (0.3, 0.9):
        bare.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CsmError, match=r"csm_toy\.pt"):
            open_folder(bare, "csm-tiny")


def test_the_config_may_name_the_weights(toy: ModelFolder, exported: dict[str, Path], tmp_path: Path) -> None:
    """The hub's CSM-1B holds both layouts, and its config says which file is transformers'."""
    folder = tmp_path / "both"
    shutil.copytree(toy.path, folder)
    (folder / "model.safetensors").rename(folder / "transformers.safetensors")
    shutil.copyfile(exported[SESAME] / "model.safetensors", folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**FIVE, **raw, "transformers_weights": "transformers.safetensors"}))
    found = open_folder(folder)
    assert found.layout == TRANSFORMERS
    assert {file.name for file in found.files.values()} == {"transformers.safetensors"}
    write_unchanged(found, {"lm_head.weight"}, tmp_path / "unchanged")
    assert "transformers_weights" not in json.loads((tmp_path / "unchanged" / "config.json").read_text())


def test_a_folder_of_several_weights_asks_for_one(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mlx"
    shutil.copytree(exported[CSM_MLX], folder)
    shutil.copyfile(folder / "ckpt.safetensors", folder / "latest.safetensors")
    with pytest.raises(CsmError, match=r"several weights files: ckpt.safetensors, latest.safetensors"):
        open_folder(folder)
    assert open_folder(folder / "latest.safetensors").layout == CSM_MLX


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backbone_flavor": "llama-8B"}, "backbone_flavor 'llama-8B' is not one of llama-1B, llama-100M"),
        ({"audio_vocab_size": None, "drop": "audio_vocab_size"}, "audio_vocab_size missing"),
        (
            {"transformers_config": {"vocab_size": 5, "text_vocab_size": 128256, "num_codebooks": 32}},
            "has vocab_size 5",
        ),
    ],
)
def test_a_config_that_cannot_be_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    config = {**FIVE, **change}
    config.pop(config.pop("drop", ""), None)
    with pytest.raises(CsmError, match=sentence):
        read_config(config, "config.json")


def test_an_existing_out_is_left_alone(toy: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    said = csm("model", "convert", toy.path, tmp_path / "out", "--to", "sesame", code=1).stderr
    assert "is there already" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("layout", [TRANSFORMERS, SESAME, CSM_MLX])
def test_a_full_disk_leaves_nothing(toy: ModelFolder, tmp_path: Path, layout: str) -> None:
    """A file that may not grow over 100 kB, as where the disk fills up: one sentence, no folder, no part of one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        said = csm("model", "convert", toy.path, tmp_path / "out", "--to", layout, code=1).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.match(r"error: the disk is full \(.*safetensors\)\.", said)
    assert not list(tmp_path.iterdir())


def test_audio_tables_that_came_apart_are_refused(toy: ModelFolder, tmp_path: Path) -> None:
    from csm.weights import AUDIO_TABLE, AUDIO_TABLE_ALIAS

    shutil.copytree(toy.path, tmp_path / "model")
    tensors = load_file(toy.path / "model.safetensors")
    save_file({**tensors, AUDIO_TABLE_ALIAS: tensors[AUDIO_TABLE] + 1}, tmp_path / "model" / "model.safetensors")
    assert (
        "two audio tables that differ"
        in csm("model", "convert", tmp_path / "model", tmp_path / "out", "--to", "sesame", code=1).stderr
    )
    assert not (tmp_path / "out").exists()


def test_diff_says_what_changed_and_by_how_much(toy: ModelFolder, tmp_path: Path) -> None:
    """Across layouts: nothing; then one matrix a hundredth larger, one norm moved, and the shares they make."""
    convert(toy, tmp_path / "mlx", CSM_MLX)
    assert json.loads(csm("model", "diff", toy.path, tmp_path / "mlx", "--json").stdout)["same"] is True
    tensors = load_file(tmp_path / "mlx" / "ckpt.safetensors")
    matrix, norm = "backbone_model.layers.0.self_attn.q_proj.weight", "depth_decoder.model.norm.weight"
    tensors[stored_name(matrix, CSM_MLX)] *= 1.01
    tensors[stored_name(norm, CSM_MLX)][3] += 0.5
    save_file(tensors, tmp_path / "mlx" / "ckpt.safetensors")
    found = json.loads(csm("model", "diff", toy.path, tmp_path / "mlx", "--json").stdout)
    assert not found["same"]
    assert {t["name"] for t in found["tensors"]} == {matrix, norm}
    by_name = {t["name"]: t for t in found["tensors"]}
    assert by_name[matrix]["relative_norm"] == pytest.approx(0.01, rel=1e-4)
    assert by_name[norm]["largest_change"] == pytest.approx(0.5)
    assert by_name[norm]["relative_norm"] == pytest.approx(0.5 / 32**0.5, rel=1e-5)
    changed = {name: group["changed"] for name, group in found["groups"].items()}
    assert changed == {"backbone": 1, "decoder": 1, "embeddings": 0, "codec": 0}
    before = load_model(toy).state_dict()
    whole = sum(float(t.double().square().sum()) for n, t in before.items() if n.startswith("backbone_model."))
    share = 0.01 * float(before[matrix].double().norm()) / whole**0.5
    assert found["groups"]["backbone"]["relative_norm"] == pytest.approx(share, rel=1e-4)
    assert norm in csm("model", "diff", toy.path, tmp_path / "mlx").stdout
    assert "does not fit the shape of" in csm("model", "diff", "csm-tiny", toy.path, code=1).stderr


def test_only_rotated_rows_move(toy: ModelFolder) -> None:
    rows = torch.arange(48.0)[:, None]
    for part in ("v_proj", "o_proj"):
        name = f"backbone_model.layers.0.self_attn.{part}.weight"
        assert into_layout(name, rows, SESAME, toy.config) is rows
    codec = "codec_model.encoder_transformer.layers.0.self_attn.q_proj.weight"
    assert into_layout(codec, rows, SESAME, toy.config) is rows
    turned = into_layout("depth_decoder.model.layers.0.self_attn.q_proj.weight", rows[:32], CSM_MLX, toy.config)
    assert turned[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
