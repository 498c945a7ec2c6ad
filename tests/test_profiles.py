"""The registry keeps what it acknowledged: through kills, full disks, other writers and broken files."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tinydb import TinyDB

from csm.errors import CsmError
from profiles import storage
from profiles.registry import Registry, default_path
from profiles.voice import Voice

ROOT = Path(__file__).parents[1]

# Growing and shrinking in turn; "sync" announces that a write is under way, so that the killer can aim at it.
WRITE_UNTIL_KILLED = """
import os, sys
from profiles.registry import Registry
real = os.fsync
def announced(handle):
    print("sync", flush=True)
    real(handle)
os.fsync = announced
registry = Registry(sys.argv[1])
number = len(registry.list())
while True:
    voice = registry.create(f"voice {number}", number, "word " * 400, "csm-tiny")
    registry.update(voice.id, description="", scores={"speaker_similarity": 0.5})
    print(voice.id, flush=True)
    number += 1
"""

DIE_IN_A_WRITE = """
import resource, signal, sys
from profiles.registry import Registry
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
Registry(sys.argv[1]).create("late", 1, "word " * 400, "csm-tiny")
"""

WRITE_TEN = """
import sys
from profiles.registry import Registry
registry = Registry(sys.argv[1])
for number in range(10):
    voice = registry.create(f"writer {sys.argv[2]} voice {number}", number, "", "csm-tiny")
    registry.update(voice.id, scores={"speaker_similarity": number / 10})
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my voices" / "voices.json"


@pytest.fixture
def registry(path: Path) -> Registry:
    return Registry(path)


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def folder_state(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def voice(**changes: object) -> Voice:
    moment = "2026-01-31T12:00:00+00:00"
    values = {"id": "0" * 31 + "a", "name": "John", "speaker_id": 3, "model_path": "csm-tiny"}
    return Voice(**{**values, "created": moment, "changed": moment, **changes})  # type: ignore[arg-type]


# The record


def test_a_record_comes_back_as_it_was_kept(registry: Registry, tmp_path: Path) -> None:
    kept = registry.create(
        "Zoë O'Brien",
        5,
        "Warm,\ttwo\nlines, 日本語",
        tmp_path,
        gender="female",
        age_range="30-40",
        accent="Irish",
        sampling={"temperature": 0.3, "top_k": 50},
        lineage={"base": {"name": "csm-tiny", "hash": "ab"}, "steps": 200},
        scores={"speaker_similarity": 0.78, "rates": [3.9, 4.1]},
    )
    again = Registry(registry.path)
    assert again.list() == [kept]
    assert Voice.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept
    assert list(kept.to_dict())[:3] == ["id", "name", "speaker_id"]
    assert kept.similarity == 0.78
    assert voice().similarity is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "needs a name"),
        ("  ", "needs a name"),
        ("12", "digits"),
        ("٣", "digits"),
        ("a/b", "separates folders"),
        ("a\\b", "separates folders"),
        ("a\nb", "control character"),
        ("a\x1b[31mb", "cannot be printed"),
        ("a\udcffb", "cannot be printed"),
        (" John", "begins or ends"),
        ("0" * 31 + "b", "looks like the id"),
    ],
)
def test_names_that_commands_or_files_could_not_carry_are_refused(name: str, says: str) -> None:
    with pytest.raises(CsmError, match=says) as refused:
        voice(name=name)
    assert refused.value.hint


@pytest.mark.parametrize("name", ["J", "3rd John", "R2-D2", "Zoë", "日本", "John.Smith"])
def test_other_names_are_taken(name: str) -> None:
    assert voice(name=name).name == name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"speaker_id": "3"}, "speaker_id is a whole number"),
        ({"speaker_id": True}, "speaker_id is a whole number"),
        ({"speaker_id": -1}, "0 or more"),
        ({"gender": 1}, "gender is text"),
        ({"description": "\x07"}, "description holds"),
        ({"scores": None}, "scores is a table"),
        ({"model_path": ""}, "no model"),
        ({"id": "x"}, "32 hexadecimal"),
        ({"created": "yesterday"}, "no moment in ISO"),
        ({"changed": "2026-01-31T12:00:00"}, "no moment in UTC"),
        ({"sampling": {"temperature": -0.1}}, "temperature is"),
        ({"sampling": {"temperature": float("nan")}}, "temperature is"),
        ({"sampling": {"top_k": -1}}, "top_k is"),
        ({"sampling": {"top_k": 1.5}}, "top_k is"),
        ({"sampling": {"topk": 5}}, "'topk' is unknown"),
    ],
)
def test_values_of_another_kind_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(CsmError, match=says):
        voice(**changes)


def test_a_key_that_is_unknown_or_missing_is_named() -> None:
    row = voice().to_dict()
    with pytest.raises(CsmError, match="'John' has the unknown key consent"):
        Voice.from_dict({**row, "consent": {}})
    del row["accent"]
    with pytest.raises(CsmError, match="'John' lacks accent"):
        Voice.from_dict(row)


# The registry


def test_a_voice_is_found_by_id_name_and_speaker_id(registry: Registry) -> None:
    john = registry.create("John", 3, "", "csm-tiny")
    zoe = registry.create("Zoë", 4, "", "csm-tiny")
    for key in (john.id, "John", "jOHN", "3", "03"):
        assert registry.find(key) == john
    for key in (zoe.id, "ZOË", "Zoe\u0308", "4"):
        assert registry.find(key) == zoe


def test_a_name_is_one_voice_whatever_its_case(registry: Registry) -> None:
    john = registry.create("John", 3, "", "csm-tiny")
    other = registry.create("Mary", 3, "", "csm-tiny")
    with pytest.raises(CsmError, match="named 'John' already") as refused:
        registry.create("JOHN", 4, "", "csm-tiny")
    assert "Choose another name" in str(refused.value)
    with pytest.raises(CsmError, match="already"):
        registry.update(other.id, name="john")
    assert registry.update(john.id, name="JOHN").name == "JOHN"
    assert [one.name for one in registry.list()] == ["JOHN", "Mary"]


def test_two_voices_of_one_speaker_id_are_both_listed(registry: Registry) -> None:
    john, mary = registry.create("John", 3, "", "csm-tiny"), registry.create("Mary", 3, "", "csm-tiny")
    with pytest.raises(CsmError) as refused:
        registry.find("3")
    for part in ("John", "Mary", john.id, mary.id):
        assert part in refused.value.message


def test_an_unknown_voice_names_the_nearest(registry: Registry) -> None:
    with pytest.raises(CsmError, match="holds none yet"):
        registry.find("Jon")
    assert not registry.path.parent.exists()
    for name, speaker in (("John", 3), ("Joan", 4), ("Bartholomew", 5)):
        registry.create(name, speaker, "", "csm-tiny")
    with pytest.raises(CsmError) as refused:
        registry.find("jhon")
    assert "'John'" in refused.value.message
    assert "Bartholomew" not in refused.value.message
    assert "csm voice list" in str(refused.value.hint)
    with pytest.raises(CsmError, match="speaker 3, speaker 4, speaker 5"):
        registry.find("7")


def test_an_update_changes_what_it_names_and_nothing_else(registry: Registry) -> None:
    john, mary = registry.create("John", 3, "", "csm-tiny"), registry.create("Mary", 4, "", "csm-tiny")
    scored = registry.update(john.id, scores={"speaker_similarity": 0.8})
    assert registry.list() == [scored, mary]
    assert {**scored.to_dict(), "scores": {}, "changed": john.changed} == john.to_dict()
    assert scored.changed >= john.changed
    with pytest.raises(CsmError, match="no voice 'John'"):
        registry.update("John", scores={})  # a name may pass to another voice; an id does not


def test_models_are_kept_so_that_every_folder_finds_them(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "john"
    (run / "checkpoints" / "step-000200").mkdir(parents=True)
    (run / "best").write_text("step-000200\n")
    monkeypatch.chdir(tmp_path)
    assert registry.create("a", 1, "", "csm-tiny").model_path == "csm-tiny"
    assert registry.create("b", 1, "", "runs/../runs/john").model_path == str(run)
    assert registry.create("d", 1, "", "owner/name").model_path == "owner/name", "a hub id"
    for missing in ("missing", "runs/missing", "./owner/name"):
        with pytest.raises(CsmError, match=f"{missing.removeprefix('./')} is not there"):
            registry.create("c", 1, "", missing)
    assert [one.name for one in registry.list()] == ["a", "b", "d"]


def test_the_default_registry_lies_in_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert default_path() == tmp_path / "csm" / "voices.json"
    assert default_path().name == "voices.json"


# The file


def test_the_file_is_tinydbs_with_a_schema_version(registry: Registry) -> None:
    made = [registry.create(name, 1, "", "csm-tiny").to_dict() for name in ("a", "b")]
    assert json.loads(registry.path.read_text())["schema_version"] == 1
    with TinyDB(registry.path) as stock:
        assert stock.table("voices").all() == made


def test_folder_and_file_are_the_owners_and_keep_their_rights(registry: Registry) -> None:
    registry.create("a", 1, "", "csm-tiny")
    assert registry.path.parent.stat().st_mode & 0o777 == 0o700
    assert registry.path.stat().st_mode & 0o777 == 0o600
    registry.path.chmod(0o640)
    registry.create("b", 1, "", "csm-tiny")
    assert registry.path.stat().st_mode & 0o777 == 0o640


def test_a_link_to_the_file_stays_a_link(registry: Registry, tmp_path: Path) -> None:
    registry.create("a", 1, "", "csm-tiny")
    link = tmp_path / "link.json"
    link.symlink_to(registry.path)
    Registry(link).create("b", 1, "", "csm-tiny")
    assert link.is_symlink()
    assert len(registry.list()) == 2


def test_the_backup_is_the_state_before_the_last_change(registry: Registry) -> None:
    backup = registry.path.with_name("voices.json.bak")
    registry.create("a", 1, "", "csm-tiny")
    assert not backup.exists()
    for name in ("b", "c"):
        before = registry.path.read_bytes()
        registry.create(name, 1, "", "csm-tiny")
        assert backup.read_bytes() == before
    assert sorted(folder_state(registry.path)) == ["voices.json", "voices.json.bak", "voices.json.lock"]


BREAKAGES = {
    "empty": (lambda text: "", "is empty"),
    "blank": (lambda text: "\n\n", "is empty"),
    "half": (lambda text: text[: len(text) // 2], r"line \d+ column \d+"),
    "a brace short": (lambda text: text.rstrip()[:-1], r"line \d+ column \d+"),
    "a comma too many": (lambda text: text.replace('"John",', '"John",,'), r"line 6 column \d+"),
    "not a number": (lambda text: text.replace('"speaker_id": 3', '"speaker_id": NaN'), "NaN"),
    "a key twice": (lambda text: text.replace('"2": {', '"1": {'), "'1' stands twice"),
    "a list": (lambda text: "[]", "no registry"),
    "another TinyDB": (lambda text: '{"_default": {}}', "no schema_version"),
    "no table": (lambda text: '{"schema_version": 1, "voices": []}', "'voices' is no table"),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_broken_file_is_named_kept_and_comes_back(registry: Registry, kind: str) -> None:
    john = registry.create("John", 3, "", "csm-tiny")
    registry.create("Mary", 4, "", "csm-tiny")
    spoil, says = BREAKAGES[kind]
    registry.path.write_text(spoil(registry.path.read_text()))
    before = folder_state(registry.path)
    for attempt in (
        registry.list,
        lambda: registry.find("John"),
        lambda: registry.create("Anna", 5, "", "csm-tiny"),
        lambda: registry.update(john.id, scores={}),
        lambda: storage.AtomicStorage(registry.path).write({"voices": {}}),
    ):
        with pytest.raises(CsmError, match=says) as refused:
            attempt()
        assert str(registry.path) in refused.value.message
        assert folder_state(registry.path) == before
    command = shlex.split(str(refused.value.hint).split("comes back with: ")[1])
    assert command[0] == "cp"
    subprocess.run(command, check=True)
    assert registry.list() == [john]


def test_a_file_cut_off_anywhere_is_never_taken_for_a_shorter_one(registry: Registry) -> None:
    registry.create("John", 3, "", "csm-tiny")
    whole = registry.path.read_bytes()
    assert whole.endswith(b"}\n")
    for length in range(len(whole) - 1):
        registry.path.write_bytes(whole[:length])
        with pytest.raises(CsmError, match=r"line \d+ column \d+"):
            registry.list()


def test_bytes_that_are_no_text_are_named_by_their_position(registry: Registry) -> None:
    registry.create("John", 3, "", "csm-tiny")
    registry.path.write_bytes(registry.path.read_bytes().replace(b"John", b"Jo\xffn"))
    with pytest.raises(CsmError, match=r"0xff in position \d+") as refused:
        registry.list()
    assert "No backup" in str(refused.value.hint)


def test_a_broken_backup_is_not_offered(registry: Registry) -> None:
    for name in ("a", "b"):
        registry.create(name, 1, "", "csm-tiny")
    for file in (registry.path, registry.path.with_name("voices.json.bak")):
        file.write_text("{")
    with pytest.raises(CsmError) as refused:
        registry.list()
    assert "cannot be read either" in str(refused.value.hint)


def test_a_newer_schema_is_refused_and_kept(registry: Registry) -> None:
    registry.create("John", 3, "", "csm-tiny")
    registry.path.write_text('{"schema_version": 2, "voices": ["something else"]}')
    before = folder_state(registry.path)
    for attempt in (registry.list, lambda: registry.create("Anna", 5, "", "csm-tiny")):
        with pytest.raises(CsmError, match="has schema version 2") as refused:
            attempt()
        assert str(registry.path) in refused.value.message
        assert "Upgrade" in str(refused.value.hint)
    assert folder_state(registry.path) == before


def test_a_record_spoilt_by_hand_is_named_with_its_file(registry: Registry) -> None:
    registry.create("John", 3, "", "csm-tiny")
    registry.path.write_text(registry.path.read_text().replace('"speaker_id": 3', '"speaker_id": "three"'))
    with pytest.raises(CsmError, match=r"voices.json, voice 1: speaker_id is a whole number, not 'three'"):
        registry.list()


def test_a_record_doubled_by_hand_is_refused_before_a_change_hits_both(registry: Registry) -> None:
    john, mary = registry.create("John", 3, "", "csm-tiny"), registry.create("Mary", 3, "", "csm-tiny")
    registry.path.write_text(registry.path.read_text().replace(mary.id, john.id))
    with pytest.raises(CsmError, match="'John' and 'Mary' have one id") as refused:
        registry.update(john.id, scores={"speaker_similarity": 0.5})
    registry.path.write_text(registry.path.read_text().replace(john.id, str(refused.value.hint)[-33:-1], 1))
    assert [one.name for one in registry.list()] == ["John", "Mary"]


# What goes wrong while writing


@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    registry: Registry, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        registry.create(name, 1, "", "csm-tiny")
    before, calls = folder_state(registry.path), []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CsmError, match="was not changed: No space left") as refused:
        registry.create("c", 1, "", "csm-tiny")
    assert str(registry.path) in refused.value.message
    after = folder_state(registry.path)
    if step == 2:  # the backup has been renewed by then: it is the file as it still is
        assert after.pop("voices.json.bak") == before["voices.json"]
        before.pop("voices.json.bak")
    assert after == before
    registry.create("c", 1, "", "csm-tiny")
    assert [one.name for one in registry.list()] == ["a", "b", "c"]


def test_a_disk_that_takes_half_a_file_leaves_the_old_one(registry: Registry) -> None:
    registry.create("a", 1, "", "csm-tiny")
    before = folder_state(registry.path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["voices.json"]) + 100, limits[1]))
    try:
        with pytest.raises(CsmError, match="was not changed: File too large"):
            registry.create("b", 1, "word " * 400, "csm-tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    after = folder_state(registry.path)
    assert after.pop("voices.json.bak") == before["voices.json"]
    assert after == before


@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
def test_a_stop_at_any_step_leaves_the_old_file_or_the_new(
    registry: Registry, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KeyboardInterrupt before the n-th call, for every n that a change has."""
    registry.create("first", 1, "", "csm-tiny")
    real, calls = getattr(os, function), []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    for stop in range(1, 20):
        known = {one.name for one in registry.list()}
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, function, interrupted)
            try:
                registry.create(f"voice {stop}", 1, "", "csm-tiny")
            except KeyboardInterrupt:
                assert {one.name for one in registry.list()} in (known, known | {f"voice {stop}"})
                assert ".new" not in "".join(folder_state(registry.path))
                continue
        assert stop > 2  # it was stopped at least twice before it went through
        assert {one.name for one in registry.list()} == known | {f"voice {stop}"}
        return
    pytest.fail("it never went through")


def test_a_writer_that_dies_amid_a_byte_leaves_the_old_file(registry: Registry) -> None:
    """The system kills a process that writes past its limit, right there: no clean-up of ours runs."""
    for name in ("a", "b"):
        registry.create(name, 1, "", "csm-tiny")
    whole = registry.path.read_bytes()
    for limit in (1, len(whole) // 2, len(whole) + 1, len(whole) + 2000):
        assert child(DIE_IN_A_WRITE, registry.path, limit).wait() == -signal.SIGXFSZ
        assert registry.path.read_bytes() == whole
        leftover = [file.name for file in registry.path.parent.iterdir() if file.name.endswith(".new")]
        assert leftover == ["voices.json.new" if limit > len(whole) else "voices.json.bak.new"]
        registry.path.with_name(leftover[0]).unlink()


def test_what_a_killed_writer_left_is_overwritten(registry: Registry) -> None:
    registry.create("a", 1, "", "csm-tiny")
    for name in ("voices.json.new", "voices.json.bak.new"):
        registry.path.with_name(name).write_text('{"schema_version": 1, "voi')
    registry.create("b", 1, "", "csm-tiny")
    assert [one.name for one in registry.list()] == ["a", "b"]
    assert ".new" not in "".join(folder_state(registry.path))


def test_a_value_without_json_form_changes_nothing(registry: Registry) -> None:
    john = registry.create("John", 3, "", "csm-tiny")
    before = folder_state(registry.path)
    for scores in ({"speaker_similarity": float("nan")}, {"speaker_similarity": object()}, {"text": "\udcff"}):
        with pytest.raises(CsmError, match="cannot be stored as JSON"):
            registry.update(john.id, scores=scores)
    assert folder_state(registry.path) == before


def test_waiting_for_another_writer_ends_in_a_sentence(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.create("a", 1, "", "csm-tiny")
    with open(registry.path.with_name("voices.json.lock")) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CsmError, match="in use by another process"), storage.locked(registry.path, 0.1):
            pass
        assert len(registry.list()) == 1  # looking needs no lock
    registry.create("b", 1, "", "csm-tiny")


def kill_writers(registry: Registry, kills: int) -> int:
    """Kill -9 as many writers amid a write; each voice that one acknowledged must be there afterwards.

    The same kills break TinyDB's own JSONStorage in about three of ten cases.
    """
    chance, acknowledged = random.Random(kills), 0
    for _ in range(kills):
        writer = child(WRITE_UNTIL_KILLED, registry.path)
        assert writer.stdout
        lines = [writer.stdout.readline() for _ in range(chance.randint(6, 16))]
        time.sleep(chance.choice([0, 0.0002, 0.001]))
        writer.kill()
        lines += writer.stdout.readlines()
        assert writer.wait() == -signal.SIGKILL
        ids = {line.strip() for line in lines if line.endswith("\n")} - {"sync"}
        json.loads(registry.path.read_bytes())
        kept = {one.id: one for one in registry.list()}
        assert ids <= set(kept)
        assert all(kept[one].similarity == 0.5 for one in ids)
        acknowledged += len(ids)
        if len(kept) > 100:  # a small file again, so that a turn stays short
            shutil.rmtree(registry.path.parent)
    return acknowledged


def test_thirty_kills_lose_nothing(registry: Registry) -> None:
    assert kill_writers(registry, 30) >= 15


@pytest.mark.slow
def test_two_hundred_kills_lose_nothing(registry: Registry) -> None:
    assert kill_writers(registry, 200) >= 100


def test_four_writers_at_once_lose_nothing(registry: Registry) -> None:
    writers = [child(WRITE_TEN, registry.path, number) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    kept = {one.name: one.similarity for one in registry.list()}
    assert kept == {f"writer {writer} voice {n}": n / 10 for writer in range(4) for n in range(10)}
