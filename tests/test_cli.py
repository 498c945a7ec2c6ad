"""The command line as the documents spell it: every flag is there and acts, stdout is the answer, layers win in order."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from conftest import ASSETS

from csm.cli.finetune import main as finetune_main
from csm.cli.main import main as csm_main
from csm.cli.options import RECIPE_FLAGS
from csm.presets import PRESETS
from csm.recipe import Recipe

VOICE = Path(__file__).parents[1] / "examples" / "voice"
SAMPLES_A_FRAME = 1920
Command = Callable[..., Result]


def invoke(command: Any, *arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert isinstance(done.exception, SystemExit | None), done.exc_info
    assert done.exit_code == code, done.stderr
    return done


def csm(*arguments: object, code: int = 0) -> Result:
    return invoke(csm_main, *arguments, code=code)


def finetune(*arguments: object, code: int = 0) -> Result:
    return invoke(finetune_main, *arguments, code=code)


def generate(output: Path, *arguments: object, text: str = "good morning.") -> np.ndarray:
    """The codes (K, T) of one `csm generate`."""
    codes = output.with_suffix(".npy")
    csm("generate", "--text", text, "--output", output, "--codes", codes, "--threads", 1, *arguments)
    return np.load(codes, allow_pickle=False)


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """csm-tiny without its recommendations: what the presets and the documented defaults are by themselves."""
    folder = tmp_path_factory.mktemp("plain") / "model"
    folder.mkdir()
    for file in ASSETS.iterdir():
        if file.name != "recommended.json":
            (folder / file.name).symlink_to(file)
    return folder


def train(
    out: Path, clips: Path, cache: Path, *arguments: object, preset: str = "voice-adapt", code: int = 0
) -> Result:
    data = ["--audio-dir", clips / "audio", "--transcript-dir", clips / "transcripts", "--speaker-id", 5]
    where = ["--output-dir", out, "--cache-dir", cache, "--threads", 1]
    return finetune(preset, *data, *where, *arguments, code=code)


@pytest.fixture(scope="module")
def trained(clip_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(run, clip_folder, cache, "--max-steps", 2, "--save-every", 1)
    return run


TRAINING = (
    "--model-path --speaker-id --audio-dir --transcript-dir --output-dir --learning-rate --epochs --freeze-backbone "
    "--no-freeze-backbone --freeze-decoder --freeze-embeddings --batch-size --accumulate --seed --max-steps "
    "--semantic-weight --acoustic-weight --decoder-fraction --val-split --save-every --recipe --dry-run --resume "
    "--fresh --base --data-path --strict --device --dtype --threads"
)
RUNS = "--device --dtype --threads"
FLAGS = {
    "csm-finetune voice-adapt": TRAINING,
    "csm-finetune style-tune": TRAINING + " --style-name",
    "csm-finetune domain": TRAINING,
    "csm-finetune conversation": TRAINING,
    "csm-finetune full": "--data-path --output-dir -o --model --pretrained-path --epochs --batch-size --learning-rate --lr "
    "--weight-decay --wd --freeze-backbone --freeze-decoder --max-audio-length-ms --mask-speaker-ids --max-norm "
    "--first-codebook-weight-multiplier --fcw --ckpt-freq --log-freq --gradient-ckpt --optimizer --val-data-path "
    "--gradient-accumulation-steps --val-batch-size --val-freq --val-ckpt --dry-run --base " + RUNS,
    "csm-finetune lora": "--lora-rank --lora-alpha --target-modules --train-embeddings --only-save-adapter --save-all "
    "--max-norm --ckpt-freq --optimizer --pretrained-path " + RUNS,
    "csm generate": "--model-path --base --text --speaker --output --temperature --top-k --seed --max-audio-length-ms "
    "--context --codes " + RUNS,
    "csm evaluate": "--help",
    "csm evaluate run": "--reference --json --markdown " + RUNS,
    "csm voice": "--db list create sample show",
    "csm voice list": "--json",
    "csm voice create": "--gender --age-range --accent --model-path",
    "csm voice sample": "--text --output " + RUNS,
    "csm model": "path info convert merge diff",
    "csm model info": "--json --base",
    "csm model convert": "--to --base",
    "csm model merge": "--adapter --base",
    "csm model diff": "--json --base",
}


@pytest.mark.parametrize("command", FLAGS)
def test_every_documented_flag_is_in_the_help(command: str) -> None:
    program, *words = command.split()
    help_text = (csm if program == "csm" else finetune)(*words, "--help").stdout
    missing = [flag for flag in FLAGS[command].split() if not re.search(rf"(?<![\w-]){flag}(?![\w-])", help_text)]
    assert missing == []


RECIPE_VALUES: dict[str, tuple[list[object], object]] = {
    "learning_rate": (["--learning-rate", "3e-4"], 3e-4),
    "epochs": (["--epochs", 2], 2),
    "max_steps": (["--max-steps", 1], 1),
    "batch_size": (["--batch-size", 3], 3),
    "max_batch_frames": (["--max-batch-frames", 900], 900),
    "accumulate": (["--accumulate", 2], 2),
    "freeze_backbone": (["--no-freeze-backbone"], False),
    "freeze_decoder": (["--freeze-decoder"], True),
    "freeze_embeddings": (["--no-freeze-embeddings"], False),
    "semantic_weight": (["--semantic-weight", 7], 7.0),
    "acoustic_weight": (["--acoustic-weight", 2.5], 2.5),
    "decoder_fraction": (["--decoder-fraction", 0.25], 0.25),
    "context_turns": (["--context-turns", 1], 1),
    "max_audio_length_ms": (["--max-audio-length-ms", 60000], 60000.0),
    "max_seq_len": (["--max-seq-len", 2000], 2000),
    "optimizer": (["--optimizer", "adam"], "adam"),
    "schedule": (["--schedule", "constant"], "constant"),
    "weight_decay": (["--weight-decay", 0.1], 0.1),
    "max_grad_norm": (["--max-grad-norm", 0.5], 0.5),
    "val_split": (["--val-split", 0.3], 0.3),
    "val_every": (["--val-every", 2], 2),
    "val_batch_size": (["--val-batch-size", 2], 2),
    "save_every": (["--save-every", 4], 4),
    "log_every": (["--log-every", 3], 3),
    "seed": (["--seed", 11], 11),
    "style_name": (["--style-name", "excited"], "excited"),
}


def dry(*arguments: object, preset: str = "voice-adapt", model: object = "csm-tiny") -> dict[str, tuple[str, str]]:
    """Value and source of every key that `--dry-run` prints."""
    flags = ["--model-path", model, "--output-dir", "never-made", "--dry-run", "--threads", 1]
    lines = finetune(preset, *flags, *arguments).stdout.splitlines()[1:]
    return {key: (value, source) for key, value, source in (line.split(None, 2) for line in lines)}


def test_the_table_of_recipe_flags_is_whole() -> None:
    assert set(RECIPE_VALUES) == set(RECIPE_FLAGS) <= set(Recipe.keys())


@pytest.mark.parametrize("key", RECIPE_VALUES)
def test_a_recipe_flag_is_shown_with_its_source(key: str) -> None:
    words, value = RECIPE_VALUES[key]
    preset = "style-tune" if key == "style_name" else "voice-adapt"
    thawed = ["--no-freeze-backbone"] if key == "freeze_decoder" else []  # a recipe must leave something to train
    shown = dry(*words, *thawed, preset=preset)
    assert shown[key] == (str(value), "flag")
    others = {source for name, (_, source) in shown.items() if name not in (key, "freeze_backbone")}
    assert others <= {f"preset {preset}", "csm-tiny/recommended.json"}


def test_recipe_flags_reach_the_run(clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    words = [word for key in RECIPE_VALUES for word in RECIPE_VALUES[key][0]]
    train(tmp_path / "run", clip_folder, cache, *words, preset="style-tune")
    kept = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert {key: kept[key] for key in RECIPE_VALUES} == {key: value for key, (_, value) in RECIPE_VALUES.items()}


DOCUMENTED = {
    "voice-adapt": dict(learning_rate=2e-5, epochs=5, semantic_weight=20.0, freeze_backbone=True, decoder_fraction=1.0),
    "style-tune": dict(learning_rate=1e-5, epochs=4, semantic_weight=50.0, freeze_backbone=False, decoder_fraction=1.0),
    "domain": dict(learning_rate=5e-6, epochs=6, semantic_weight=150.0, freeze_decoder=True, decoder_fraction=1 / 16),
    "conversation": dict(learning_rate=2e-5, epochs=3, context_turns=4, freeze_backbone=False, decoder_fraction=1 / 16),
}


@pytest.mark.parametrize("preset", DOCUMENTED)
def test_presets_are_those_of_the_documents(plain: Path, preset: str) -> None:
    shown = dry(*(["--style-name", "x"] if preset == "style-tune" else []), preset=preset, model=plain)
    values = {**DOCUMENTED[preset], "acoustic_weight": 1.0}
    assert {key: shown[key] for key in values} == {k: (str(v), f"preset {preset}") for k, v in values.items()}


RECIPE_FILES = {
    "recipe.yaml": "epochs: 7\nlearning-rate: 3e-4\naccumulate: 2\n",
    "recipe.toml": "epochs = 7\nlearning_rate = 3e-4\naccumulate = 2\n",
}


@pytest.mark.parametrize("name", RECIPE_FILES)
def test_preset_then_recommendation_then_file_then_flag(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(RECIPE_FILES[name])
    recommended = json.loads((ASSETS / "recommended.json").read_text())["presets"]["voice-adapt"]
    assert {"epochs", "learning_rate", "batch_size"} <= recommended.keys()
    assert "weight_decay" not in recommended
    below, with_file, with_flag = dry(), dry("--recipe", file), dry("--recipe", file, "--epochs", 9)
    decay = str(PRESETS["voice-adapt"].weight_decay), "preset voice-adapt"
    assert [shown["weight_decay"] for shown in (below, with_file, with_flag)] == [decay] * 3
    by_model, by_file = "csm-tiny/recommended.json", str(file)
    assert below["epochs"] == (str(recommended["epochs"]), by_model)
    assert with_file["epochs"] == ("7", by_file)
    assert with_flag["epochs"] == ("9", "flag")
    assert with_flag["learning_rate"] == ("0.0003", by_file)
    assert with_flag["batch_size"] == (str(recommended["batch_size"]), by_model)


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("learnign_rate: 1e-4\n")
    done = finetune("domain", "--output-dir", tmp_path / "run", "--recipe", file, "--dry-run", "--threads", 1, code=1)
    assert str(file) in done.stderr
    assert "'learnign_rate'" in done.stderr
    assert "Did you mean 'learning_rate'?" in done.stderr


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_resume_with_fresh_is_a_usage_error(clip_folder: Path, cache: Path, tmp_path: Path, more: list[str]) -> None:
    done = train(tmp_path / "run", clip_folder, cache, "--resume", "--fresh", *more, code=2)
    assert "exclude each other" in done.stderr
    assert listing(tmp_path) == []


def test_a_dry_run_prints_the_recipe_and_writes_nothing(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = train(tmp_path / "run", clip_folder, tmp_path / "cache", "--dry-run")
    shown = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert shown == [key for key in Recipe.keys() if key != "style_name" and not key.startswith("lora_")]  # noqa: SIM118
    assert listing(tmp_path) == []


def test_training_answers_with_the_best_checkpoint_alone(clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    """The two ways of naming the data are one data set, so the second command finds its work done."""
    run = tmp_path / "run"
    first = train(run, clip_folder, cache, "--max-steps", 1)
    best = run / "checkpoints" / (run / "best").read_text().strip()
    assert first.stdout == f"{best}\n"
    assert best.is_dir()
    flags = ["--output-dir", run, "--cache-dir", cache, "--threads", 1, "--max-steps", 1, "--speaker-id", 5]
    again = finetune("voice-adapt", "--data-path", clip_folder, *flags)
    assert again.stdout == first.stdout
    assert "done already: 1 steps" in again.stderr
    fresh = train(run, clip_folder, cache, "--max-steps", 1, "--fresh")
    assert f"moved to {run}.old-1" in fresh.stderr
    assert (tmp_path / "run.old-1" / "best").is_file()
    insisted = train(tmp_path / "none", clip_folder, cache, "--max-steps", 1, "--resume", code=1)
    assert "no run to resume" in insisted.stderr
    assert not (tmp_path / "none").exists()


def test_a_conversation_trains_on_its_turns(clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    turns = [
        {
            "text": (clip_folder / "transcripts" / f"{clip.stem}.txt").read_text(),
            "audio_path": str(clip),
            "speaker": i % 2,
        }
        for i, clip in enumerate(sorted((clip_folder / "audio").iterdir()))
    ]
    data, run = tmp_path / "conv.json", tmp_path / "run"
    data.write_text(json.dumps([turns[:4], turns[4:7], turns[7:]]))
    flags = ["--output-dir", run, "--cache-dir", cache, "--max-steps", 2, "--threads", 1]
    done = finetune("conversation", "--data-path", data, *flags)
    assert "3 conversations, 10 clips" in done.stderr
    lineage = json.loads((run / "lineage.json").read_text())
    assert lineage["data"]["speakers"] == [0, 1]
    assert len(lineage["data"]["training"]) + len(lineage["data"]["validation"]) == 10
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["preset"], recipe["recipe"]["context_turns"]) == ("conversation", 4)


def test_generate_writes_a_wav_and_the_codes_it_came_from(tmp_path: Path) -> None:
    out, codes = tmp_path / "deep" / "out.wav", tmp_path / "other" / "codes.npy"
    words = ["--text", "good morning.", "--output", out, "--codes", codes, "--threads", 1]
    done = csm("generate", "--model-path", "csm-tiny", "--speaker", 5, *words)
    assert done.stdout == f"{out}\n"
    found, sound = np.load(codes, allow_pickle=False), soundfile.info(out)
    assert found.ndim == 2
    assert np.issubdtype(found.dtype, np.integer)
    assert len(found) == json.loads((ASSETS / "config.json").read_text())["num_codebooks"]
    assert (sound.samplerate, sound.channels, sound.frames) == (24_000, 1, found.shape[1] * SAMPLES_A_FRAME)
    assert listing(tmp_path) == ["deep", "deep/out.wav", "other", "other/codes.npy"]


def test_a_seed_repeats_the_sound_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(tmp_path / f"{name}.wav", "--seed", seed, "--temperature", 0.9)
    one, same, other = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert one == same
    assert one != other


def test_greedy_ignores_the_seed_and_is_the_choice_of_one(tmp_path: Path) -> None:
    greedy = generate(tmp_path / "a.wav", "--temperature", 0, "--seed", 0)
    np.testing.assert_array_equal(greedy, generate(tmp_path / "b.wav", "--temperature", 0, "--seed", 1))
    np.testing.assert_array_equal(greedy, generate(tmp_path / "c.wav", "--temperature", 0.9, "--top-k", 1, "--seed", 2))


def test_sampling_defaults_are_the_folders_else_the_documented(plain: Path, tmp_path: Path) -> None:
    """The seed tells: what is drawn with it under one temperature is not what another draws."""
    long_text = "please leave a message after the tone."
    recommended = json.loads((ASSETS / "recommended.json").read_text())["sampling"]
    own = ["--temperature", recommended["temperature"], "--top-k", recommended["top_k"]]
    documented = ["--temperature", 0.9, "--top-k", 50]
    said = {
        name: generate(tmp_path / f"{name}.wav", *words, text=long_text).tolist()
        for name, words in {
            "default": [], "own": own, "plain": ["--model-path", plain], "documented": ["--model-path", plain, *documented],
        }.items()
    }  # fmt: skip
    assert said["default"] == said["own"] != said["plain"] == said["documented"]


def test_speaker_and_context_are_heard(clip_folder: Path, tmp_path: Path) -> None:
    turn = {"text": "the quick brown.", "audio_path": str(clip_folder / "audio" / "000.wav"), "speaker": 5}
    for name, document in {"nested": [[turn]], "flat": [turn], "two": [[turn], [turn]]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    greedy = ["--temperature", 0]
    alone = generate(tmp_path / "a.wav", *greedy).tolist()
    assert generate(tmp_path / "b.wav", *greedy, "--speaker", 3).tolist() != alone
    after = generate(tmp_path / "c.wav", *greedy, "--context", tmp_path / "nested.json").tolist()
    assert after != alone
    assert generate(tmp_path / "d.wav", *greedy, "--context", tmp_path / "flat.json").tolist() == after
    words = ["--text", "hello.", "--output", tmp_path / "e.wav", "--context", tmp_path / "two.json", "--threads", 1]
    assert "a context is one" in csm("generate", *words, code=1).stderr


def test_the_length_budget_cuts_and_says_so(tmp_path: Path) -> None:
    words = ["--text", "good morning.", "--output", tmp_path / "o.wav", "--threads", 1, "--max-audio-length-ms", 400]
    done = csm("generate", *words)
    assert soundfile.info(tmp_path / "o.wav").frames == 5 * SAMPLES_A_FRAME
    assert "warning: " in done.stderr
    assert "length" in done.stderr


def test_model_path_and_info(trained: Path, tmp_path: Path) -> None:
    assert csm("model", "path", "csm-tiny").stdout == f"{ASSETS.resolve()}\n"
    best = trained / "checkpoints" / (trained / "best").read_text().strip()
    assert csm("model", "path", trained).stdout == f"{best}\n"
    info = json.loads(csm("model", "info", "csm-tiny", "--json").stdout)
    assert (info["codebooks"], info["audio_vocabulary"]) == (8, 1024)
    assert info["recommended"]["sampling"]["temperature"] == 0.3
    assert info["megabytes"] < 40
    shown = csm("model", "info", "csm-tiny").stdout
    assert all(key.replace("_", " ") in shown for key in info)
    tuned = json.loads(csm("model", "info", trained, "--json").stdout)
    assert tuned["parameters"] == info["parameters"]
    assert tuned["hash"] != info["hash"]


def test_a_run_speaks_with_its_best_checkpoint(trained: Path, tmp_path: Path) -> None:
    best = csm("model", "path", trained).stdout.strip()
    np.testing.assert_array_equal(
        generate(tmp_path / "a.wav", "--model-path", trained), generate(tmp_path / "b.wav", "--model-path", best)
    )


def recordings(folder: Path, names: list[str]) -> Path:
    for name in names:
        for kind, suffix in (("audio", ".flac"), ("transcripts", ".txt")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(VOICE / kind / f"{name}{suffix}", folder / kind / f"{name}{suffix}")
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings(tmp_path_factory.mktemp("reference"), ["001", "002", "003"])


def test_evaluate_a_folder_into_files_and_stdout(reference: Path, tmp_path: Path) -> None:
    folder = recordings(tmp_path / "clips", ["004", "005"])
    json_file, markdown_file = tmp_path / "out" / "scores.json", tmp_path / "out" / "report.md"
    told = csm("evaluate", folder, "--reference", reference, "--json", json_file, "--markdown", markdown_file)
    assert "similarity" in told.stdout
    document = json.loads(json_file.read_text())
    assert document["schema_version"] == 1
    assert [row["name"] for row in document["systems"][0]["samples"]] == ["audio/004.flac", "audio/005.flac"]
    summary = document["systems"][0]["summary"]
    assert 0.6 < summary["speaker_similarity"] < 1, "other clips of the same voice"
    assert markdown_file.read_text().startswith("# Scores against ")
    assert json.loads(csm("evaluate", folder, "--reference", reference, "--json", "-").stdout) == document
    written = csm("evaluate", "run", folder, "--reference", reference, "--markdown", "-").stdout
    assert written.startswith("# Scores against ")
    assert f"{summary['speaker_similarity']:.3f}" in written


def test_a_folder_that_looks_like_a_command(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recordings(tmp_path / "run", ["004"])
    document = json.loads(csm("evaluate", "./run", "--reference", reference, "--json", "-").stdout)
    assert [system["name"] for system in document["systems"]] == ["run"]
    assert "TARGET" in csm("evaluate", "run", "--reference", reference, code=2).stderr


def test_evaluate_a_run(trained: Path, reference: Path, tmp_path: Path) -> None:
    """Base and every checkpoint speak the same texts and seeds; a second evaluation reuses what was spoken."""
    texts = tmp_path / "texts.txt"
    texts.write_text("good morning.\n\nsee you later.\n")
    words = ["--reference", reference, "--texts", texts, "--samples-per-text", 2, "--seed", 3, "--threads", 1]
    document = json.loads(csm("evaluate", trained, *words, "--json", "-").stdout)
    systems = {system["name"]: system for system in document["systems"]}
    assert list(systems) == ["base", "step-000001", "step-000002", "codec"]
    del systems["codec"]
    spoken = [[(row["text"], row["seed"]) for row in system["samples"]] for system in systems.values()]
    assert spoken == [[(t, s) for t in ("good morning.", "see you later.") for s in (3, 4)]] * 3
    assert {comparison["system"] for comparison in document["comparisons"]} == {"step-000001", "step-000002"}
    waves = {path: path.stat().st_mtime_ns for path in (trained / "samples").glob("[bs]*/*.wav")}
    assert len(waves) == 12
    assert json.loads(csm("evaluate", trained, *words, "--json", "-").stdout) == document
    assert {path: path.stat().st_mtime_ns for path in (trained / "samples").glob("[bs]*/*.wav")} == waves


def test_set_best_lets_the_scores_decide(trained: Path, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    texts = tmp_path / "texts.txt"
    texts.write_text("good morning.\n")
    words = ["--reference", reference, "--texts", texts, "--samples-per-text", 1, "--threads", 1, "--json", "-"]
    document = json.loads(csm("evaluate", run, *words, "--set-best").stdout)
    assert (run / "best").read_text() == f"{document['best']}\n"
    means = {s["name"]: s["summary"]["speaker_similarity"] for s in document["systems"] if s["kind"] == "checkpoint"}
    assert means[document["best"]] == max(means.values())
    assert "no run" in csm("evaluate", reference, "--reference", reference, "--set-best", code=1).stderr


@pytest.mark.parametrize("program", [csm, finetune])
def test_version(program: Command) -> None:
    assert re.search(r"\d+\.\d+", program("--version").stdout)
