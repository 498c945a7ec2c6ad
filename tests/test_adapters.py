"""Adapters: merged as peft merges them, PEFT's and csm-mlx's forms the same adapter, strangers refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import TOY_CODEBOOKS
from safetensors.numpy import load_file as numpy_load
from safetensors.torch import load_file, save_file

from csm.adapters.adapter import Adapter
from csm.adapters.folder import read_adapter as read_with
from csm.cli.main import main
from csm.errors import CsmError
from csm.layouts import CSM_MLX, SESAME, TRANSFORMERS
from csm.model_folder import ModelFolder, open_folder
from csm.torch.checkpoint import load_model, read_tensors
from csm.torch.convert import convert, convert_adapter, merge_adapter
from csm.torch.lora_file import read_adapter

LAYERS = r"(backbone_model|depth_decoder\.model)\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
Q = r"(backbone_model|depth_decoder\.model)\.layers\.\d+\.self_attn\.q_proj"
KINDS: dict[str, dict[str, Any]] = {
    "layers": {"target_modules": LAYERS},
    "tops": {"target_modules": LAYERS + "|lm_head|depth_decoder.model.inputs_embeds_projector"},
    "patterns": {"target_modules": LAYERS, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    "rslora": {"target_modules": LAYERS, "use_rslora": True},
    "dora": {"target_modules": LAYERS, "use_dora": True},
    "heads": {"target_modules": Q, "target_parameters": ["depth_decoder.codebooks_head.weight"]},
    "text lora": {"target_modules": Q + "|embed_text_tokens"},
    "text whole": {"target_modules": Q, "modules_to_save": ["embed_text_tokens"]},
    "head whole": {"target_modules": Q, "modules_to_save": ["lm_head"]},
}

Make = Callable[..., Path]


def read(path: Path, base: ModelFolder) -> Adapter:
    return read_adapter(path, base.config, lambda name: read_tensors(base, [name])[name])


def csm(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert isinstance(done.exception, SystemExit | None), done.exc_info
    assert done.exit_code == code, done.stderr
    return done


@pytest.fixture(scope="module")
def toy(toy_folder: Path) -> ModelFolder:
    return open_folder(toy_folder)


def with_peft(toy: ModelFolder, **config: Any) -> Any:
    """transformers' toy model with a random adapter of peft's own, every part of it moved."""
    from peft import LoraConfig, get_peft_model
    from transformers import CsmForConditionalGeneration

    torch.manual_seed(1)
    base = CsmForConditionalGeneration.from_pretrained(toy.path, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 6, **config})).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 0.1 * torch.rand_like(parameter) if "magnitude" in name else 0.2 * torch.randn_like(parameter)
            parameter.data.add_(scale)
    return model


@pytest.fixture(scope="module")
def make(toy: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A function that saves a random adapter with peft."""

    def saved(**config: Any) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        with_peft(toy, **config).save_pretrained(folder)
        return folder

    return saved


@pytest.fixture(scope="module")
def plain(make: Make) -> Path:
    return make(**KINDS["tops"])


def logits(folder: Path, seed: int = 0) -> torch.Tensor:
    """Of both transformers on random frames, as one vector."""
    torch.manual_seed(seed)
    frames = torch.cat([torch.randint(1, 64, (1, 9, TOY_CODEBOOKS)), torch.randint(5, 54, (1, 9, 1))], 2)
    mask = torch.ones_like(frames, dtype=torch.bool)
    mask[:, :4, :-1], mask[:, 4:, -1] = False, False
    with torch.no_grad():
        first, depth = load_model(open_folder(folder))(frames, mask)
    return torch.cat([first.flatten(), depth.flatten()])


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_pefts_own_merge(toy: ModelFolder, kind: str, tmp_path: Path) -> None:
    """`csm model merge` against merge_and_unload on transformers' CSM, tensor by tensor; the codec stays as it was."""
    model = with_peft(toy, **KINDS[kind])
    model.save_pretrained(tmp_path / "adapter")
    csm("model", "merge", toy.path, "--adapter", tmp_path / "adapter", tmp_path / "merged")
    model.merge_and_unload().save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "theirs"))
    base = load_file(toy.path / "model.safetensors")
    assert set(ours) == set(theirs)
    changed = [name for name in ours if not torch.equal(ours[name], base[name])]
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=1e-6, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
        assert (name in changed) == (not torch.equal(theirs[name], base[name])), name
    assert len(changed) >= 4
    assert not any(name.startswith("codec_model.") for name in changed)
    assert not torch.allclose(logits(toy.path), logits(tmp_path / "merged"), atol=1e-3)


def mlx_merge(folder: Path, adapter: Path, out: Path) -> None:
    """csm-mlx's weights with csm-mlx's adapter, by its own formula: W + scale * (lora_a @ lora_b).T, DoRA on top."""
    weights, tensors = load_file(folder / "ckpt.safetensors"), load_file(adapter / "adapters.safetensors")
    scale = json.loads((adapter / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    for name in [name for name in tensors if name.endswith(".lora_a")]:
        module = name.removesuffix(".lora_a")
        change = scale * tensors[name] @ tensors[f"{module}.lora_b"]
        whole = weights[f"{module}.weight"] + (change if module.endswith("embeddings") else change.T)
        if f"{module}.m" in tensors:
            whole = whole * (tensors[f"{module}.m"] / whole.norm(dim=1))[:, None]
        weights[f"{module}.weight"] = whole
    weights |= {name: tensor for name, tensor in tensors.items() if name in weights}
    out.mkdir()
    for file in folder.iterdir():
        if file.name != "ckpt.safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out / "ckpt.safetensors")


@pytest.mark.parametrize("kind", ["layers", "tops", "rslora", "dora", "text lora", "text whole"])
def test_both_forms_are_the_same_adapter(toy: ModelFolder, make: Make, kind: str, tmp_path: Path) -> None:
    """To csm-mlx and back gives every bit; csm-mlx's merge on csm-mlx's weights is our merge; and every rank comes back."""
    adapter = make(**KINDS[kind])
    csm("model", "convert", adapter, tmp_path / "mlx", "--to", "csm-mlx", "--base", toy.path)
    csm("model", "convert", tmp_path / "mlx", tmp_path / "back", "--to", "transformers", "--base", toy.path)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "back"))
    assert set(before) - {n for n in before if ".base_layer." in n} == set(after)
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert sorted(p.name for p in (tmp_path / "mlx").iterdir()) == [
        "adapter_config.json", "adapters.safetensors", "base.json",
    ]  # fmt: skip

    convert(toy, tmp_path / "model", CSM_MLX)
    mlx_merge(tmp_path / "model", tmp_path / "mlx", tmp_path / "merged-mlx")
    merge_adapter(toy, adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged-mlx"), logits(tmp_path / "merged"), atol=1e-4, rtol=0)
    merge_adapter(toy, tmp_path / "mlx", tmp_path / "merged-2")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "merged-2"))
    assert all(torch.allclose(one[name], two[name], atol=1e-7) for name in one)


def test_an_adapter_of_csm_mlx_loads_in_peft(toy: ModelFolder, plain: Path, tmp_path: Path) -> None:
    """What comes back from csm-mlx's form: peft loads it on transformers' CSM, all of it, and computes our merge."""
    from peft import PeftModel
    from transformers import CsmForConditionalGeneration

    convert_adapter(plain, toy, tmp_path / "mlx", CSM_MLX)
    convert_adapter(tmp_path / "mlx", toy, tmp_path / "back", TRANSFORMERS)
    base = CsmForConditionalGeneration.from_pretrained(toy.path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "back").eval()
    loaded.merge_and_unload().save_pretrained(tmp_path / "theirs")
    merge_adapter(toy, tmp_path / "mlx", tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-6)


def test_the_config_that_csm_mlx_reads(toy: ModelFolder, plain: Path, tmp_path: Path) -> None:
    convert_adapter(plain, toy, tmp_path / "mlx", CSM_MLX)
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert set(config) == {"lora_parameters", "fine_tune_type"}
    lora = config["lora_parameters"]
    assert (config["fine_tune_type"], lora["rank"], lora["scale"], lora["dropout"]) == ("lora", 4, 1.5, 0.0)
    layer = {f"self_attn.{p}_proj" for p in "qkvo"} | {f"mlp.{p}_proj" for p in ("gate", "up", "down")}
    assert set(lora["keys"]) == layer | {"codebook0_head", "projection"}
    tensors = load_file(tmp_path / "mlx" / "adapters.safetensors")
    assert tensors["backbone.layers.0.self_attn.k_proj.lora_a"].shape == (48, 4)
    assert tensors["backbone.layers.0.self_attn.k_proj.lora_b"].shape == (4, 16)
    assert tensors["projection.lora_b"].shape == (4, 32)


def test_csm_mlx_names_its_layers_attn(toy: ModelFolder, plain: Path, tmp_path: Path) -> None:
    """`attn` in csm-mlx's keys is every projection of a layer; and its checkpoints in mid-run hold the whole model too."""
    convert_adapter(plain, toy, tmp_path / "mlx", CSM_MLX)
    convert(toy, tmp_path / "model", CSM_MLX)
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    config["lora_parameters"]["keys"] = ["attn", "codebook0_head", "projection"]
    (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "mlx" / "adapters.safetensors")
    adapted = {name.removesuffix(".lora_a") for name in tensors}
    for name, tensor in load_file(tmp_path / "model" / "ckpt.safetensors").items():
        module = name.removesuffix(".weight")
        tensors[f"{module}.linear.weight" if module in adapted else name] = tensor
    save_file(tensors, tmp_path / "mlx" / "adapters.safetensors")
    adapter, alone = read(tmp_path / "mlx", toy), read(plain, toy)
    assert not adapter.whole
    assert set(adapter.factors) == set(alone.factors)
    assert all(torch.equal(adapter.factors[name], tensor) for name, tensor in alone.factors.items())
    merge_adapter(toy, tmp_path / "mlx", tmp_path / "one")
    merge_adapter(toy, plain, tmp_path / "two")
    assert torch.equal(logits(tmp_path / "one"), logits(tmp_path / "two"))
    tensors["projection.linear.weight"] = tensors["projection.linear.weight"] + 1
    save_file(tensors, tmp_path / "mlx" / "adapters.safetensors")
    with pytest.raises(CsmError, match=r"another base: its copies of .*inputs_embeds_projector"):
        merge_adapter(toy, tmp_path / "mlx", tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_an_adapter_of_another_base_is_refused(toy: ModelFolder, plain: Path, tmp_path: Path) -> None:
    """By hash where base.json gives one; its round trip through another layout is the same base."""
    convert_adapter(plain, toy, tmp_path / "adapter", TRANSFORMERS)
    known = json.loads((tmp_path / "adapter" / "base.json").read_text())
    assert known == {"schema_version": 1, "hash": toy.hash, "name": toy.path.name, "path": toy.name}
    assert open_folder(tmp_path / "adapter").base == toy
    for number, layout in enumerate((SESAME, TRANSFORMERS)):
        convert(open_folder(tmp_path / "0") if number else toy, tmp_path / str(number), layout)
    merge_adapter(open_folder(tmp_path / "1"), tmp_path / "adapter", tmp_path / "fine")
    (tmp_path / "adapter" / "base.json").write_text(json.dumps({"hash": "0" * 64, "name": "csm-other"}))
    said = csm("model", "merge", toy.path, "--adapter", tmp_path / "adapter", tmp_path / "out", code=1).stderr
    assert f"was trained on csm-other (sha256 {'0' * 12}), and {toy.path} is another model ({toy.hash[:12]})" in said
    assert not (tmp_path / "out").exists()
    assert (
        "does not fit the model"
        in csm("model", "merge", "csm-tiny", "--adapter", plain, tmp_path / "out", code=1).stderr
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("heads", "LoRA on the acoustic heads"), ("patterns", r"several ranks \(2, 4\)")],
)
def test_what_csm_mlx_cannot_express_is_refused(
    toy: ModelFolder, make: Make, kind: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CsmError, match=reason):
        convert_adapter(make(**KINDS[kind]), toy, tmp_path / "out", CSM_MLX)
    with pytest.raises(CsmError, match="Sesame's layout has no adapters"):
        convert_adapter(make(**KINDS["layers"]), toy, tmp_path / "out", SESAME)
    assert not (tmp_path / "out").exists()


def test_peft_to_peft_keeps_patterns_and_heads(toy: ModelFolder, make: Make, tmp_path: Path) -> None:
    for number, kind in enumerate(("patterns", "heads", "dora", "text whole")):
        adapter = make(**KINDS[kind])
        convert_adapter(adapter, toy, tmp_path / str(number), TRANSFORMERS)
        merge_adapter(toy, adapter, tmp_path / f"one-{number}")
        merge_adapter(toy, tmp_path / str(number), tmp_path / f"two-{number}")
        assert torch.equal(logits(tmp_path / f"one-{number}"), logits(tmp_path / f"two-{number}")), kind


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"r": 8}, r"q_proj.lora_A.weight is \[4, 48\], wanted \[8, 48\]"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"bias": "all", "lora_bias": True}, "bias 'all'"),
    ],
)
def test_a_config_that_does_not_go_with_the_tensors(
    toy: ModelFolder, plain: Path, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    config = json.loads((plain / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "adapter_model.safetensors").write_bytes((plain / "adapter_model.safetensors").read_bytes())
    with pytest.raises(CsmError, match=sentence):
        read(tmp_path, toy)


def test_every_tensor_at_fault_is_named_at_once(toy: ModelFolder, plain: Path, tmp_path: Path) -> None:
    """In PEFT's form, and in csm-mlx's."""
    convert_adapter(plain, toy, tmp_path / "mlx", CSM_MLX)
    convert_adapter(plain, toy, tmp_path / "peft", TRANSFORMERS)
    q = "base_model.model.backbone_model.layers.0.self_attn.q_proj.lora_"
    file = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[q + "A.weight"]
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(5, 4)
    tensors["nonsense"] = torch.zeros(1)
    save_file(tensors, file)
    with pytest.raises(CsmError) as caught:
        read(tmp_path / "peft", toy)
    for part in (f"{q}A.weight is missing", "lm_head.lora_B.weight is [5, 4], wanted [67, 4]",
                 "nonsense is of no module that it adapts"):  # fmt: skip
        assert part in caught.value.message
    file = tmp_path / "mlx" / "adapters.safetensors"
    tensors = load_file(file)
    del tensors["projection.lora_b"]
    tensors["backbone.layers.0.self_attn.q_proj.lora_b"] = torch.zeros(4, 7)
    tensors["text_embeddings.lora_a"] = torch.zeros(54, 4)
    tensors["nonsense.lora_a"] = torch.zeros(2, 2)
    save_file(tensors, file)
    with pytest.raises(CsmError) as caught:
        read(tmp_path / "mlx", toy)
    for part in ("projection.lora_b is missing", "q_proj.lora_b is [4, 7], wanted [4, 48]",
                 "text_embeddings.lora_a is of no module that it adapts", "nonsense.lora_a is of no module"):  # fmt: skip
        assert part in caught.value.message


def test_the_tied_audio_table(toy: ModelFolder, make: Make, tmp_path: Path) -> None:
    """peft adapts each side by itself: one side alone, or two that differ, are no adapter of a tied model."""
    sides = ["depth_decoder.model.embed_tokens", "backbone_model.embed_tokens.embed_audio_tokens"]
    one = make(target_modules=sides[:1])
    with pytest.raises(CsmError, match="which are one table in a CSM"):
        read(one, toy)
    two = make(target_modules=sides)
    with pytest.raises(CsmError, match="differently from its other side"):
        read(two, toy)
    tensors = load_file(two / "adapter_model.safetensors")
    for part in "AB":
        ends = [f"base_model.model.{side}.lora_embedding_{part}" for side in sides]
        tensors[ends[1]] = tensors[ends[0]].clone()
    save_file({n: t for n, t in tensors.items() if "base_layer" not in n}, two / "adapter_model.safetensors")
    convert_adapter(two, toy, tmp_path / "mlx", CSM_MLX)
    convert_adapter(tmp_path / "mlx", toy, tmp_path / "back", TRANSFORMERS)
    back = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert all(torch.equal(back[name], tensors[name]) for name in back)
    assert len(back) == 4


def test_an_adapter_asks_for_its_base(toy: ModelFolder, plain: Path, tmp_path: Path) -> None:
    convert_adapter(plain, toy, tmp_path / "mlx", CSM_MLX)
    (tmp_path / "mlx" / "base.json").unlink()
    said = csm("model", "convert", tmp_path / "mlx", tmp_path / "out", "--to", "csm-mlx", code=1).stderr
    assert "is an adapter" in said
    assert "--base" in said


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("heads", TRANSFORMERS)]
    + [(kind, layout) for kind in ("dora", "head whole", "text whole") for layout in (TRANSFORMERS, CSM_MLX)],
)
def test_an_adapter_of_either_form_opens_as_a_model(
    toy: ModelFolder, make: Make, kind: str, layout: str, tmp_path: Path
) -> None:
    """Merged into its base by hand or opened on it, by base.json or by the base that is named: the same logits."""
    convert_adapter(make(**KINDS[kind]), toy, tmp_path / "a", layout)
    merge_adapter(toy, tmp_path / "a", tmp_path / "merged")
    opened = open_folder(tmp_path / "a")
    assert opened.base == toy
    assert opened.hash not in (toy.hash, open_folder(tmp_path / "merged").hash)
    torch.testing.assert_close(logits(tmp_path / "a"), logits(tmp_path / "merged"), atol=1e-5, rtol=0)
    (tmp_path / "a" / "base.json").unlink()
    assert open_folder(tmp_path / "a", toy.path).base == toy
    if layout == CSM_MLX:
        with pytest.raises(CsmError, match="nothing in it says of which model") as caught:
            open_folder(tmp_path / "a")
        assert "--base FOLDER" in str(caught.value.hint)
    with pytest.raises(CsmError, match="holds an adapter and no model"):
        open_folder(next((tmp_path / "a").glob("adapter*.safetensors")))


def test_speaking_with_an_adapter_of_csm_mlx(toy: ModelFolder, plain: Path, tmp_path: Path) -> None:
    """`csm generate` takes its folder, with --base where nothing in it says what it was trained on."""
    convert_adapter(plain, toy, tmp_path / "mlx", CSM_MLX)
    (tmp_path / "mlx" / "base.json").unlink()
    words = ["generate", "--model-path", tmp_path / "mlx", "--text", "hello.", "--output", tmp_path / "a.wav"]
    assert "--base FOLDER" in csm(*words, code=1).stderr
    csm(*words, "--base", toy.path, "--max-audio-length-ms", 300, "--threads", 1, "--codes", tmp_path / "a.npy")
    merge_adapter(toy, plain, tmp_path / "merged")
    words[2], words[6] = tmp_path / "merged", tmp_path / "b.wav"
    csm(*words, "--max-audio-length-ms", 300, "--threads", 1, "--codes", tmp_path / "b.npy")
    assert (np.load(tmp_path / "a.npy") == np.load(tmp_path / "b.npy")).all()


@pytest.mark.parametrize("kind", ["tops", "heads", "dora", "text whole"])
def test_numpy_reads_what_torch_reads(toy: ModelFolder, make: Make, kind: str, tmp_path: Path) -> None:
    """The readers are of no framework: the same plan and the same numbers, PEFT's form and csm-mlx's."""
    folders = [make(**KINDS[kind])]
    if kind != "heads":
        convert_adapter(folders[0], toy, tmp_path / "mlx", CSM_MLX)
        folders.append(tmp_path / "mlx")
    weights = numpy_load(toy.path / "model.safetensors")
    for folder in folders:
        one, two = read_with(folder, toy.config, numpy_load, weights.get), read(folder, toy)
        assert one.plan == two.plan
        for found, wanted in ((one.factors, two.factors), (one.whole, two.whole)):
            assert found.keys() == wanted.keys()
            assert all((array == wanted[name].numpy()).all() for name, array in found.items())


def test_reading_a_plan_imports_no_framework(toy: ModelFolder, make: Make, tmp_path: Path) -> None:
    adapter = make(**KINDS["heads"])
    program = (
        "import sys; from pathlib import Path; from csm.model_folder import open_folder\n"
        f"folder = open_folder({str(adapter)!r}); assert folder.base is not None\n"
        "assert not {'torch', 'mlx', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tensors_whole_and_adapted_at_once_are_refused(toy: ModelFolder, plain: Path, tmp_path: Path) -> None:
    convert_adapter(plain, toy, tmp_path / "mlx", CSM_MLX)
    file = tmp_path / "mlx" / "adapters.safetensors"
    save_file({**load_file(file), "projection.weight": torch.zeros(32, 48)}, file)
    with pytest.raises(CsmError, match=r"projection\.weight is there whole, and adapted besides"):
        open_folder(tmp_path / "mlx")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rank": 0}, "rank 0"),
        ({"rank": "4"}, "rank '4'"),
        ({"keys": "attn"}, "keys 'attn'"),
        ({"keys": ["attn", 3]}, "keys "),
        ({"dropout": "some"}, "dropout 'some'"),
        ({"scale": None}, "lack scale"),
        ({"keys": ["nothing"]}, "adapts nothing of a CSM"),
    ],
)
def test_a_config_of_csm_mlx_that_says_nothing(
    toy: ModelFolder, plain: Path, change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    convert_adapter(plain, toy, tmp_path / "mlx", CSM_MLX)
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    config["lora_parameters"] |= change
    (tmp_path / "mlx" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CsmError, match=sentence):
        open_folder(tmp_path / "mlx")
