"""Adapters beside what a run and a model folder else can do: samples, checkpointing, weights alone, conversion, merging."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOY_CODEBOOKS
from safetensors.torch import load_file, save_file
from test_lora import EVERYTHING, KINDS_OF, LORA_RUN, logits, saved, shaken, state_of
from test_run import CPU, SETTINGS, cache, data, train, tuner  # noqa: F401 - fixtures

from csm.errors import CsmError
from csm.generator import Generator
from csm.layouts import CSM_MLX, SESAME, TRANSFORMERS
from csm.model_folder import open_either, open_folder
from csm.torch.checkpoint import load_model, read_tensors
from csm.torch.convert import convert, convert_adapter, merge_adapter
from csm.torch.lora_file import load_adapter
from csm.training.finetuner import CSMFineTuner
from csm.training.watchers import Watchers
from csm.weights import parameter_shapes

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def straight(toy_folder: Path, data: Any, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    run = tmp_path_factory.mktemp("lora") / "run"
    train(tuner(toy_folder, run, cache, **LORA_RUN), data)
    return run


def test_samples_and_checkpointing_leave_the_numbers_alone(
    toy_folder: Path, data: Any, cache: Path, straight: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    """The lent folder speaks as the checkpoint of the same step does; dropout's draws are those of a run without both."""
    heard: dict[int, Any] = {}

    def listen(folder: Path, step: int) -> dict[str, float]:
        speech = Generator(open_folder(folder), CPU).speak("hello.", max_audio_length_ms=400, seed=1)
        heard[step] = speech.codes
        return {"speaker_similarity": 0.5}

    run = tmp_path / "run"
    made = tuner(toy_folder, run, cache, **LORA_RUN, sample_every=2, gradient_ckpt=True)
    made.train(data, watch=Watchers(listen=listen))
    assert set(heard) == {0, 2, 4, 6, 8}
    one, two = state_of(straight), state_of(run)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    checkpoint = Generator(open_folder(straight / "checkpoints" / "step-000006"), CPU)
    assert len(heard[6]) == TOY_CODEBOOKS
    assert (heard[6] == checkpoint.speak("hello.", max_audio_length_ms=400, seed=1).codes).all()


@pytest.mark.parametrize("layout", [SESAME, CSM_MLX])
def test_an_adapter_on_weights_that_stand_alone(
    toy_folder: Path, data: Any, cache: Path, straight: Path, tmp_path: Path, layout: str  # noqa: F811
) -> None:  # fmt: skip
    """base.json says what lends the rest, and the run is the one on the whole folder."""
    convert(open_folder(toy_folder), tmp_path / "whole", layout)
    (tmp_path / "alone").mkdir()
    file = next((tmp_path / "whole").glob("[cm]*t*.safetensors" if layout == CSM_MLX else "model.safetensors"))
    shutil.copy(file, tmp_path / "alone" / file.name)
    alone = tmp_path / "alone" / file.name
    made = CSMFineTuner(alone, tmp_path / "run", preset="style-tune", backend=CPU, cache=cache, base=toy_folder)
    made.layers.append(("test", {**SETTINGS, **LORA_RUN}))
    train(made, data)
    one, two = state_of(straight), state_of(tmp_path / "run")
    assert all(torch.equal(one[name], two[name]) for name in one)
    opened = open_folder(tmp_path / "run")
    assert opened.base is not None
    assert (opened.layout, opened.beside) == (layout, toy_folder.resolve())
    for x, y in zip(logits(load_model(opened).eval()), logits(load_model(open_folder(straight)).eval()), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", ["everything", "rslora", "dora", "parts"])
def test_both_readers_merge_alike(toy_folder: Path, tmp_path: Path, kind: str) -> None:
    """`csm model merge` reads what training wrote, and makes of it what opening the adapter makes."""
    base = open_folder(toy_folder)
    folder = saved(*shaken(toy_folder, **KINDS_OF[kind]), base, tmp_path / "adapter")
    merge_adapter(base, folder, tmp_path / "merged")
    names = list(parameter_shapes(base.config))
    mine, theirs = read_tensors(open_folder(folder), names), read_tensors(open_folder(tmp_path / "merged"), names)
    for name in names:
        torch.testing.assert_close(mine[name], theirs[name].float(), atol=2e-6, rtol=1e-5)


def test_a_run_with_adapters_converts_as_a_model(straight: Path, toy_folder: Path, tmp_path: Path) -> None:
    convert(open_folder(straight), tmp_path / "sesame", SESAME)
    before, after = (logits(load_model(open_folder(path)).eval()) for path in (straight, tmp_path / "sesame"))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    biased = saved(*shaken(toy_folder, **KINDS_OF["bias"]), open_folder(toy_folder), tmp_path / "biased")
    with pytest.raises(CsmError, match="lora_bias"):
        convert(open_folder(biased), tmp_path / "out", SESAME)
    assert not (tmp_path / "out").exists()


def test_a_converted_adapter_opens_as_a_model(toy_folder: Path, tmp_path: Path) -> None:
    """There and back through csm-mlx's form: the same adapter, found by its base.json or by a base that is named."""
    base = open_folder(toy_folder)
    folder = saved(*shaken(toy_folder, targets=("attn",)), base, tmp_path / "adapter")
    convert_adapter(folder, base, tmp_path / "mlx", CSM_MLX)
    convert_adapter(tmp_path / "mlx", base, tmp_path / "back", TRANSFORMERS)
    one, two = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "back"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    expected = logits(load_model(open_folder(folder)).eval())
    (tmp_path / "bare").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(folder / name, tmp_path / "bare" / name)
    for opened in (open_folder(tmp_path / "back"), open_either(tmp_path / "bare", toy_folder)):
        assert opened.base == base
        assert all(torch.equal(x, y) for x, y in zip(logits(load_model(opened).eval()), expected, strict=True))


def test_fresh_does_not_move_the_base_of_an_adapter(
    toy_folder: Path, data: Any, cache: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    """Two below: the run that the adapter it starts from was trained on."""
    train(tuner(toy_folder, tmp_path / "one", cache, max_steps=1, method="lora", lora_targets=EVERYTHING), data)
    train(tuner(tmp_path / "one", tmp_path / "two", cache, max_steps=1, method="lora"), data)
    with pytest.raises(CsmError, match="holds what it is made from"):
        train(tuner(tmp_path / "two", tmp_path / "one", cache, max_steps=2), data, fresh=True)


def test_merging_takes_a_run_or_a_checkpoint(toy_folder: Path, straight: Path, tmp_path: Path) -> None:
    """`csm model merge`: the run stands for its best; what is merged computes what the adapter beside its base does."""
    from click.testing import CliRunner

    from csm.cli.main import main

    def merge(adapter: Path, out: Path, model: object = toy_folder) -> Any:
        return CliRunner().invoke(main, ["model", "merge", str(model), "--adapter", str(adapter), str(out)])

    best = open_folder(straight).path
    for number, adapter in enumerate((straight, best)):
        done = merge(adapter, tmp_path / str(number))
        assert (done.exit_code, done.stdout) == (0, f"{tmp_path / str(number)}\n"), done.stderr
    on = load_model(open_folder(toy_folder)).eval()
    load_adapter(on, best)
    merged = [logits(load_model(open_folder(tmp_path / name)).eval()) for name in ("0", "1")]
    for one, two, beside in zip(*merged, logits(on), strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, beside, atol=1e-5 * max(1.0, float(beside.abs().max())), rtol=0)
    for wrong, model, says in (
        (straight, "csm-tiny", "another model"),
        (toy_folder, toy_folder, "is no adapter folder"),
        (tmp_path / "nothing", toy_folder, "there is no model"),
    ):
        done = merge(wrong, tmp_path / "out", model)
        assert done.exit_code == 1
        assert says in done.stderr
        assert not (tmp_path / "out").exists()


def test_merging_into_bf16_loses_nothing_of_the_adapter(toy_folder: Path, tmp_path: Path) -> None:
    """What the adapter changes is written in fp32, the rest as it was: the logits are those of the adapter beside its base."""
    half = tmp_path / "half"
    shutil.copytree(toy_folder, half)
    stored = {name: tensor.bfloat16() for name, tensor in load_file(half / "model.safetensors").items()}
    save_file(stored, half / "model.safetensors")
    base = open_folder(half)
    model, plan = shaken(half, targets=("attn",))
    merge_adapter(base, saved(model, plan, base, tmp_path / "adapter"), tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    changed = {f"{site.path}.weight" for site in plan.sites}
    assert {name for name, tensor in merged.items() if tensor.dtype == torch.float32} == changed
    assert all(torch.equal(merged[name], stored[name]) for name in merged.keys() - changed)
    for on, one in zip(logits(model), logits(load_model(open_folder(tmp_path / "merged")).eval()), strict=True):
        torch.testing.assert_close(one, on, atol=1e-5 * max(1.0, float(on.abs().max())), rtol=0)
