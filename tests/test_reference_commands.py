"""`csm-finetune full` and `lora`: csm-mlx's flags and defaults, each spelling, and that every flag makes its difference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.numpy import load_file
from test_cli import finetune

import csm.training.loop as loop
from csm.model_folder import open_folder
from csm.torch.checkpoint import load_model
from csm.torch.convert import read_weights
from csm.training.interrupt import Interrupted

Run = Callable[..., Path]


def conversations(clips: Path, file: Path, numbers: range) -> Path:
    """Two clips a conversation, speakers 0 and 1 in turn."""
    turns = [
        {
            "text": (clips / "transcripts" / f"{number:03d}.txt").read_text(),
            "audio_path": str(clips / "audio" / f"{number:03d}.wav"),
            "speaker": number % 2,
        }
        for number in numbers
    ]
    file.write_text(json.dumps([turns[i : i + 2] for i in range(0, len(turns), 2)]))
    return file


@pytest.fixture(scope="module")
def folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data.json` of six clips, `held.json` of four, and a cache."""
    root = tmp_path_factory.mktemp("mlx")
    conversations(clip_folder, root / "data.json", range(6))
    conversations(clip_folder, root / "held.json", range(6, 10))
    return root


@pytest.fixture(scope="module")
def go(folder: Path, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that trains two updates at a high rate, and gives the run's folder."""

    def run(command: str, *words: object, code: int = 0) -> Path:
        out = tmp_path_factory.mktemp("run") / "out"
        told = train(command, folder, toy_folder, out, *words, code=code)
        (out.parent / "stderr").write_text(told.stderr)
        return out

    return run


def train(command: str, folder: Path, model: Path, out: Path, *words: object, code: int = 0) -> Result:
    flags: dict[str, object] = {"--batch-size": 3, "--epochs": 1, "--lr": 1e-2, "--log-to": "none"}
    kept = [word for flag, value in flags.items() if flag not in words for word in (flag, value)]
    where = ["--pretrained-path", model, "--output-dir", out, "--cache-dir", folder / "cache", "--threads", 1]
    return finetune(command, "--data-path", folder / "data.json", *where, *kept, *words, code=code)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, np.ndarray]:
    """What the last checkpoint's base, or adapter and base, make together."""
    last = run / "checkpoints" / (run / "last").read_text().strip()
    return {name: tensor.numpy() for name, tensor in read_weights(open_folder(last)).items()}


@pytest.fixture(scope="module")
def plain(go: Run) -> dict[str, Path]:
    return {command: go(command) for command in ("full", "lora")}


def dry(command: str, *words: object, data: object = "d.json") -> dict[str, tuple[str, str]]:
    """Value and source of every key that --dry-run shows."""
    flags = ["--data-path", data, "-o", "x", "--dry-run", "--threads", 1]
    model = () if {"--pretrained-path", "--model-path"} & set(words) else ("--pretrained-path", "csm-tiny")
    lines = finetune(command, *flags, *model, *words).stdout.splitlines()[1:]
    return {key: (value, source) for key, value, source in (line.split(None, 2) for line in lines)}


DOCUMENTED = {
    "full": {"epochs": "5", "batch_size": "4", "learning_rate": "1e-05", "method": "full"},
    "lora": {
        "epochs": "10", "batch_size": "8", "learning_rate": "0.0005", "method": "lora", "lora_rank": "8",
        "lora_alpha": "16.0", "lora_targets": "attn,projection",
    },
}  # fmt: skip
BOTH = {
    "weight_decay": "0.0001", "max_grad_norm": "0.0", "save_every": "100", "log_every": "10", "optimizer": "adamw",
    "schedule": "constant", "warmup_share": "0.0", "semantic_weight": "0.03125", "acoustic_weight": "0.96875",
    "val_split": "0.0", "gradient_ckpt": "False", "max_audio_length_ms": "0.0",
}  # fmt: skip


@pytest.mark.parametrize("command", DOCUMENTED)
def test_defaults_are_the_documented_ones(command: str) -> None:
    shown = dry(command)
    wanted = {**DOCUMENTED[command], **BOTH}
    assert {key: shown[key] for key in wanted} == {key: (value, f"preset {command}") for key, value in wanted.items()}


@pytest.mark.parametrize("words", [["--first_codebook_weight_multiplier", 2], ["--fcw", 2], ["--fcw=2"],
                                   ["--first-codebook-weight-multiplier=2"]])  # fmt: skip
def test_the_first_codebooks_weight_is_shown_as_what_it_became(words: list[object]) -> None:
    shown = dry("full", *words)
    source = "flag --first-codebook-weight-multiplier 2"
    assert (shown["semantic_weight"], shown["acoustic_weight"]) == (("0.0625", source), ("0.96875", source))


SPELLINGS = {
    "save_every": [["--ckpt_freq", 7], ["--ckpt-freq", 7], ["--ckpt_freq=7"], ["--save-every", 7]],
    "log_every": [["--log-freq", 7], ["--log_freq", 7]],
    "learning_rate": [["--learning-rate", "7e-3"], ["--learning_rate", "7e-3"], ["--lr", "7e-3"]],
    "weight_decay": [["--weight-decay", 0.7], ["--weight_decay", 0.7], ["--wd", 0.7]],
    "max_grad_norm": [["--max-norm", 7], ["--max_norm", 7]],
    "accumulate": [["--gradient-accumulation-steps", 7], ["--gradient_accumulation_steps", 7]],
    "mask_speaker_ids": [["--mask-speaker-ids", "0,1"], ["--mask-speaker-ids", 0, 1], ["--mask_speaker_ids", "0 1"],
                         ["--mask-speaker-ids", 0, "--mask-speaker-ids", 1]],
    "lora_targets": [["--target-modules", "attn", "projection"], ["--target-modules", "attn,projection"],
                     ["--target_modules", "attn projection"],
                     ["--target-modules", "attn", "--target-modules", "projection"]],
}  # fmt: skip


@pytest.mark.parametrize("key", SPELLINGS)
def test_every_spelling_means_the_same(key: str) -> None:
    shown = [dry("lora", *words)[key] for words in SPELLINGS[key]]
    assert len(set(shown)) == 1
    assert shown[0][1] == "flag"


WEIGHTS: dict[str, tuple[str, list[object]]] = {
    "--batch-size": ("full", ["--batch-size", 2]),
    "--epochs": ("full", ["--epochs", 2]),
    "--learning-rate": ("full", ["--lr", 1e-3]),
    "--weight-decay": ("full", ["--wd", 0.5]),
    "--freeze-backbone": ("full", ["--freeze-backbone"]),
    "--freeze-decoder": ("full", ["--freeze-decoder"]),
    "--max-audio-length-ms": ("full", ["--max-audio-length-ms", 400]),
    "--mask-speaker-ids": ("full", ["--mask-speaker-ids", 1]),
    "--max-norm": ("full", ["--max-norm", 1e-9]),  # Adam forgives a factor, but not one near its epsilon
    "--first-codebook-weight-multiplier": ("full", ["--fcw", 8]),
    "--optimizer": ("full", ["--optimizer", "sgd"]),
    "--gradient-accumulation-steps": ("full", ["--gradient-accumulation-steps", 2]),
    "--lora-rank": ("lora", ["--lora-rank", 2]),
    "--lora-alpha": ("lora", ["--lora-alpha", 4]),
    "--lora-dropout": ("lora", ["--lora-dropout", 0.5]),
    "--target-modules": ("lora", ["--target-modules", "projection"]),
    "--target-layers": ("lora", ["--target-layers", 1]),
    "--train-embeddings": ("lora", ["--train-embeddings"]),
    "--dora": ("lora", ["--dora"]),
    "--rslora": ("lora", ["--rslora"]),
}


@pytest.mark.parametrize("flag", WEIGHTS)
def test_what_shapes_learning_changes_the_weights(go: Run, plain: dict[str, Path], flag: str) -> None:
    command, words = WEIGHTS[flag]
    one, two = weights(plain[command]), weights(go(command, *words))
    assert any(not np.array_equal(one[name], two[name]) for name in one)


def moved(run: Path, model: Path) -> set[str]:
    """The groups in which anything has changed."""
    from csm.torch.trainer import group_of

    base, now = read_weights(open_folder(model)), weights(run)
    return {group_of(name) for name, tensor in base.items() if not np.array_equal(tensor.numpy(), now[name])}


def test_frozen_groups_stay_and_embeddings_are_trained_on_request(
    go: Run, plain: dict[str, Path], toy_folder: Path
) -> None:
    groups = {"backbone", "decoder", "embeddings"}
    assert moved(plain["full"], toy_folder) == groups
    assert moved(go("full", "--freeze-backbone"), toy_folder) == groups - {"backbone"}
    assert moved(go("full", "--freeze-decoder"), toy_folder) == groups - {"decoder"}
    assert moved(plain["lora"], toy_folder) == groups - {"embeddings"}
    assert moved(go("lora", "--train-embeddings"), toy_folder) == groups


def test_embeddings_learn_as_they_are_and_resume_exactly(
    toy_folder: Path, clip_folder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--train-embeddings", "--epochs", 2, "--ckpt-freq", 1]
    one, two = tmp_path / "one", tmp_path / "two"
    done = train("lora", folder, toy_folder, one, *words)
    assert "of the embeddings, as they are" in done.stderr
    real = loop.save

    def save(parts: Any, position: Any, values: Any) -> None:
        real(parts, position, values)
        if position.step == 2:
            raise Interrupted("stopped", 2)

    monkeypatch.setattr(loop, "save", save)
    train("lora", folder, toy_folder, two, *words, code=130)
    monkeypatch.undo()
    train("lora", folder, toy_folder, two, *words)
    files = [load_file(run / "checkpoints" / "step-000004" / "adapter_model.safetensors") for run in (one, two)]
    assert "base_model.model.embed_text_tokens.weight" in files[0]
    assert all(np.array_equal(files[0][name], files[1][name]) for name in files[0])
    config = json.loads((one / "checkpoints" / "step-000004" / "adapter_config.json").read_text())
    assert "embed_text_tokens" in config["modules_to_save"]


def test_peft_loads_embeddings_that_were_learned_as_they_are(go: Run, toy_folder: Path) -> None:
    from peft import PeftModel
    from test_lora import logits, their_logits, transformers_model

    run = go("lora", "--train-embeddings")
    best = run / "checkpoints" / (run / "best").read_text().strip()
    theirs = PeftModel.from_pretrained(transformers_model(toy_folder), best).eval()
    ours = logits(load_model(open_folder(best)).eval())
    for one, two in zip(ours, their_logits(theirs), strict=True):
        torch.testing.assert_close(one, two, atol=5e-5 * max(1.0, float(two.abs().max())), rtol=0)
    without = logits(load_model(open_folder(toy_folder)).eval())
    assert (ours[0] - without[0]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--freeze-embeddings"], "learns the embeddings, and they are frozen"),
        (["--target-modules", "attn", "text_embeddings"], "learns text_embeddings whole"),
    ],
)
def test_embeddings_cannot_be_two_things(words: list[object], sentence: str) -> None:
    flags = ["--data-path", "d", "-o", "x", "--pretrained-path", "csm-tiny", "--dry-run", "--train-embeddings"]
    assert sentence in finetune("lora", *flags, *words, code=1).stderr


def test_what_is_written_and_when(go: Run, plain: dict[str, Path]) -> None:
    def logged(run: Path) -> list[int]:
        return [record["step"] for record in records(run) if record["step"]]

    def saved(run: Path) -> list[str]:
        return sorted(path.name for path in (run / "checkpoints").iterdir())

    assert logged(plain["full"]) == [2], "the last update is always logged"
    assert logged(go("full", "--log-freq", 1)) == [1, 2]
    assert saved(plain["full"]) == ["step-000002"]
    assert saved(go("full", "--ckpt_freq", 1)) == ["step-000001", "step-000002"]


def test_gradient_checkpointing_reaches_the_model_and_changes_no_number(go: Run, plain: dict[str, Path]) -> None:
    run = go("full", "--gradient-ckpt")
    assert json.loads((run / "recipe.json").read_text())["recipe"]["gradient_ckpt"] is True
    one, two = weights(plain["full"]), weights(run)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def validated(run: Path) -> list[int]:
    return [record["step"] for record in records(run) if "validation_loss" in record]


def test_data_to_validate_on(go: Run, plain: dict[str, Path], folder: Path) -> None:
    assert validated(plain["full"]) == []
    held = ["--val-data-path", folder / "held.json"]
    run = go("full", *held, "--val-batch-size", 1)
    assert validated(run) == [0, 2]
    assert validated(go("full", *held, "--val-freq", 1)) == [0, 1, 2]
    one, two = weights(plain["full"]), weights(run)
    assert all(np.array_equal(one[name], two[name]) for name in one), "nothing of it is learned"
    for flag in ("--val-freq", "--val-batch-size"):
        idle = go("full", flag, 1, code=2)
        assert "has nothing to validate on" in (idle.parent / "stderr").read_text()
    own = go("full", "--val-data-path", folder / "data.json")
    assert "6 of 6 turns to validate on are learned from too" in (own.parent / "stderr").read_text()
    both = go("full", *held, "--val-split", 0.5, code=1)
    assert "val_split is 0.5" in (both.parent / "stderr").read_text()


def test_validation_goes_in_batches_of_its_own_size(go: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import csm.training.finetuner as finetuner

    sizes: list[int] = []
    real = finetuner.validation_batches
    monkeypatch.setattr(
        finetuner, "validation_batches", lambda held, size, most: sizes.append(size) or real(held, size, most)
    )
    held = ["--val-data-path", folder / "held.json"]
    go("full", *held)
    go("full", *held, "--val-batch-size", 2)
    assert sizes == [3, 2]


def test_insisting_on_validated_checkpoints(go: Run, folder: Path) -> None:
    refused = go("full", "--val-ckpt", code=2)
    assert "--val-data-path or --val-split" in (refused.parent / "stderr").read_text()
    assert validated(go("full", "--val-ckpt", "--val-data-path", folder / "held.json")) == [0, 2]


def test_other_data_to_validate_on_is_another_run(folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train("full", folder, toy_folder, out, "--val-data-path", folder / "held.json")
    again = train("full", folder, toy_folder, out, "--val-data-path", folder / "held.json")
    assert "done already" in again.stderr
    assert "data to validate on differ" in train("full", folder, toy_folder, out, code=1).stderr


def test_only_the_adapter_is_saved_unless_all_is_asked_for(go: Run, plain: dict[str, Path], toy_folder: Path) -> None:
    checkpoint = plain["lora"] / "checkpoints" / "step-000002"
    assert all(".lora_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    assert not (plain["lora"] / "merged").exists()
    run = go("lora", "--save-all", "--train-embeddings")
    merged, adapted = read_weights(open_folder(run / "merged")), weights(run)
    for name, value in adapted.items():
        np.testing.assert_allclose(merged[name].numpy(), value, atol=1e-6, err_msg=name)
    assert (run / "merged" / "README.md").read_text().startswith("---\nlibrary_name: transformers")


def test_sound_is_cut_and_its_end_not_learned(go: Run) -> None:
    told = (go("full", "--max-audio-length-ms", 500).parent / "stderr").read_text()
    assert "6 turns were cut at 500 ms" in told
    none = go("full", "--max-audio-length-ms", 10, code=1)
    assert "less than one frame (80 ms)" in (none.parent / "stderr").read_text()


def test_one_sentence_where_no_weights_are_to_be_had(tmp_path: Path) -> None:
    for words in ([], ["--model", "1b"]):
        done = finetune("lora", "--data-path", "d.json", "--output-dir", tmp_path / "o", *words, code=1)
        assert "--model 1b: sesame/csm-1b" in done.stderr
        assert "--pretrained-path" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2
    assert "'3b' is not" in finetune("full", "--data-path", "d", "-o", "x", "--model", "3b", code=2).stderr


def test_two_ways_of_saying_the_weights_exclude_each_other(tmp_path: Path) -> None:
    words = ["--data-path", "d", "-o", tmp_path / "x", "--pretrained-path", "csm-tiny", "--fcw", 1]
    assert "one or the other" in finetune("full", *words, "--semantic-weight", 2, code=2).stderr


def test_several_data_paths_as_words(folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    flags = ["--pretrained-path", toy_folder, "--output-dir", tmp_path / "run", "--cache-dir", folder / "cache"]
    words = ["--data-path", folder / "data.json", folder / "held.json", *flags, "--max-steps", 1, "--threads", 1]
    assert "data: 5 conversations, 10 clips" in finetune("full", *words).stderr


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--lora-bias", "--save-all"], 2, "--lora-bias cannot be merged"),
        (["--lora-ranks", "text_embeddings=2"], 1, "lora_ranks names text_embeddings, where nothing is adapted"),
        (["--lora-alphas", "acoustic_heads=2"], 1, "lora_alphas names acoustic_heads, where nothing is adapted"),
        (["--sample-prompt", "hello"], 2, "--sample-prompt is for"),
    ],
)
def test_what_would_do_nothing_or_fail_at_the_end_is_said_first(go: Run, words: list, code: int, sentence: str) -> None:
    out = go("lora", *words, code=code)
    assert sentence in (out.parent / "stderr").read_text()
    assert not out.exists()
