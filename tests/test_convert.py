"""`csm-finetune convert`: any layout becomes csm-mlx's; and flags that take several words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from conftest import spoken
from test_data_layouts import SAID, TestDialogues, TestLjSpeech, sound, store_rows, told, write

from csm.audio import read_audio
from csm.cli.finetune import main
from csm.cli.lists import ListCommand
from csm.data.manifest import read_data


def convert(*words: object) -> Result:
    return CliRunner().invoke(main, ["convert", *map(str, words)])


def document(path: Path) -> list[list[dict[str, Any]]]:
    return json.loads(path.read_text())


def test_conversation_folders_become_what_csm_mlx_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = TestDialogues().make(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    done = convert("raw", "out/data.json")
    assert (done.exit_code, done.stdout) == (0, "out/data.json\n"), done.stderr
    written = document(tmp_path / "out/data.json")
    assert [[set(turn) for turn in conversation] for conversation in written] == [
        [{"text", "audio_path", "speaker"}] * 3,
        [{"text", "audio_path", "speaker"}],
    ]
    assert [turn["audio_path"] for turn in written[0]] == [
        str(raw / "conversation_2" / name)
        for name in ("1_speaker5_answers_speaker12.mp3", "2_speaker12_agenda.ogg", "10_speaker5_point.flac")
    ]
    assert told(read_data([tmp_path / "out/data.json"])[0]) == told(read_data([raw])[0])


def test_csm_mlx_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from csm.cli.csm_mlx import main as csm_mlx

    TestDialogues().make(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    assert convert("raw", "one.json").exit_code == 0
    done = CliRunner().invoke(csm_mlx, ["finetune", "convert", "raw", "two.json"])
    assert (done.exit_code, done.stdout) == (0, "two.json\n"), done.stderr
    assert document(tmp_path / "one.json") == document(tmp_path / "two.json")
    assert CliRunner().invoke(csm_mlx, ["finetune", "convert", "raw"]).exit_code == 2


def test_any_layout_goes_in_and_comes_out_the_same(tmp_path: Path) -> None:
    lj = TestLjSpeech().make(tmp_path / "lj", [f"{name}|{text}" for name, text in SAID.items()])
    done = convert(lj, tmp_path / "lj.json", "--speaker-id", 4, "--language", "de")
    assert done.exit_code == 0, done.stderr
    (before, _), (after, _) = read_data([lj], speaker=4, language="de"), read_data([tmp_path / "lj.json"])
    assert [[(r.text, r.speaker, r.audio, r.language) for r in c] for c in after] == [
        [(r.text, r.speaker, r.audio, r.language) for r in c] for c in before
    ]
    assert document(tmp_path / "lj.json")[0][0]["language"] == "de"
    assert convert(lj, tmp_path / "x.json").exit_code == 1


def test_parts_are_cut_or_refused(tmp_path: Path) -> None:
    waves = [spoken(1.5, seed) for seed in range(3)]
    soundfile.write(tmp_path / "long.wav", np.concatenate(waves), 24_000, subtype="PCM_16")
    rows = [
        {"path": "long.wav", "text": text, "speaker": 0, "start": 1.5 * n, "end": 1.5 * (n + 1)}
        for n, text in enumerate(SAID.values())
    ]
    rows.append({**rows[0], "start": 9.0, "end": 10.0})
    path = store_rows(tmp_path, ".jsonl", rows)
    refused = convert(path, tmp_path / "out.json")
    assert refused.exit_code == 1
    assert "4 clips are parts of long recordings" in refused.stderr
    assert "--cut DIR" in refused.stderr
    assert not (tmp_path / "out.json").exists()
    done = convert(path, tmp_path / "out.json", "--cut", tmp_path / "cut")
    assert done.exit_code == 0, done.stderr
    assert "has no part from 9 to 10 s" in done.stderr
    (turns,) = document(tmp_path / "out.json")
    assert [turn["text"] for turn in turns] == list(SAID.values())
    for turn, wave in zip(turns, waves, strict=True):
        cut, rate = read_audio(turn["audio_path"])
        assert (rate, Path(turn["audio_path"]).parent) == (24_000, tmp_path / "cut")
        np.testing.assert_allclose(cut, wave, atol=1e-4)
    assert len({turn["audio_path"] for turn in turns}) == 3
    assert convert(path, tmp_path / "out2.json", "--cut", tmp_path / "cut", "--strict").exit_code == 1


def test_names_are_told_and_faults_too(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    path = write(tmp_path / "x.csv", "path,text,speaker\na.wav,good morning.,ann\ngone.wav,how are you?,ben\n")
    done = convert(path, tmp_path / "x.json")
    assert done.exit_code == 0
    assert "ann is 0" in done.stderr
    assert f"{path}, line 3, names the sound file gone.wav" in done.stderr
    assert convert(path, tmp_path / "y.json", "--strict").exit_code == 1
    assert convert(path, tmp_path / "y.json", "--format", "nonsense").exit_code == 1
    assert convert(tmp_path / "lost", tmp_path / "y.json").exit_code == 1
    assert convert(path).exit_code == 2
    assert not (tmp_path / "y.json").exists()


@click.command(cls=ListCommand)
@click.option("--data-path", "paths", multiple=True)
@click.option("--ids", multiple=True, type=int)
@click.option("--one")
@click.option("--flag", is_flag=True)
@click.option("--on/--off", default=True)
def listing(**values: Any) -> None:
    click.echo(json.dumps(values))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--data-path a b c", {"paths": ["a", "b", "c"]}),
        ("--data-path a --data-path b", {"paths": ["a", "b"]}),
        ("--data-path a b --flag --ids 1 2 --one x", {"paths": ["a", "b"], "flag": True, "ids": [1, 2], "one": "x"}),
        ("--data-path=a b --off", {"paths": ["a", "b"], "on": False}),
        ("--one -x --data-path -y z", {"one": "-x", "paths": ["-y", "z"]}),
        ("--ids -1 2", {"ids": [-1, 2]}),
        ("", {}),
    ],
)
def test_list_flags_take_all_words_up_to_the_next_flag(words: str, expected: dict[str, Any]) -> None:
    done = CliRunner().invoke(listing, words.split())
    assert done.exit_code == 0, done.stderr
    plain = {"paths": [], "ids": [], "one": None, "flag": False, "on": True}
    assert json.loads(done.stdout) == {**plain, **expected}


@pytest.mark.parametrize("words", ["a", "--one x y", "--flag a --data-path b", "--ids 1 x", "--data-path"])
def test_words_that_belong_to_no_list_are_refused(words: str) -> None:
    assert CliRunner().invoke(listing, words.split()).exit_code == 2


def test_training_takes_several_paths_after_one_flag(tmp_path: Path) -> None:
    """They come as far as being read: the one that is not there is named."""
    sound(tmp_path / "a.wav")
    write(tmp_path / "x.csv", "path,text\na.wav,good morning.\n")
    words = ["voice-adapt", "--data-path", str(tmp_path / "x.csv"), str(tmp_path / "lost.csv"), "--speaker-id", "1"]
    done = CliRunner().invoke(main, [*words, "--output-dir", str(tmp_path / "out"), "--threads", "1"])
    assert done.exit_code == 1
    assert "lost.csv is not there" in done.stderr
