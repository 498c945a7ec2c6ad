"""`python -m csm.cli.finetune_lora` and CSMLoRATrainer: the guide's flags, defaults, names of files, and exact resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import Result
from safetensors.numpy import load_file
from test_cli import invoke
from test_run import CPU, metrics

from csm.cli.finetune_lora import main
from csm.errors import CsmError
from csm.model_folder import open_folder
from csm.segment import Segment
from csm.torch.convert import read_weights
from csm.training.interrupt import Interrupted
from csm.training.lora_trainer import CSMLoRATrainer

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def call(model: Path, clips: Path, cache: Path, out: Path, *words: object, code: int = 0) -> Result:
    data = ["--audio-dir", clips / "audio", "--transcript-dir", clips / "transcripts"]
    flags: dict[str, object] = {"--batch-size": 4, "--epochs": 1, "--learning-rate": 1e-2}
    kept = [word for flag, value in flags.items() if flag not in words for word in (flag, value)]
    where = ["--model-path", model, "--output-dir", out, "--cache-dir", cache, "--threads", 1, "--log-to", "none"]
    return invoke(main, *data, *where, *kept, *words, code=code)


@pytest.fixture(scope="module")
def go(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that trains nine clips, three updates; what was said lies beside the run."""

    def run(*words: object, code: int = 0) -> Path:
        out = tmp_path_factory.mktemp("run") / "out"
        told = call(toy_folder, clip_folder, cache, out, *words, code=code)
        (out.parent / "stderr").write_text(told.stderr)
        (out.parent / "stdout").write_text(told.stdout)
        return out

    return run


@pytest.fixture(scope="module")
def plain(go: Run) -> Path:
    return go()


def adapter(run: Path) -> dict[str, np.ndarray]:
    last = run / "checkpoints" / (run / "last").read_text().strip()
    return load_file(last / "adapter_model.safetensors")


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def said(run: Path) -> str:
    return (run.parent / "stderr").read_text()


def test_defaults_are_the_documented_ones() -> None:
    words = ["--model-path", "csm-tiny", "--output-dir", "x", "--audio-dir", "a", "--transcript-dir", "t", "--dry-run"]
    lines = invoke(main, *words).stdout.splitlines()[1:]
    shown = {key: value for key, value, _ in (line.split(None, 2) for line in lines)}
    wanted = {
        "lora_rank": "8", "lora_alpha": "16.0", "lora_dropout": "0.0", "lora_bias": "False", "lora_targets": "q_proj,v_proj",
        "lora_layers": "-", "learning_rate": "0.0001", "weight_decay": "0.01", "batch_size": "2", "epochs": "5",
        "semantic_weight": "100.0", "acoustic_weight": "1.0", "val_split": "0.1", "val_every": "100",
        "save_every": "500", "max_grad_norm": "1.0", "max_seq_len": "2048", "context_turns": "2", "method": "lora",
    }  # fmt: skip
    assert {key: shown[key] for key in wanted} == wanted


WEIGHTS: dict[str, list[object]] = {
    "--speaker-id": ["--speaker-id", 1],
    "--lora-r": ["--lora-r", 4],
    "--lora-alpha": ["--lora-alpha", 2],
    "--lora-dropout": ["--lora-dropout", 0.5],
    "--lora-bias": ["--lora-bias"],
    "--target-modules": ["--target-modules", "q_proj", "v_proj", "o_proj"],
    "--target-layers": ["--target-layers", 0],
    "--semantic-weight": ["--semantic-weight", 1],
    "--acoustic-weight": ["--acoustic-weight", 50],
    "--learning-rate": ["--learning-rate", 5e-3],
    "--weight-decay": ["--weight-decay", 0.9],
    "--batch-size": ["--batch-size", 3],
    "--epochs": ["--epochs", 2],
    "--val-split": ["--val-split", 0.3],
    "--max-grad-norm": ["--max-grad-norm", 1e-9],
    "--max-seq-len": ["--max-seq-len", 60],  # context gives way
    "--context-turns": ["--context-turns", 0],
}


@pytest.mark.parametrize("flag", WEIGHTS)
def test_what_shapes_learning_changes_the_weights(go: Run, plain: Path, flag: str) -> None:
    assert not same(adapter(plain), adapter(go(*WEIGHTS[flag])))


def test_speaker_zero_is_printed(go: Run, plain: Path) -> None:
    assert "speaker 0, where the data does not say (--speaker-id)" in said(plain)
    assert "speaker 0, where" not in said(go("--speaker-id", 1))


def test_validation_and_checkpoints_come_when_they_are_wanted(go: Run, plain: Path) -> None:
    def validated(run: Path) -> list[int]:
        return [record["step"] for record in metrics(run) if "validation_loss" in record]

    assert validated(plain) == [0, 3]
    often = go("--val-every", 2)
    assert validated(often) == [0, 2, 3]
    assert "step 2: loss" in said(often)
    assert "; saved" not in said(often).split("step 2: loss")[1].splitlines()[0]
    assert len(list((plain / "checkpoints").iterdir())) == 1
    assert len(list((go("--save-every", 1) / "checkpoints").iterdir())) == 3


def test_a_row_limit_names_what_does_not_fit(go: Run) -> None:
    refused = go("--max-seq-len", 5, code=1)
    assert "rows and max_seq_len is 5" in said(refused)
    assert "max_seq_len is 2048, and this model takes 256 rows" in said(go())


def test_a_layer_out_of_range_names_the_range(go: Run) -> None:
    out = go("--target-layers", 16, 17, 18, 19, code=1)
    assert "layer 16" in said(out)
    assert "from 0 to 1" in said(out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("lora", {"fine_tuned_model": "lora"}),
        ("full", {"fine_tuned_model": "full"}),
        ("both", {"fine_tuned_model_lora": "lora", "fine_tuned_model_full": "full"}),
    ],
)
def test_files_of_each_save_mode(go: Run, toy_folder: Path, tmp_path: Path, mode: str, names: dict[str, str]) -> None:
    run = go("--save-mode", mode)
    assert {path.stem for path in run.glob("fine_tuned_model*.safetensors")} == set(names)
    best = read_weights(open_folder(run))
    for name, holds in names.items():
        told = json.loads((run / f"{name}_metadata.json").read_text())
        assert (told["holds"], told["lora_rank"], told["base"]["name"]) == (holds, 8, "model")
        if holds == "full":
            found = read_weights(open_folder(run / f"{name}.safetensors", toy_folder))
            assert (run / "merged" / "model.safetensors").samefile(run / f"{name}.safetensors")
        else:
            trainer = CSMLoRATrainer(toy_folder, tmp_path / "out", backend=CPU)
            found = read_weights(trainer.load_lora_weights(run / f"{name}.safetensors"))
        for key, value in best.items():
            np.testing.assert_allclose(found[key].numpy(), value.numpy(), atol=1e-6, err_msg=key)


def test_biases_are_not_merged_and_it_is_said_before_the_work(go: Run) -> None:
    out = go("--lora-bias", "--save-mode", "both", code=2)
    assert "--lora-bias cannot be merged" in said(out)
    assert not out.exists()


def test_a_sample_is_spoken_at_the_end(go: Run, plain: Path) -> None:
    words = ["--generate-samples", "--sample-prompt"]
    runs = [go(*words, "good morning."), go(*words, "good evening.")]
    waves = [soundfile.read(run / "sample.wav")[0] for run in runs]
    assert all(len(wave) > 1920 for wave in waves)
    assert len(waves[0]) != len(waves[1]) or not np.array_equal(*waves)
    assert (runs[0].parent / "stdout").read_text().splitlines()[-1] == str(runs[0] / "sample.wav")
    assert not list(plain.glob("*.wav"))
    assert same(adapter(plain), adapter(runs[0])), "a prompt for the end is no part of the run"
    assert "--sample-prompt is for" in said(go("--sample-prompt", "hello", code=2))
    empty = go("--generate-samples", "--sample-prompt", " ", code=1)
    assert "--sample-prompt is empty" in said(empty)
    assert not empty.exists(), "it is said before the training"


def test_a_result_is_nothing_to_resume_from(go: Run, plain: Path) -> None:
    from csm.errors import CsmError
    from csm.training.lora_files import run_to_resume

    with pytest.raises(CsmError, match="is a result, not a state") as caught:
        run_to_resume(plain / "fine_tuned_model.safetensors", plain)
    assert "checkpoint_latest.safetensors" in caught.value.hint
    run_to_resume(plain / "checkpoint_latest.safetensors", plain)


def test_no_sound_is_written_where_nothing_was_spoken(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import csm.generator as generator

    tried: list[int] = []

    def silent(self: Any, *_: Any, seed: int, **__: Any) -> None:
        tried.append(seed)
        raise generator.NothingSpokenError("the model ended before it said anything.")

    monkeypatch.setattr(generator.Generator, "speak", silent)
    run = go("--generate-samples", code=1)
    assert (tried, list(run.glob("*.wav"))) == ([0, 1, 2], [])
    assert "before it said anything" in said(run)
    assert (run / "fine_tuned_model.safetensors").is_file()


def test_levels_of_talk(go: Run, plain: Path) -> None:
    figures = "step 1 of 3: loss "
    told = {level: said(go("--log-level", level)) for level in ("debug", "info", "warning", "error")}
    assert figures in told["debug"]
    assert figures in said(go("--debug"))
    assert figures not in told["info"]
    assert "best checkpoint" in told["info"]
    assert all(line.startswith("warning: ") for line in told["warning"].splitlines())
    assert told["error"] == ""
    refused = go("--log-level", "critical", "--target-layers", 99, code=1)
    assert said(refused).startswith("error: "), "what went wrong is always said"


def test_warnings_are_said_from_their_level_on(go: Run, make_clips: Callable[[int], Path], toy_folder: Path) -> None:
    clips = make_clips(5)
    (clips / "transcripts" / "000.txt").write_text("")
    words = (toy_folder, clips, clips / "cache", clips / "out", "--log-level")
    assert "skipped" in call(*words, "warning").stderr
    assert call(*words, "error").stderr == ""


# Resuming


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The next run is stopped by a signal after a step."""
    import csm.training.loop as loop

    real = loop.update

    def update(parts: Any, number: int) -> dict[str, float]:
        if number == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(parts, number)

    monkeypatch.setattr(loop, "update", update)


def test_resume_from_the_latest_checkpoint_is_exact(
    toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second command says nothing of the first one's flags: the run that goes on says them."""
    words = ["--lora-r", 4, "--epochs", 2, "--save-every", 2]
    call(toy_folder, clip_folder, cache, tmp_path / "one", *words)
    two = tmp_path / "two"
    interrupted(monkeypatch, 3)
    call(toy_folder, clip_folder, cache, two, *words, code=130)
    monkeypatch.undo()
    latest = load_file(two / "checkpoint_latest.safetensors")
    assert same(latest, load_file(two / "checkpoints" / "step-000003" / "adapter_model.safetensors"))
    data = ["--audio-dir", clip_folder / "audio", "--transcript-dir", clip_folder / "transcripts", "--cache-dir", cache]
    where = ["--model-path", toy_folder, "--output-dir", two, "--threads", 1]
    done = invoke(main, *data, *where, "--resume-from", two / "checkpoint_latest.safetensors")
    assert "the run that goes on" in done.stderr
    assert "stands at step 3" in done.stderr
    assert same(adapter(tmp_path / "one"), adapter(two))
    assert metrics(tmp_path / "one") == metrics(two)
    files = [load_file(run / "checkpoint_latest.safetensors") for run in (tmp_path / "one", two)]
    assert same(*files)


def test_what_cannot_be_resumed_is_said(go: Run, plain: Path, tmp_path: Path) -> None:
    assert "nothing to resume from" in said(go("--resume-from", tmp_path / "no.safetensors", code=1))
    other = said(go("--resume-from", plain / "checkpoint_latest.safetensors", code=1))
    assert f"Give --output-dir {plain}" in other
    shutil.copyfile(plain / "checkpoint_latest.safetensors", tmp_path / "alone.safetensors")
    assert "has no run beside it" in said(go("--resume-from", tmp_path / "alone.safetensors", code=1))
    older = go("--save-every", 1)
    named = older / "checkpoints" / "step-000001"
    assert "has no state to go on from" in said(go("--resume-from", named, code=1))


# Python


def segments(clips: Path) -> list[Segment]:
    stems = sorted(path.stem for path in (clips / "audio").iterdir())[:6]
    texts = [(clips / "transcripts" / f"{stem}.txt").read_text() for stem in stems]
    return [Segment(text, 0, clips / "audio" / f"{stem}.wav") for stem, text in zip(stems, texts, strict=True)]


def trainer(model: Path, out: Path, cache: Path, **more: Any) -> CSMLoRATrainer:
    return CSMLoRATrainer(model_path=str(model), output_dir=str(out), lora_r=4, lora_alpha=8.0, backend=CPU, cache=cache,
                          **more)  # fmt: skip


def test_the_class_trains_saves_loads_and_speaks(
    toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path
) -> None:
    made = trainer(toy_folder, tmp_path / "run", cache, learning_rate=1e-2, target_layers=[1])
    done = made.train(segments(clip_folder), batch_size=2, epochs=1, val_every=1)
    plan = json.loads((done.best / "adapter_config.json").read_text())
    assert (plan["r"], plan["lora_alpha"]) == (4, 8.0)
    assert not any(".layers.0." in name for name in plan["target_modules"] if "backbone" in name)
    (file,) = made.save_model()
    base, loaded = (trainer(toy_folder, tmp_path / name, cache) for name in ("base", "loaded"))
    loaded.load_lora_weights(str(file))
    text = "good morning."
    said_by = {
        name: soundfile.read(one.generate_sample(text=text, speaker_id=0, output_path=str(tmp_path / f"{name}.wav")))[0]
        for name, one in (("run", made), ("base", base), ("loaded", loaded))
    }
    assert np.array_equal(said_by["run"], said_by["loaded"])
    assert said_by["run"].shape != said_by["base"].shape or not np.array_equal(said_by["run"], said_by["base"])


def test_the_class_goes_on_where_it_was_stopped(
    toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = segments(clip_folder)
    trainer(toy_folder, tmp_path / "one", cache).train(data)
    interrupted(monkeypatch, 2)
    with pytest.raises(Interrupted):
        trainer(toy_folder, tmp_path / "two", cache).train(data)
    monkeypatch.undo()
    trainer(toy_folder, tmp_path / "two", cache).train(
        data, resume_from=tmp_path / "two" / "checkpoint_latest.safetensors"
    )
    assert same(adapter(tmp_path / "one"), adapter(tmp_path / "two"))


def test_weights_that_do_not_fit_are_refused(toy_folder: Path, plain: Path, cache: Path, tmp_path: Path) -> None:
    tiny = trainer(Path("csm-tiny"), tmp_path / "tiny", cache)
    with pytest.raises(CsmError, match=r"was trained on model .* another model"):
        tiny.load_lora_weights(plain / "fine_tuned_model.safetensors")
    toy = trainer(toy_folder, tmp_path / "toy", cache)
    with pytest.raises(CsmError, match="does not say which adapter"):
        toy.load_lora_weights(toy_folder / "model.safetensors")
    with pytest.raises(CsmError, match="no adapter"):
        toy.load_lora_weights(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("words")
    with pytest.raises(CsmError, match="no safetensors file"):
        toy.load_lora_weights(tmp_path / "text.safetensors")
    with pytest.warns(UserWarning, match="rank 8 and alpha 16, which hold"):
        toy.load_lora_weights(plain / "fine_tuned_model.safetensors")
    with pytest.raises(CsmError, match="loaded to speak with"):
        toy.train([])
    with pytest.raises(CsmError, match="no checkpoint yet"):
        trainer(toy_folder, tmp_path / "new", cache).save_model()
