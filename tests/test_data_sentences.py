"""What a user is told about data: which file and line, once, before the work; and that no flag does nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result
from conftest import spoken

from csm.audio import read_audio
from csm.cli.finetune import main
from csm.data.faults import Fault, of_row, require_usable
from csm.data.manifest import read_data
from csm.data.prepare import Ears, prepare
from csm.data.row import Row
from csm.errors import CsmError

Make = Callable[[int], Path]
CHEAP = ("--no-probe", "--no-voices", "--no-transcripts")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def codes(make_clips: Make, tmp_path: Path) -> Path:
    run("tokenize", make_clips(8), "--speaker-id", 5, "--output", tmp_path / "CODES")
    return tmp_path / "CODES"


def test_a_sound_in_the_cache_is_named_by_the_data_that_name_it(tmp_path: Path) -> None:
    """The cache names files by hashes, which tell a user nothing."""
    soundfile.write(tmp_path / "good.wav", spoken(1.5, 0), 24_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(24_000), 24_000)
    lines = [
        {"audio": f"file://{tmp_path}/{name}.wav", "text": f"the words of {name}", "speaker": 0}
        for name in ("good", "silent")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    says = f"{tmp_path}/rows.jsonl, line 2, names file://{tmp_path}/silent.wav, which is silent"
    told = run("tokenize", tmp_path / "rows.jsonl", "--output", tmp_path / "CODES").stderr
    assert told.count(says) == 1
    assert "user/csm" not in told
    told = run("check", tmp_path / "rows.jsonl", *CHEAP, code=1).stdout
    assert told.count(says) == 1
    assert "user/csm" not in told


def test_other_faults_and_bytes_without_a_name_keep_their_place() -> None:
    copy, source = Path("/cache") / f"{'0a' * 32}.flac", Path("rows.parquet")
    row = Row(copy.name, copy, "words", 0, source, 7)
    assert of_row(Fault(copy, "is silent"), row).text == "rows.parquet, line 7, names a sound that is silent."
    other = Fault(source, "has an empty text", 7)
    assert of_row(other, row) is other
    plain = Fault(Path("a.wav"), "is silent")
    assert of_row(plain, Row("a", Path("a.wav"), "words", 0, source, 7)) is plain


@pytest.mark.parametrize("flags", [["--denoise"], ["--align"], ["--format", "table"], ["--alignment-dir", "x"]])
def test_codes_take_no_flag_that_only_sounds_can_follow(flags: list[str], codes: Path, tmp_path: Path) -> None:
    told = run("voice-adapt", "--data-path", codes, "--output-dir", tmp_path / "run", *flags, code=1).stderr
    assert f"{flags[0]} can do nothing" in told


def test_a_speaker_without_a_symbol_is_told_before_the_work(make_clips: Make, tmp_path: Path) -> None:
    told = run("tokenize", make_clips(3), "--speaker-id", 99, "--output", tmp_path / "CODES", code=1).stderr
    assert "no symbol for speaker 99" in told
    assert "tokenising" not in told
    assert not list(tmp_path.glob("CODES/*.codes"))
    words = ("--speaker-id", 99, "--output-dir", tmp_path / "run", "--cache-dir", tmp_path / "CODES")
    run("voice-adapt", "--data-path", tmp_path / "data", *words, code=1)
    assert not list(tmp_path.glob("CODES/*.codes"))


def test_check_finds_damaged_codes(codes: Path) -> None:
    assert "are damaged" not in run("check", codes, *CHEAP).stdout
    with open(codes / "00000.codes", "r+b") as file:
        file.seek(10)
        file.write(b"XXXXXXXX")
    told = run("check", codes, *CHEAP, code=1).stdout
    assert told.count("are damaged. Run csm-finetune tokenize again") == 1


def test_check_of_codes_without_their_sounds_says_so(codes: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    told = run("check", codes, *CHEAP, code=1).stderr
    assert "None of the sound files that these codes were made from is there" in told


def test_strict_names_every_fault() -> None:
    """As docs/commands.md says; without it `check` is named instead."""
    faults = [Fault(Path(f"{number}.wav"), "is silent") for number in range(9)]
    with pytest.raises(CsmError) as caught:
        require_usable(1, faults, strict=True)
    assert str(caught.value.hint).count("is silent") == 9
    with pytest.raises(CsmError) as caught:
        require_usable(0, faults)
    assert "4 more" in str(caught.value.hint)


def test_a_recording_without_speech_is_named(tmp_path: Path) -> None:
    def ears(heard: float) -> Ears:
        return Ears(lambda wave, rate: np.full(len(wave) // 320, heard), 0.02, lambda *_: None, None, "x")  # type: ignore[arg-type, return-value]

    soundfile.write(tmp_path / "hum.wav", spoken(5, 0, 16_000), 16_000)
    with pytest.raises(CsmError) as caught:
        prepare([tmp_path / "hum.wav"], tmp_path / "out", ears(0.0))
    assert "hum.wav holds no speech" in str(caught.value.hint)


def test_an_mp3_that_holds_none_is_there_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.mp3").write_bytes(b"no sound at all" * 100)
    with pytest.raises(CsmError, match="Format not recognised"):
        read_audio(tmp_path / "x.mp3")


def test_an_empty_path_is_not_the_current_folder(make_clips: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_clips(2))
    assert "is empty" in run("convert", "", "out.json", "--speaker-id", 1, code=1).stderr


def test_the_two_forms_of_batch_size_are_named(tmp_path: Path) -> None:
    told = run("voice-adapt", "--output-dir", tmp_path, "--batch-size", "all", code=2).stderr
    assert "neither a whole number nor auto" in told


def test_one_folder_that_cannot_be_read_leaves_the_others(make_clips: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    data = make_clips(3)
    (data / "audio" / "locked").mkdir()
    scan = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    rows, faults = read_data([data], speaker=1)
    assert len(rows) == 3
    assert [fault.text for fault in faults] == [
        f"{data}/audio/locked is a folder that cannot be read (Permission denied)."
    ]


def test_torchruns_processes_tokenise_a_part_each(
    make_clips: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not brought together to train, where all but the first would wait and tokenise nothing."""
    data = make_clips(4)
    for rank in (0, 1):
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "x"}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("csm.torch.processes.together", lambda: pytest.fail("brought together"))
        told = run("tokenize", data, "--speaker-id", 5, "--output", tmp_path / "CODES")
    assert told.stdout.strip() == str(tmp_path / "CODES")
    assert (tmp_path / "CODES" / "rows").is_file()
