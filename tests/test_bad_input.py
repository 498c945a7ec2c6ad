"""Bad input at the command line: one sentence on stderr, the right exit code, and nothing half-written left behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result
from conftest import ASSETS, spoken, write_clips
from safetensors.numpy import load_file, save_file

from csm.cli.finetune import main as finetune_main
from csm.cli.main import main as csm_main
from csm.data.shards import ENTRY

ROOT = Path(__file__).parents[1]
VOICE = ROOT / "examples" / "voice"
Spoil = Callable[[Path], Any]


def run(*words: object) -> Result:
    """`csm ...` or `csm-finetune ...`; commands that run a model get one thread."""
    program, *arguments = map(str, words)
    runs = program == "csm-finetune" or arguments[0] == "generate" or "sample" in arguments
    runs = runs or (arguments[0] == "evaluate" and (Path(arguments[1]) / "recipe.json").exists())
    threads = ["--threads", "1"] if runs and "--threads" not in arguments else []
    return CliRunner().invoke(finetune_main if program == "csm-finetune" else csm_main, [*arguments, *threads])


def refused(done: Result, *says: str, code: int = 1) -> None:
    """One sentence that begins `error: ` and holds `says`; nothing on stdout; no stack."""
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    if code == 1:
        (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(sentence) > len("error: x.")
    assert "Traceback" not in done.stderr
    assert [word for word in says if word not in done.stderr] == [], done.stderr


def works(done: Result) -> Result:
    assert done.exception is None, repr(done.exception)
    assert done.exit_code == 0, done.stderr
    return done


def state(folder: Path) -> dict[str, int | None]:
    """Every path below a folder but the cache's, with a file's time."""
    paths = (path for path in folder.rglob("*") if "cache" not in path.relative_to(folder).parts)
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns if p.is_file() else None for p in paths}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own, where relative names are its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codes")


@pytest.fixture
def train(cache: Path) -> Callable[..., Result]:
    """`csm-finetune voice-adapt` for one step, into `run`, unless the words say otherwise."""

    def call(*words: object, data: Path | None = Path("data"), out: str = "run", speaker: int | None = 5) -> Result:
        given = ["--data-path", data] if data else []
        who = ["--speaker-id", speaker] if speaker is not None else []
        steps = ["--max-steps", 1] if "--max-steps" not in words else []
        where = ["--output-dir", out, *(["--cache-dir", cache] if "--cache-dir" not in words else [])]
        return run("csm-finetune", "voice-adapt", *given, *who, *where, *steps, *words)

    return call


@pytest.fixture
def data(here: Path) -> Path:
    """Four good clips in `data`."""
    write_clips(here / "data", 4)
    return here / "data"


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of the example voice."""
    folder = tmp_path_factory.mktemp("voices")
    for name in ("001", "002"):
        shutil.copyfile(VOICE / "audio" / f"{name}.flac", folder / f"{name}.flac")
    return folder


@pytest.fixture
def speak() -> Callable[..., Result]:
    """`csm generate` into `out.wav`, unless the words say otherwise."""

    def call(*words: object, text: str = "hello.", output: object = "out.wav", model: object = "csm-tiny") -> Result:
        return run("csm", "generate", "--model-path", model, "--text", text, "--output", output, *words)

    return call


# folders


def test_folders_that_are_not_there_or_hold_nothing(data: Path, train: Any, here: Path) -> None:
    (here / "empty").mkdir()
    before = state(here)
    pair = ("--audio-dir", "data/audio", "--transcript-dir", "data/transcripts")
    refused(train("--audio-dir", "lost/audio", *pair[2:], data=None), "lost/audio is not there")
    refused(train(*pair[:2], "--transcript-dir", "lost", data=None), "lost is not there")
    refused(train(*pair[:2], "--transcript-dir", "empty", data=None), "empty holds no transcripts")
    refused(train("--audio-dir", "empty", *pair[2:], data=None), "empty holds no sound files")
    refused(train(data=Path("lost")), "lost is not there")
    refused(train(*pair[:2], data=None), "--transcript-dir")
    refused(train(*pair), "Both --data-path and --audio-dir")
    refused(train(data=None), "No data is named")
    refused(train(speaker=None), "--speaker-id")
    assert state(here) == before


def test_flags_that_would_do_nothing_are_refused(voices: Path) -> None:
    """Nothing is spoken when a folder of sounds is scored."""
    idle = ("--texts texts.txt", "--samples-per-text 3", "--seed 0", "--speaker 4", "--set-best", "--device cpu",
            "--dtype auto", "--threads 1", "--seed 0 --threads 1")  # fmt: skip
    for words in idle:
        flags = [word for word in words.split() if word.startswith("--")]
        refused(run("csm", "evaluate", voices, "--reference", voices, *words.split()), "is no run", *flags)


def test_evaluation_of_what_is_not_there(voices: Path, here: Path) -> None:
    (here / "empty").mkdir()
    (here / "texts").mkdir()
    (here / "texts" / "a.wav").write_text("hello")
    refused(run("csm", "evaluate", "lost", "--reference", voices), "lost")
    refused(run("csm", "evaluate", voices, "--reference", "lost"), "lost")
    refused(run("csm", "evaluate", voices, "--reference", "empty"), "empty holds no sound file")
    refused(run("csm", "evaluate", voices, "--reference", "texts"), "a.wav")
    refused(run("csm", "evaluate", voices), "--reference", code=2)
    assert sorted(state(here)) == ["empty", "texts", "texts/a.wav"]


# sound


def need_ffmpeg() -> None:
    if shutil.which("ffmpeg"):
        return
    if os.environ.get("CI") == "true":
        pytest.fail("ffmpeg is not installed, and CI must have it")
    pytest.skip("ffmpeg is not installed")


def as_cut_mp3(path: Path) -> None:
    need_ffmpeg()
    mp3 = path.with_suffix(".mp3")
    subprocess.run(["ffmpeg", "-loglevel", "error", "-i", path, "-b:a", "64k", mp3], check=True)
    path.unlink()
    mp3.write_bytes(mp3.read_bytes()[: mp3.stat().st_size // 2])


SPOILED: dict[str, tuple[Spoil, str]] = {
    "text named wav": (lambda path: path.write_text("good morning"), "cannot be read as sound"),
    "empty file": (lambda path: path.write_bytes(b""), "is an empty file"),
    "header alone": (lambda path: soundfile.write(path, np.zeros(0), 24_000), "holds no samples"),
    "cut wav": (lambda path: path.write_bytes(path.read_bytes()[:5_000]), "is truncated"),
    "cut mp3": (as_cut_mp3, "is truncated"),
    "silence": (lambda path: soundfile.write(path, np.zeros(24_000), 24_000), "is silent"),
    "not a number": (
        lambda path: soundfile.write(path, np.full(24_000, np.nan), 24_000, subtype="FLOAT"), "not numbers",
    ),
    "link to nowhere": (lambda path: (path.unlink(), path.symlink_to("/nowhere")), "is not there"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_bad_clip_is_named_and_skipped_or_with_strict_refused(data: Path, train: Any, here: Path, name: str) -> None:
    spoil, says = SPOILED[name]
    spoil(data / "audio" / "002.wav")
    refused(train("--strict"), "1 fault", "002.", says)
    assert not (here / "run").exists()
    done = works(train())
    assert "warning: skipped:" in done.stderr
    assert says in done.stderr
    assert "3 clips" in done.stderr
    assert json.loads(Path("run/lineage.json").read_text())["data"]["clips"] == 3


def test_8_khz_stereo_works(data: Path, train: Any) -> None:
    wave = np.stack([spoken(1.5, 1, 8_000), 0.5 * spoken(1.5, 1, 8_000)], axis=1)
    soundfile.write(data / "audio" / "000.wav", wave, 8_000)
    done = works(train("--strict"))
    assert "4 clips" in done.stderr
    assert "skipped:" not in done.stderr


def test_all_clips_bad(data: Path, train: Any, here: Path) -> None:
    for clip in (data / "audio").iterdir():
        clip.write_text("no sound")
    before = state(here)
    refused(train(), "Nothing in the data can be used", "000.wav", "003.wav")
    assert state(here) == before


def test_one_clip_cannot_be_split(here: Path, train: Any) -> None:
    write_clips(here / "data", 1)
    before = state(here)
    refused(train("--val-split", "0.2"), "--val-split 0")
    assert state(here) == before
    works(train("--val-split", "0"))


def test_a_bad_sound_as_context_or_reference(data: Path, speak: Any, here: Path) -> None:
    (data / "audio" / "000.wav").write_text("no sound")
    turn = {"text": "hello.", "audio_path": "data/audio/000.wav", "speaker": 1}
    (here / "context.json").write_text(json.dumps([turn]))
    refused(speak("--context", "context.json"), "000.wav")
    assert not Path("out.wav").exists()
    done = works(run("csm", "evaluate", data / "audio", "--reference", data / "audio"))
    assert "000.wav was skipped" in done.stderr


CONTEXTS = {
    '[[{"text": "hello"': "line 1",
    "{}": "not a list",
    "[]": "no conversations",
    "[[]]": "no turns",
    '[[{"text": "hello.", "audio_path": "lost.wav", "speaker": 1}]]': "lost.wav",
    '[[{"text": "hello.", "speaker": 1}]]': "no audio_path",
    '[[{"text": "hello.", "audio_path": "a.wav"}]]': "no speaker",
}


@pytest.mark.parametrize("content", CONTEXTS)
def test_a_bad_context(speak: Any, here: Path, content: str) -> None:
    (here / "context.json").write_text(content)
    refused(speak("--context", "context.json"), "context.json", CONTEXTS[content])
    refused(speak("--context", "lost.json"), "lost.json is not there")
    assert list(state(here)) == ["context.json"]


# models


@pytest.fixture
def model(here: Path) -> Path:
    """csm-tiny as a folder `model` of links; a file is replaced by `put`."""
    (here / "model").mkdir()
    for file in ASSETS.iterdir():
        (here / "model" / file.name).symlink_to(file)
    return here / "model"


def put(folder: Path, name: str, content: bytes | str | dict[str, Any]) -> None:
    text = json.dumps(content) if isinstance(content, dict) else content
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def with_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def config(**changes: Any) -> dict[str, Any]:
    return {**json.loads((ASSETS / "config.json").read_text()), **changes}


def test_tensors_at_fault_are_all_named(model: Path, speak: Any, train: Any, data: Path, here: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        del tensors["backbone_model.norm.weight"], tensors["depth_decoder.model.layers.1.mlp.up_proj.weight"]
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:7]
        tensors["lm_tail.weight"] = tensors["lm_head.weight"]

    with_tensors(model, change)
    before, names = state(here), ["backbone_model.norm", "layers.1.mlp.up_proj", "[7, 256]", "lm_tail", "4 tensors"]
    refused(speak(model=model), *names)
    refused(train("--model-path", model), *names)
    refused(run("csm", "model", "info", model), *names)
    assert state(here) == before


def test_a_missing_tensor_of_the_codec(model: Path, speak: Any, here: Path) -> None:
    with_tensors(model, lambda tensors: tensors.pop("codec_model.basis"))
    refused(speak(model=model), "basis")
    assert not Path("out.wav").exists()


WEIGHTS = {"cut": slice(0, 1_000_000), "empty": slice(0, 0), "header cut": slice(0, 100)}


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(model: Path, speak: Any, name: str) -> None:
    put(model, "model.safetensors", (ASSETS / "model.safetensors").read_bytes()[WEIGHTS[name]])
    refused(speak(model=model), "model/model.safetensors", "damaged")


CONFIGS: dict[str, tuple[bytes | str | dict[str, Any], str]] = {
    "cut": ('{"model_type": "csm", "num_code', "line 1"),
    "empty": ("", "line 1"),
    "no object": ("[]", "no JSON object"),
    "not text": (b"\xff\xfe\x00", "not text"),
    "another model": ({"model_type": "llama"}, "'llama'"),
    "nothing else": ({"model_type": "csm"}, "is missing"),
    "text for a number": (config(num_codebooks="8"), "num_codebooks"),
    "zero": (config(hidden_size=0), "hidden_size"),
    "two numbers of codebooks": (config(num_codebooks=9), "num_codebooks"),
    "other heads": (config(num_attention_heads=7), "q_proj"),
    "other rope": (config(rope_parameters={"rope_type": "yarn"}), "yarn"),
    "no codec": (config(codec_config={}), "codec"),
    "another codec": (config(codec_config={"model_type": "dac"}), "'dac'"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_broken_config(model: Path, speak: Any, here: Path, name: str) -> None:
    content, says = CONFIGS[name]
    put(model, "config.json", content)
    before = state(here)
    refused(speak(model=model), says)
    assert state(here) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", "x"),
        ("max_position_embeddings", "x"),
        ("max_position_embeddings", -1),
        ("rope_parameters", "x"),
    ],
)
def test_an_odd_value_in_a_config(model: Path, speak: Any, key: str, value: object) -> None:
    put(model, "config.json", config(**{key: value}))
    refused(speak(model=model), key)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", None, "tokenizer.json is not there"),
        ("tokenizer.json", "{", "tokenizer.json"),
        ("recommended.json", "{", "recommended.json"),
        ("recommended.json", {"schema_version": 2}, "schema_version 2"),
        pytest.param("recommended.json", {"schema_version": 1, "sampling": {"temperature": "hot"}}, "hot"),
        pytest.param("recommended.json", {"schema_version": 1, "sampling": []}, "sampling"),
    ],
)  # fmt: skip
def test_a_broken_file_beside_the_weights(model: Path, speak: Any, name: str, content: Any, says: str) -> None:
    if content is None:
        (model / name).unlink()
    else:
        put(model, name, content)
    refused(speak(model=model), says)
    assert not Path("out.wav").exists()


def test_recommended_keys_are_a_recipes(model: Path, train: Any) -> None:
    put(model, "recommended.json", {"schema_version": 1, "presets": {"voice-adapt": {"epoch": 3}}})
    refused(train("--model-path", model), "recommended.json", "'epochs'")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lost", "'lost'"),
        ("file", "nor a weights file"),
        ("folder", "no model.safetensors"),
        ("lost/model", "lost/model"),
    ],
)
def test_a_model_that_is_none(speak: Any, here: Path, name: str, says: str) -> None:
    (here / "file").write_text("x")
    (here / "folder").mkdir()
    before = state(here)
    refused(speak(model=name), says)
    refused(run("csm", "model", "info", name), says)
    assert state(here) == before


# pickles


class _Bomb:
    """Unpickled, it makes a file `pwned`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def bomb(here: Path) -> bytes:
    data = pickle.dumps(_Bomb(here / "pwned"))
    pickle.loads(data)
    assert (here / "pwned").exists(), "the bomb works"
    (here / "pwned").unlink()
    return data


def test_pickles_never_run(bomb: bytes, model: Path, data: Path, speak: Any, train: Any, here: Path) -> None:
    for name in ("bomb.pkl", "bomb.pt", "bomb.json", "bomb.yaml", "bomb.wav"):
        (here / name).write_bytes(bomb)
    torch.save(_Bomb(here / "pwned"), here / "torch.pt")
    refused(speak(model="bomb.pt"), "pickle")
    refused(speak(model="torch.pt"), "pickle")
    refused(train(data=Path("bomb.pkl")), "pickle")
    refused(train(data=Path("bomb.json")), "bomb.json")
    refused(speak("--context", "bomb.json"), "bomb.json")
    refused(run("csm", "voice", "--db", "bomb.json", "list"), "bomb.json")
    shutil.copyfile("bomb.wav", data / "audio" / "000.wav")
    refused(train("--strict"), "000.wav")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        kept = (model / name).readlink()
        put(model, name, bomb)
        refused(speak(model=model), name)
        (model / name).unlink()
        (model / name).symlink_to(kept)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    put(model, "pytorch_model.bin", bomb)
    refused(speak(model=model), "pickle")
    assert not (here / "pwned").exists()


def test_a_pickle_in_the_cache_is_an_absent_entry(data: Path, train: Any, here: Path) -> None:
    """With right checksums, too: the codes are made again."""
    works(train("--cache-dir", "cache"))
    (codes,) = (here / "cache").glob("*.codes")
    (index,) = (here / "cache").glob("*.entries")
    body = io.BytesIO()
    np.save(body, np.array([_Bomb(here / "pwned")], dtype=object), allow_pickle=True)
    entries = np.fromfile(index, ENTRY)
    assert len(entries) == 4
    codes.write_bytes(body.getvalue().ljust(codes.stat().st_size, b"\0"))
    for entry in entries:
        size = entry["frames"].item() * entry["codebooks"].item() * 2
        entry["kind"], entry["check"] = 9, zlib.crc32(codes.read_bytes()[entry["at"] : entry["at"] + size])
        entry["entry_check"] = zlib.crc32(entry.tobytes()[:-4])
    index.write_bytes(entries.tobytes())
    works(train("--cache-dir", "cache", out="again"))
    assert not (here / "pwned").exists()
    assert Path("again/recipe.json").read_bytes() == Path("run/recipe.json").read_bytes()


# recipes

RECIPES: dict[str, tuple[bytes | str, str]] = {
    "a list": ("- epochs\n- 3\n", "holds no keys"),
    "empty": ("", "holds no keys"),
    "a word": ("hello", "holds no keys"),
    "broken": ("epochs: [1", "line 1"),
    "an unknown key": ("epoch: 1\n", "'epochs'"),
    "a word for a number": ("epochs: many\n", "'many'"),
    "half an epoch": ("epochs: 3.5\n", "3.5"),
    "out of range": ("val_split: 2\n", "val_split"),
    "no number": ("learning_rate: .nan\n", "learning_rate"),
    "code": ("!!python/object/apply:os.system ['touch pwned']\n", "cannot be read"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe(data: Path, train: Any, here: Path, name: str) -> None:
    content, says = RECIPES[name]
    put(here, "recipe.yaml", content)
    before = state(here)
    refused(train("--recipe", "recipe.yaml"), "recipe.yaml", says)
    refused(train("--recipe", "lost.yaml"), "lost.yaml is not there")
    assert state(here) == before


@pytest.mark.parametrize("content", [b"style_name: caf\xe9\n", b"learning_rate: 1" + b"0" * 400])
def test_an_odd_recipe(train: Any, here: Path, content: bytes) -> None:
    put(here, "recipe.yaml", content)
    refused(train("--recipe", "recipe.yaml"), "recipe.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ("--learning-rate", "0"), ("--learning-rate", "nan"), ("--epochs", "0"), ("--batch-size", "0"),
        ("--accumulate", "0"), ("--max-steps", "-1"), ("--val-split", "1"), ("--decoder-fraction", "0"),
        ("--seed", "-1"), ("--semantic-weight", "-1"), ("--weight-decay", "inf"), ("--context-turns", "-1"),
    ],
)  # fmt: skip
def test_a_flag_out_of_range_is_named(data: Path, train: Any, here: Path, words: tuple[str, str]) -> None:
    before = state(here)
    refused(train(*words), words[0].removeprefix("--").replace("-", "_"), "flag")
    assert state(here) == before


def test_a_recipe_that_trains_nothing(data: Path, train: Any) -> None:
    refused(train("--freeze-backbone", "--freeze-decoder", "--freeze-embeddings"), "frozen")


def test_a_recipe_without_a_loss(data: Path, train: Any) -> None:
    refused(train("--semantic-weight", "0", "--acoustic-weight", "0"), "weight")


# what is asked of a device and of a model


@pytest.mark.parametrize(
    "device",
    [
        "gpu", "", "cuda:x", "meta", "xpu",
        pytest.param("cuda:0", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a GPU")),
        pytest.param("cuda:" + "9" * 20),
    ],
)  # fmt: skip
def test_an_unknown_device(data: Path, speak: Any, train: Any, here: Path, device: str) -> None:
    before = state(here)
    refused(speak("--device", device), "device")
    refused(train("--device", device), "device")
    assert state(here) == before


def test_dtypes(data: Path, speak: Any, train: Any, here: Path) -> None:
    before = state(here)
    refused(speak("--dtype", "int8"), "'int8'")
    refused(train("--dtype", "float16"), "float16")
    assert state(here) == before


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_an_empty_text(speak: Any, here: Path, text: str) -> None:
    refused(speak(text=text), "the text is empty")
    assert state(here) == {}


def test_characters_that_the_model_cannot_read_are_named(speak: Any) -> None:
    done = works(speak(text="call 7 now."))
    assert "warning: " in done.stderr
    assert "'7'" in done.stderr
    assert soundfile.info("out.wav").frames > 0


def test_characters_that_the_tokenizer_drops_are_named(speak: Any) -> None:
    assert "\u2603" in works(speak(text="good \u2603 morning.")).stderr


def test_characters_in_transcripts_are_named(data: Path, train: Any) -> None:
    (data / "transcripts" / "000.txt").write_text("call 7 now.")
    assert "'7'" in works(train()).stderr


def test_a_text_that_is_no_text(speak: Any) -> None:
    refused(speak(text="good \udcff morning"))


@pytest.mark.parametrize("length", ["100000", "90001", "1", "79", "0", "-5"])
def test_a_length_that_cannot_be(speak: Any, here: Path, length: str) -> None:
    refused(speak("--max-audio-length-ms", length), "90000", "80")
    assert state(here) == {}


@pytest.mark.parametrize("length", ["nan", "inf"])
def test_a_length_that_is_no_number(speak: Any, length: str) -> None:
    refused(speak("--max-audio-length-ms", length), "90000")


def test_a_text_that_leaves_no_room(speak: Any, here: Path) -> None:
    refused(speak(text="hello there " * 300), "leaves no room")
    assert state(here) == {}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--temperature", "-1"), 1), (("--temperature", "nan"), 1), (("--speaker", "99"), 1), (("--top-k", "-1"), 2),
        (("--speaker", "-1"), 2), (("--seed", "-1"), 2), (("--seed", str(2**63)), 2), (("--threads", "0"), 2),
        (("--threads", str(2**40)), 2), (("--temperature", "warm"), 2), (("--loud",), 2),
    ],
)  # fmt: skip
def test_flags_that_cannot_be(speak: Any, here: Path, words: tuple[str, ...], code: int) -> None:
    refused(speak(*words), code=code)
    assert state(here) == {}


def test_any_top_k_above_the_codes_means_all(speak: Any) -> None:
    works(speak("--top-k", str(10**30)))


def test_a_speaker_that_training_cannot_write(data: Path, train: Any, here: Path) -> None:
    before = state(here)
    refused(train(speaker=99), "speaker 99")
    assert state(here) == before


# where the output goes


@pytest.mark.parametrize("words", [(), ("--codes", "codes.npy")])
def test_an_output_that_cannot_be_written(speak: Any, here: Path, words: tuple[str, ...]) -> None:
    (here / "file").write_text("mine")
    (here / "folder.wav").mkdir()
    before = state(here)
    refused(speak(*words, output="out.mp3"), "out.mp3", "suffix")
    refused(speak(*words, output="folder.wav"), "folder.wav is a folder")
    assert state(here) == before
    refused(speak(output="file/out.wav"), "file")
    refused(speak("--codes", "file/codes.npy"), "file")
    assert state(here) == before


def test_scores_that_cannot_be_written(data: Path, here: Path) -> None:
    (here / "folder").mkdir()
    before = state(here)
    for place in ("folder", "data/audio/000.wav/scores.json"):
        for flag in ("--json", "--markdown"):
            refused(run("csm", "evaluate", data / "audio", "--reference", data / "audio", flag, place), place[:6])
    assert state(here) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(data: Path, speak: Any, train: Any, here: Path) -> None:
    (here / "locked").mkdir(mode=0o500)
    before = state(here)
    refused(speak(output="locked/out.wav"), "locked")
    refused(train(out="locked/run"), "locked")
    assert state(here) == before


def test_the_folder_of_another_run_or_of_something_else(data: Path, train: Any, here: Path) -> None:
    works(train())
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter.txt").write_text("precious")
    (here / "file").write_text("precious")
    before = state(here)
    refused(train("--learning-rate", "1e-3"), "run holds another run", "learning_rate was 0.0005, now 0.001", "--fresh")
    refused(train("--max-steps", 2), "max_steps was 1, now 2")
    refused(train(speaker=4), "the data differ")
    refused(train(out="thesis"), "thesis is there already and is no run")
    refused(train(out="file"), "file is there already and is no run")
    refused(train(out="file/run"), "file")
    assert state(here) == before


# a run that was damaged


@pytest.fixture
def stopped(data: Path, train: Any) -> Path:
    """The trainer's folder of a run of two steps that has done one: its first was its last words."""
    works(train("--max-steps", 1))
    kept = json.loads(Path("run/recipe.json").read_text())
    kept["recipe"]["max_steps"] = 2
    Path("run/recipe.json").write_text(json.dumps(kept))
    return Path("run/checkpoints/step-000001/trainer")


@pytest.mark.parametrize("content", [b"", b"x" * 100, None, slice(0, 5_000)])
def test_a_damaged_optimizer_is_named_and_the_run_stays(
    stopped: Path, train: Any, here: Path, content: bytes | slice | None
) -> None:
    file = stopped / "optimizer.safetensors"
    whole = file.read_bytes()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(whole[content] if isinstance(content, slice) else content)
    before = state(here)
    refused(train("--max-steps", 2), "optimizer.safetensors")
    assert state(here) == {**before, "run/metrics.jsonl": state(here)["run/metrics.jsonl"]}
    file.write_bytes(whole)
    works(train("--max-steps", 2))
    assert Path("run/last").read_text() == "step-000002\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("backend.json", '{"back'),
        ("backend.json", "{}"),
        ("position.json", '{"stepp": 1}'),
        ("position.json", '{"step": "1"}'),
    ],
)
def test_a_damaged_state_is_named(stopped: Path, train: Any, name: str, content: str) -> None:
    (stopped / name).write_text(content)
    refused(train("--max-steps", 2), name)


def test_resume_insists_on_a_state(stopped: Path, train: Any) -> None:
    (stopped / "position.json").unlink()
    refused(train("--max-steps", 2, "--resume"), "run")


@pytest.mark.parametrize("name", ["recipe.json", "lineage.json"])
def test_a_run_whose_record_is_damaged(stopped: Path, train: Any, voices: Path, here: Path, name: str) -> None:
    file = here / "run" / name
    file.write_bytes(file.read_bytes()[:20])
    words = ["csm", "evaluate", "./run", "--reference", voices]
    refused(train("--max-steps", 2) if name == "recipe.json" else run(*words), f"run/{name}")


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        ("metrics.jsonl", b"\xff\n", "train"),
        ("metrics.jsonl", b"[1]\n", "train"),
        ("best", b"\xff", "generate"),
        ("best", b"step-000099\n", "generate"),
        ("lineage.json", b"{}", "evaluate"),
        ("checkpoints/step-000001/model.safetensors.index.json", b'{"weight_map": []}', "generate"),
    ],
)
def test_a_damaged_record_is_named(
    stopped: Path, train: Any, speak: Any, voices: Path, here: Path, name: str, content: bytes, command: str
) -> None:
    (here / "run" / name).write_bytes(content)
    if command == "train":
        refused(train("--max-steps", 2), name)
    elif command == "generate":
        refused(speak(model="run"), name)
    else:
        refused(run("csm", "evaluate", "./run", "--reference", voices), name)


def test_a_run_without_a_checkpoint(stopped: Path, speak: Any, voices: Path, here: Path) -> None:
    shutil.rmtree(here / "run" / "checkpoints")
    refused(speak(model="run"), "no checkpoint yet")
    refused(run("csm", "evaluate", "./run", "--reference", voices), "no checkpoint yet")
    assert not Path("out.wav").exists()


@pytest.fixture
def evaluation(stopped: Path, voices: Path, here: Path) -> list[object]:
    """The words of an evaluation of the run with one text, against two recordings."""
    (here / "texts.txt").write_text("hello.\n")
    words = ["csm", "evaluate", "./run", "--reference", voices, "--texts", "texts.txt", "--samples-per-text", 1]
    return [*words, "--json", "scores.json"]


def test_texts_that_are_none(evaluation: list[object], here: Path) -> None:
    for content, says in ((b"caf\xe9\n", "UTF-8"), (b" \n\n", "holds no text")):
        (here / "texts.txt").write_bytes(content)
        refused(run(*evaluation), "texts.txt", says)
    (here / "texts.txt").unlink()
    refused(run(*evaluation), "texts.txt is not there")
    assert not Path("scores.json").exists()


def test_a_speaker_that_the_evaluation_cannot_write(evaluation: list[object]) -> None:
    refused(run(*evaluation, "--speaker", 99), "speaker 99")


def test_an_evaluation_from_another_folder(
    model: Path, data: Path, train: Any, voices: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works(train("--model-path", "model"))
    (here / "texts.txt").write_text("hello.\n")
    monkeypatch.chdir(here / "data")
    words = ["--reference", voices, "--texts", here / "texts.txt", "--samples-per-text", 1]
    works(run("csm", "evaluate", here / "run", *words))


@pytest.mark.parametrize("damage", ["no sound", "cut note"])
def test_a_damaged_sample_is_made_again(evaluation: list[object], here: Path, damage: str) -> None:
    works(run(*evaluation))
    whole = Path("scores.json").read_bytes()
    wave = next((here / "run" / "samples" / "base").glob("*.wav"))
    if damage == "no sound":
        wave.unlink()
    else:
        wave.with_suffix(".json").write_text("{")
    works(run(*evaluation))
    assert Path("scores.json").read_bytes() == whole


@pytest.mark.parametrize("content", ["{", "{}", '{"schema_version": 1, "systems": [1]}'])
def test_a_voice_of_a_run_with_broken_scores(stopped: Path, here: Path, content: str) -> None:
    (here / "run" / "report").mkdir()
    (here / "run" / "report" / "scores.json").write_text(content)
    refused(run("csm", "voice", "--db", "voices.json", "create", "John", 5, "", "--model-path", "run"), "scores")
    assert not Path("voices.json").exists()


# voices


def voice(*words: object) -> Result:
    return run("csm", "voice", "--db", "voices.json", *words)


def test_an_unknown_voice(here: Path) -> None:
    refused(voice("sample", "John", "--output", "out.wav"), "'John'", "holds none yet")
    works(voice("create", "John", 3, ""))
    refused(voice("sample", "Jon", "--output", "out.wav"), "'Jon'", "'John'")
    refused(voice("sample", "7", "--output", "out.wav"), "speaker 3")
    refused(voice("sample", "John", "--text", "", "--output", "out.wav"), "the text is empty")
    assert not Path("out.wav").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_database_is_left_and_the_way_back_works(here: Path, share: float) -> None:
    for number, name in enumerate(("John", "Mary", "Anna")):
        works(voice("create", name, number, "a voice"))
    whole = Path("voices.json").read_bytes()
    cut = whole[: int(share * len(whole))]
    Path("voices.json").write_bytes(cut)
    for words in (("list",), ("show", "John"), ("sample", "John", "--output", "out.wav"), ("create", "Zoe", 3, "")):
        done = voice(*words)
        refused(done, "voices.json is broken", "2 voices")
    assert Path("voices.json").read_bytes() == cut
    assert not Path("out.wav").exists()
    subprocess.run(done.stderr.split("comes back with: ")[1].strip(), shell=True, check=True)
    assert [row["name"] for row in json.loads(voice("list", "--json").stdout)] == ["John", "Mary"]


# a full disk


def with_room_for(kilobytes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that can make no file larger than that; Python ignores SIGXFSZ, so writes fail."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024))

    module = "csm.cli.finetune" if words[0] == "csm-finetune" else "csm.cli.main"
    command = [sys.executable, "-m", module, *map(str, words[1:]), "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, preexec_fn=limit, capture_output=True, text=True)


def assert_full(done: subprocess.CompletedProcess[str]) -> None:
    assert "Traceback" not in done.stderr, done.stderr[-500:]
    assert (done.returncode, done.stdout) == (1, "")
    assert [line[:7] for line in done.stderr.splitlines()].count("error: ") == 1


@pytest.mark.parametrize("codes", [[], ["--codes", "codes.npy"]])
def test_a_full_disk_while_generating(here: Path, codes: list[str]) -> None:
    (here / "out.wav").write_text("the old sound")
    done = with_room_for(0 if codes else 1, "csm", "generate", "--text", "hello.", "--output", "out.wav", *codes)
    assert_full(done)
    assert list(state(here)) == ["out.wav"]
    assert (here / "out.wav").read_text() == "the old sound"


@pytest.mark.parametrize(
    "kilobytes",
    [0, *(pytest.param(n) for n in (64, 4_000))],
)  # fmt: skip
def test_a_full_disk_while_training(data: Path, train: Any, cache: Path, here: Path, kilobytes: int) -> None:
    """Whatever does not fit, the same command later finishes the run; nothing half-written is taken for whole."""
    words = ["--data-path", "data", "--speaker-id", 5, "--output-dir", "run", "--cache-dir", cache, "--max-steps", 1]
    done = with_room_for(kilobytes, "csm-finetune", "voice-adapt", *words)
    assert_full(done)
    assert "the disk is full" in done.stderr
    left = [name for name in state(here) if name.endswith((".part", ".new", ".tmp")) or "/step-" in name]
    assert left == []
    works(train())
    assert Path("run/last").read_text() == "step-000001\n"


def test_a_full_disk_at_the_last_moment(data: Path, train: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes the bytes and refuses the flush."""

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    refused(train(), "the disk is full")
    refused(voice("create", "John", 3, ""), "voices.json was not changed")
    scored = run("csm", "evaluate", data / "audio", "--reference", data / "audio", "--json", "scores.json")
    refused(scored, "the disk is full")
    assert [n for n in state(here) if not n.startswith("data")] == ["voices.json.lock", "run", "run/checkpoints"]
    monkeypatch.undo()
    works(train(data=data, out=str(here / "run")))


# interrupted


def test_ctrl_c_while_generating_exits_130(here: Path) -> None:
    words = ["--text", "hello.", "--output", "out.wav", "--temperature", "99", "--max-audio-length-ms", "90000"]
    command = [sys.executable, "-m", "csm.cli.main", "generate", *words, "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("backend: ")
    process.send_signal(signal.SIGINT)
    answer, talk = process.communicate(timeout=60)
    assert (process.returncode, answer) == (130, "")
    assert talk.strip() == "error: interrupted."
    assert state(here) == {}
