"""The commands that other systems' documents show, run here: csm-tiny for the 1B, a few real recordings for everyone's data.

The commands are theirs word for word (paths stand for real ones, `OTHER` names those that belong elsewhere); what they do
is checked by what they leave behind. Comments after a backslash, which no shell would take, are dropped.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result
from conftest import ASSETS
from test_cli import VOICE

from csm.cli.finetune import main as finetune_main
from csm.cli.finetune_lora import main as finetune_lora_main
from csm.cli.main import main as csm_main

PROGRAMS = {
    ("csm-finetune",): finetune_main,
    ("csm",): csm_main,
    ("python", "-m", "csm.cli.finetune_lora"): finetune_lora_main,
}

GUIDE = """python -m csm.cli.finetune_lora \\
  --model-path /path/to/model.safetensors \\
  --output-dir {out} \\
  --audio-dir {of}/audio \\
  --transcript-dir {of}/transcripts"""


def guide(rest: str = "", out: str = "./fine_tuned_model", of: str = "/path/to") -> str:
    return GUIDE.format(out=out, of=of) + (" \\\n  " + rest if rest else "")


COMMANDS = {
    "voice adaptation": """csm-finetune voice-adapt \\
  --model-path /path/to/csm_1b.pt \\
  --speaker-id 5 \\
  --audio-dir /path/to/voice_samples \\
  --transcript-dir /path/to/transcripts \\
  --output-dir voice_adapted_model \\
  --learning-rate 2e-5 \\
  --epochs 5 \\
  --freeze-backbone""",
    "style tuning": """csm-finetune style-tune \\
  --model-path /path/to/csm_1b.pt \\
  --speaker-id 5 \\
  --style-name "excited" \\
  --audio-dir /path/to/style_samples \\
  --transcript-dir /path/to/transcripts \\
  --output-dir excited_style_model""",
    "voices: list": "csm voice list",
    "voices: create": """csm voice create "John" 3 "Professional male voice" \\
  --gender male \\
  --age-range "30-40" \\
  --accent "North American" \\
  --model-path /path/to/fine_tuned_model.pt""",
    "voices: sample": """csm voice sample 3 \\
  --text "Hello, this is a demonstration of my voice." """,
    "lora: basic": guide("--speaker-id 0 --batch-size 2 --epochs 5"),
    "lora: parameters": guide(
        "--lora-r 16 --lora-alpha 32 --lora-dropout 0.05 --target-modules q_proj v_proj o_proj --target-layers 0 1 2 3"
    ),
    "lora: training": guide(
        "--learning-rate 5e-5 --semantic-weight 120.0 --acoustic-weight 1.0 --weight-decay 0.01 --batch-size 4 "
        "--epochs 10 --val-split 0.1 --val-every 50 --save-every 200 --max-grad-norm 1.0"
    ),
    "lora: data": guide("--alignment-dir /path/to/alignments --speaker-id 1 --max-seq-len 1024 --context-turns 3"),
    "lora: output": guide(
        '--save-mode both --generate-samples --sample-prompt "This is a test of my new voice model." --log-level debug'
    ),
    "lora: resuming": guide("--resume-from ./fine_tuned_model/checkpoint_latest.safetensors"),
    "lora: speaker 1": guide("--speaker-id 1", "./speaker1_model", "/path/to/speaker1"),
    "lora: speaker 2": guide("--speaker-id 2", "./speaker2_model", "/path/to/speaker2"),
    "lora: style": guide(
        """--speaker-id 0 \\
  --lora-r 32 \\  # Higher rank for better style capture
  --lora-alpha 64 \\
  --target-modules q_proj v_proj o_proj  # Include more modules for style""",
        "./emotional_style",
        "/path/to/emotional",
    ),
    "csm-mlx: full": """csm-mlx finetune full \\
    --data-path training_data.json \\
    --output-dir ./finetune_output_full \\
    --model 1b \\
    --epochs 5 \\
    --batch-size 4 \\
    --learning-rate 1e-5""",
    "csm-mlx: lora": """csm-mlx finetune lora \\
    --data-path training_data.json \\
    --output-dir ./finetune_output_lora \\
    --model 1b \\
    --lora-rank 8 \\
    --lora-alpha 16 \\
    --target-modules attn projection""",
}
OTHER = {
    "csm-mlx finetune convert ./my_audio_dataset ./training_data.json": "runs in tests/test_convert.py",
    "csm-mlx finetune full, lora": "run below as csm-finetune full and lora; by their own name with the MLX backend",
    "csm_mlx.finetune, csm.mlx.components": "Python of the MLX backend",
    "python scripts/train_voxcpm_finetune.py --config_path ...": "another model's scripts; not a command of ours",
    "torchrun --nproc_per_node=4 scripts/train_voxcpm_finetune.py": "another model's scripts",
    "python scripts/test_voxcpm_ft_infer.py, test_voxcpm_lora_infer.py": "another model's scripts",
    "python3.11 -m venv .venv; pip install -e '.[dev]'": "installs, and the wheel has its own test",
}


def words_of(command: str) -> list[str]:
    """A documented command as a shell would split it; csm-mlx's two are ours by another name."""
    joined = re.sub(r"\\[ \t]*(#.*)?\n", " ", command)
    words = shlex.split(joined, comments=True)
    return ["csm-finetune", *words[2:]] if words[:2] == ["csm-mlx", "finetune"] else words


def call(words: list[str], code: int = 0) -> Result:
    for start, program in PROGRAMS.items():
        if tuple(words[: len(start)]) == start:
            done = CliRunner().invoke(program, words[len(start) :], prog_name=" ".join(start))
            assert isinstance(done.exception, SystemExit | None), done.exc_info
            assert done.exit_code == code, done.stderr
            return done
    raise AssertionError(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_documented_command_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(click.Command, "invoke", lambda self, context: ran.append(context.command_path))
    call(words_of(COMMANDS[name]))
    assert ran


def test_what_is_left_to_others_has_a_reason() -> None:
    assert all(reason and command not in COMMANDS.values() for command, reason in OTHER.items())


# The same commands, run


def recordings(root: Path, sounds: str, texts: str, names: list[str]) -> None:
    for name in names:
        for folder, kind, suffix in ((sounds, "audio", ".flac"), (texts, "transcripts", ".txt")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(VOICE / kind / f"{name}{suffix}", root / folder / f"{name}{suffix}")


def alignments(root: Path) -> None:
    """The guide's form, with each clip's words spread over it."""
    (root / "alignments").mkdir()
    for text in (root / "transcripts").iterdir():
        sound = root / "audio" / f"{text.stem}.flac"
        if sound.is_file():
            words, seconds = text.read_text().split(), soundfile.info(sound).duration
            each = seconds / len(words)
            said = [{"word": word, "start": i * each, "end": (i + 1) * each} for i, word in enumerate(words)]
            (root / "alignments" / f"{text.stem}.json").write_text(json.dumps({"words": said}))


def conversations(path: Path) -> None:
    """The document's own example, its two speakers in turn."""
    turns = [
        {
            "text": (VOICE / "transcripts" / f"{name}.txt").read_text().strip(),
            "audio_path": str(VOICE / "audio" / f"{name}.flac"),
            "speaker_id": number % 2 * 5,
        }
        for number, name in enumerate(["001", "002", "003", "004"])
    ]
    path.write_text(json.dumps([turns[:2], turns[2:]]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder and what stands for /path/to; caches and the registry are its own."""
    root = tmp_path_factory.mktemp("documents")
    weights = root / "to"
    shutil.copytree(ASSETS, weights)  # model.safetensors, with what belongs beside it
    from csm.model_folder import open_folder
    from csm.torch.convert import read_weights

    folder = open_folder("csm-tiny")
    (weights / "recommended.json").unlink()
    for name in ("csm_1b.pt", "fine_tuned_model.pt"):
        torch.save(sesame(read_weights(folder), folder), weights / name)
    names = ["001", "002", "003", "004"]
    for sounds, texts in (("voice_samples", "transcripts"), ("style_samples", "transcripts"), ("audio", "transcripts")):
        recordings(weights, sounds, texts, names)
    for group in ("speaker1", "speaker2", "emotional"):
        recordings(weights / group, "audio", "transcripts", names)
    alignments(weights)
    (root / "work").mkdir()
    conversations(root / "work" / "training_data.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "work")
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
            patch.setenv(name, str(root / name))
        yield root


def sesame(tensors: dict[str, torch.Tensor], folder: object) -> dict[str, torch.Tensor]:
    """A state dict as Sesame publishes it."""
    from csm.layouts import SESAME, into_layout, stored_name

    config = folder.config  # type: ignore[attr-defined]
    return {stored_name(n, SESAME): into_layout(n, t, SESAME, config).contiguous() for n, t in tensors.items()}


def run(place: Path, name: str, *more: str, code: int = 0) -> Result:
    """A documented command in the working folder, with /path/to a real place, and csm-tiny where the 1B is meant."""
    words = [word.replace("/path/to", str(place / "to")) for word in words_of(COMMANDS[name])]
    if "--model" in words:
        words += ["--pretrained-path", str(ASSETS)]
    trains = words[0] != "csm"
    return call([*words, *(["--threads", "1"] if trains else []), *more], code)


def best(folder: str) -> Path:
    return Path(folder, "checkpoints", Path(folder, "best").read_text().strip())


def recipe(folder: str) -> dict[str, object]:
    return json.loads(Path(folder, "recipe.json").read_text())["recipe"]


@pytest.mark.slow
def test_voice_adaptation_and_style_tuning(place: Path) -> None:
    done = run(place, "voice adaptation")
    assert done.stdout.strip() == str(best("voice_adapted_model"))
    kept = recipe("voice_adapted_model")
    assert (kept["learning_rate"], kept["epochs"], kept["freeze_backbone"]) == (2e-5, 5, True)
    run(place, "style tuning")
    assert recipe("excited_style_model")["style_name"] == "excited"
    call(["csm", "generate", "--model-path", "excited_style_model", "--text", "good morning.", "--speaker", "5",
          "--output", "excited.wav", "--threads", "1"])  # fmt: skip
    assert soundfile.info("excited.wav").frames > 1920


@pytest.mark.slow
def test_voices(place: Path) -> None:
    run(place, "voices: list")
    run(place, "voices: create")
    assert "John" in run(place, "voices: list").stdout
    wave = run(place, "voices: sample").stdout.strip()
    assert soundfile.info(wave).frames > 1920


@pytest.mark.slow
def test_the_guides_commands(place: Path) -> None:
    run(place, "lora: basic")
    kept = recipe("fine_tuned_model")
    assert (kept["lora_rank"], kept["lora_alpha"], kept["epochs"], kept["batch_size"]) == (8, 16.0, 5, 2)
    resumed = run(place, "lora: resuming")
    assert "done already" in resumed.stderr
    for name, keys in {
        "lora: parameters": {
            "lora_rank": 16,
            "lora_layers": [0, 1, 2, 3],
            "lora_targets": ["q_proj", "v_proj", "o_proj"],
        },
        "lora: training": {"semantic_weight": 120.0, "val_every": 50, "save_every": 200, "epochs": 10},
        "lora: output": {"lora_rank": 8},
    }.items():
        done = run(place, name, "--fresh")
        kept = recipe("fine_tuned_model")
        assert {key: kept[key] for key in keys} == keys
    assert "step 1 of " in done.stderr, "--log-level debug"
    names = {path.name for path in Path("fine_tuned_model").glob("fine_tuned_model*.safetensors")}
    assert names == {"fine_tuned_model_lora.safetensors", "fine_tuned_model_full.safetensors"}
    assert done.stdout.split()[-1] == "fine_tuned_model/sample.wav"
    assert soundfile.info("fine_tuned_model/sample.wav").frames > 1920


@pytest.mark.slow
def test_the_guides_use_cases(place: Path) -> None:
    for name, speaker, out in (
        ("lora: speaker 1", 1, "speaker1_model"),
        ("lora: speaker 2", 2, "speaker2_model"),
        ("lora: style", 0, "emotional_style"),
    ):
        run(place, name)
        assert json.loads(Path(out, "lineage.json").read_text())["data"]["speakers"] == [speaker]
    assert (recipe("emotional_style")["lora_rank"], recipe("emotional_style")["lora_alpha"]) == (32, 64.0)


@pytest.mark.slow
def test_the_guides_alignments(place: Path) -> None:
    run(place, "lora: data", "--fresh")
    kept = recipe("fine_tuned_model")
    assert (kept["max_seq_len"], kept["context_turns"]) == (1024, 3)


def test_the_guides_tip_of_layers_that_do_not_exist(place: Path) -> None:
    tip = guide("--target-layers 16 17 18 19", "./tip").replace("/path/to", str(place / "to"))
    told = call([*words_of(tip), "--threads", "1"], code=1).stderr
    assert "layer 16; the backbone's layers go from 0 to 5" in told
    assert not Path("tip").exists()


@pytest.mark.slow
def test_csm_mlx_commands_by_our_name(place: Path) -> None:
    run(place, "csm-mlx: full")
    run(place, "csm-mlx: lora")
    assert recipe("finetune_output_lora")["lora_targets"] == ["attn", "projection"]
    assert (best("finetune_output_full") / "config.json").is_file()
    assert (best("finetune_output_lora") / "adapter_config.json").is_file()


def test_the_documents_example_of_json_says_where_it_is_wrong(place: Path, tmp_path: Path) -> None:
    """Its arrays end in commas, which JSON does not allow."""
    (tmp_path / "data.json").write_text(
        '[\n  [\n    {"text": "Hello!", "audio_path": "a.wav", "speaker_id": 0},\n  ],\n]\n'
    )
    words = ["csm-finetune", "full", "--data-path", str(tmp_path / "data.json"), "-o", str(tmp_path / "o"),
             "--pretrained-path", "csm-tiny", "--threads", "1"]  # fmt: skip
    told = call(words, code=1).stderr
    assert "line 3, column" in told
    assert "Delete that comma" in told


# Python, as the documents call it


@pytest.mark.slow
def test_the_python_of_the_architecture_document(place: Path) -> None:
    from csm.generator import load_csm_1b
    from csm.segment import Segment
    from csm.training.finetuner import CSMFineTuner

    generator = load_csm_1b(place / "to" / "fine_tuned_model.pt", device="cpu")
    text = "this is generated with my fine tuned voice."
    audio = generator.generate(text=text, speaker=5, context=[], temperature=0.9)
    assert audio.ndim == 1
    assert audio.shape[0] > 1920
    my_dataset = [
        Segment((VOICE / "transcripts" / f"{name}.txt").read_text().strip(), 5, VOICE / "audio" / f"{name}.flac")
        for name in ("001", "002", "003")
    ]
    tuner = CSMFineTuner(model_path=place / "to" / "csm_1b.pt", output_dir="my_custom_voice", learning_rate=2e-5)
    tuner.prepare_optimizer(freeze_backbone=True)
    tuner.train(train_dataset=my_dataset, batch_size=1, epochs=5)
    assert recipe("my_custom_voice")["batch_size"] == 1


@pytest.mark.slow
def test_the_python_of_the_guide(place: Path) -> None:
    """Without its imports from csm.mlx, which come with the MLX backend."""
    from csm.training.lora_trainer import CSMLoRATrainer

    weights = "./emotional_style/fine_tuned_model.safetensors"
    if not Path(weights).is_file():
        run(place, "lora: style")
    model = str(place / "to" / "model.safetensors")
    trainer = CSMLoRATrainer(model_path=model, output_dir="./output", lora_r=32, lora_alpha=64.0)
    trainer.load_lora_weights(weights)
    trainer.generate_sample(
        text="this is a test of the fine tuned voice model.", speaker_id=0, output_path="./sample.wav"
    )
    wave, rate = soundfile.read("./sample.wav")
    assert rate == 24_000
    assert np.abs(wave).max() > 0.01
