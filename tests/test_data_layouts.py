"""Every data layout, made here: it is found out, read whole, and what is wrong with a row costs that row alone."""

from __future__ import annotations

import io
import json
import math
import sqlite3
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import load_clip, spoken

from csm.data.faults import Fault
from csm.data.layout import FORMATS, layout_of
from csm.data.manifest import read_data
from csm.data.row import Row
from csm.data.speaker_names import named_speakers
from csm.data.table_files import TABLES
from csm.errors import CsmError

SAID = {"one": "good morning.", "two": "how are you?", "three": "fine, thank you."}


def sound(path: Path, seconds: float = 1.5, seed: int = 0, rate: int = 24_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = spoken(seconds, seed, rate)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate)
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def told(conversations: list[list[Row]]) -> list[list[tuple[int, str]]]:
    return [[(row.speaker, row.text) for row in conversation] for conversation in conversations]


def flat(conversations: list[list[Row]]) -> list[Row]:
    return [row for conversation in conversations for row in conversation]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder `data` with three sounds below `sounds/`."""
    for seed, name in enumerate(SAID):
        sound(tmp_path / "data" / "sounds" / f"{name}.wav", seed=seed)
    return tmp_path / "data"


ROWS = [{"path": f"sounds/{name}.wav", "text": text, "speaker": 3} for name, text in SAID.items()]


def as_csv(rows: list[dict[str, Any]], separator: str = ",") -> str:
    names = list(dict.fromkeys(key for row in rows for key in row))
    quote = '"' if separator == "," else ""
    lines = [separator.join(names)]
    lines += [separator.join(f"{quote}{row.get(name, '')}{quote}" for name in names) for row in rows]
    return "\n".join(lines) + "\n"


def as_sqlite(path: Path, rows: list[dict[str, Any]], table: str = "data") -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    with sqlite3.connect(path) as database:
        database.execute(f"create table {table} ({', '.join(names)})")
        database.executemany(
            f"insert into {table} values ({', '.join('?' * len(names))})",
            [[row.get(name) for name in names] for row in rows],
        )


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def store_rows(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows{suffix}"
    texts: dict[str, Callable[[], str]] = {
        ".json": lambda: json.dumps(rows, indent=1),
        ".jsonl": lambda: "\n".join(map(json.dumps, rows)),
        ".ndjson": lambda: "\r\n".join(map(json.dumps, rows)),
        ".csv": lambda: as_csv(rows),
        ".tsv": lambda: as_csv(rows, "\t"),
        ".psv": lambda: as_csv(rows, "|"),
        ".txt": lambda: as_csv(rows, ";"),
    }
    if suffix == ".parquet":
        as_parquet(path, rows)
    elif suffix in texts:
        write(path, texts[suffix]())
    else:
        as_sqlite(path, rows)
    return path


class TestTables:
    @pytest.mark.parametrize("suffix", TABLES)
    def test_every_kind_gives_the_same_rows(self, clips: Path, suffix: str) -> None:
        path = store_rows(clips, suffix, ROWS)
        assert layout_of(str(path)) == ("table", path)
        conversations, faults = read_data([path])
        assert faults == []
        assert told(conversations) == [[(3, text)] for text in SAID.values()]
        assert [row.audio for row in flat(conversations)] == [clips / row["path"] for row in ROWS]
        assert [row.name for row in flat(conversations)] == ["sounds/one", "sounds/two", "sounds/three"]

    @pytest.mark.parametrize("suffix", TABLES)
    def test_parts_of_a_stereo_recording(self, clips: Path, suffix: str) -> None:
        """NaN and nothing mean the file's own beginning and end; parts are turns of one conversation, by their start."""
        wave = np.concatenate([spoken(1.5, 7), spoken(2.0, 8), spoken(2.5, 9)])
        soundfile.write(clips / "long.wav", np.stack([wave, wave], axis=1), 24_000, subtype="FLOAT")
        nan = math.nan if suffix in (".json", ".jsonl", ".ndjson", ".parquet") else ""
        rows = [
            {"path": "long.wav", "text": SAID["two"], "start": 1.5, "end": 3.5, "speaker": 1},
            {"path": "sounds/one.wav", "text": SAID["one"], "start": nan, "end": nan, "speaker": 0},
            {"path": "long.wav", "text": SAID["three"], "start": 3.5, "end": nan, "speaker": 0},
            {"path": "long.wav", "text": SAID["one"], "start": nan, "end": 1.5, "speaker": 0},
        ]
        if suffix == ".parquet":
            pytest.importorskip("pyarrow")
        conversations, faults = read_data([store_rows(clips, suffix, rows)])
        assert faults == []
        long, alone = conversations
        assert [row.text for row in long] == list(SAID.values())
        assert [(row.start, row.end) for row in alone] == [(None, None)]
        for row, own in zip(long, (spoken(1.5, 7), spoken(2.0, 8), spoken(2.5, 9)), strict=True):
            from csm.audio import read_audio

            cut, rate = read_audio(row.audio, row.start, row.end)
            assert rate == 24_000
            np.testing.assert_array_equal(cut, own)

    def test_speakers_by_name_are_numbered(self, clips: Path) -> None:
        who = ["p10", "p9", "4"]
        rows = [{**row, "speaker": name} for row, name in zip(ROWS, who, strict=True)]
        conversations, _ = read_data([store_rows(clips, ".csv", rows)])
        assert [row.speaker for row in flat(conversations)] == [1, 0, 4]
        assert named_speakers(conversations) == {"p9": 0, "p10": 1}
        lone = store_rows(clips, ".tsv", [{**row, "speaker": "ann"} for row in ROWS])
        assert {row.speaker for row in flat(read_data([lone], speaker=7)[0])} == {7}

    def test_numbers_that_are_taken_are_no_names_number(self, clips: Path) -> None:
        rows = [{**row, "speaker": name} for row, name in zip(ROWS, ("zoe", "0", "1.0"), strict=True)]
        assert [row.speaker for row in flat(read_data([store_rows(clips, ".csv", rows)])[0])] == [2, 0, 1]

    @pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ".sqlite"])
    def test_a_bad_row_is_one_fault_with_its_line(self, clips: Path, suffix: str) -> None:
        bad = [
            ({"path": "gone.wav"}, "names the sound file gone.wav, which is not there"),
            ({"text": "  "}, "has no text" if suffix in (".csv", ".sqlite", ".json", ".jsonl", ".parquet") else ""),
            ({"start": "soon"}, "has the start 'soon', which is no time in seconds"),
            ({"start": "2", "end": "1"}, "ends at 1 s, which is not after its start at 2 s"),
            ({"end": "-1"}, "has the end '-1', which is no time in seconds"),
            ({"speaker": "-1"}, "has a speaker that is not a whole number from 0"),
            ({"speaker_id": "4"}, "names two speakers, speaker 3 and speaker_id 4"),
            ({"language": "english!"}, "has the language 'english!'"),
            ({"text": "half \x07 bell"}, "control characters"),
        ]
        rows = [{key: str(value) for key, value in {**ROWS[0], **change}.items()} for change, _ in bad]
        good = {key: str(value) for key, value in ROWS[1].items()}
        every = [{**dict.fromkeys(("start", "end", "speaker_id", "language"), ""), **row} for row in [*rows, good]]
        path = store_rows(clips, suffix, every)
        conversations, faults = read_data([path])
        assert told(conversations) == [[(3, SAID["two"])]]
        assert len(faults) == len(bad)
        first = 2 if suffix == ".csv" else 1
        for number, (fault, (_, says)) in enumerate(zip(faults, bad, strict=True)):
            assert says in fault.message
            assert fault.file == path
            assert fault.line is not None
            if suffix != ".json":
                assert fault.line == number + first

    def test_lines_of_json(self, clips: Path) -> None:
        path = store_rows(clips, ".json", [ROWS[0], {**ROWS[1], "path": "gone.wav"}, ROWS[2]])
        line = path.read_text().splitlines().index('  "path": "gone.wav",')
        (fault,) = read_data([path])[1]
        assert fault.line == line  # the brace stands on the line before, and lines count from 1

    def test_broken_lines_cost_themselves_alone(self, clips: Path) -> None:
        lines = [json.dumps(ROWS[0]), '{"path": ', "[1]", '{"path": "sounds/one.wav", "n": ' + "9" * 5000 + "}"]
        path = write(clips / "rows.jsonl", "\n".join([*lines, "", json.dumps(ROWS[1])]))
        conversations, faults = read_data([path])
        assert len(conversations) == 2
        assert [fault.line for fault in faults] == [2, 3, 4]
        text = 'path,text,speaker\nsounds/one.wav,"never closed,1\nsounds/two.wav,"a ""quoted"" word",1\na,b\n'
        text += 'sounds/three.wav,"over\ntwo lines",2\nsounds/one.wav,"x"y,1\n'
        conversations, faults = read_data([write(clips / "rows.csv", text)])
        assert told(conversations) == [[(1, 'a "quoted" word')], [(2, "over two lines")]]
        assert [fault.line for fault in faults] == [2, 4, 7]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_line_ends_marks_and_accents(self, clips: Path, end: str, mark: str) -> None:
        sound(clips / unicodedata.normalize("NFD", "été.wav"))
        text = unicodedata.normalize("NFD", "là-bas")
        path = write(clips / "rows.csv", mark + end.join(["path,text,speaker", f"été.wav,{text},1", ""]))
        (row,) = flat(read_data([path])[0])
        assert (row.text, row.name, row.line) == ("là-bas", "été", 2)
        assert row.audio.is_file()

    def test_columns_as_pandas_writes_them(self, clips: Path) -> None:
        for column in (list, lambda cells: {str(i): cell for i, cell in enumerate(cells)}):
            document = {key: column([row[key] for row in ROWS]) for key in ROWS[0]}
            conversations, _ = read_data([write(clips / "rows.json", json.dumps(document))])
            assert told(conversations) == [[(3, text)] for text in SAID.values()]

    def test_sqlite_takes_data_or_the_only_table(self, clips: Path) -> None:
        path = clips / "rows.db"
        as_sqlite(path, ROWS, "spoken")
        assert len(read_data([path])[0]) == 3
        as_sqlite(path, ROWS[:1], "other")
        with pytest.raises(CsmError, match="2 tables and none called data"):
            read_data([path])
        as_sqlite(path, ROWS[:2], "data")
        assert len(read_data([path])[0]) == 2

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("x.pkl", b"\x80\x04.", "is a pickle"),
            ("x.db", b"create table data (path)", "is no SQLite database"),
            ("x.db", b"SQLite format 3\0" + b"\1" * 200, "cannot be read as SQLite"),
            ("x.parquet", b"PAR1 no", "cannot be read as Parquet"),
            ("x.csv", "path,text\n".encode("utf-16"), "is not UTF-8 text but UTF-16"),
            ("x.csv", "path,text\nsounds/one.wav,caf\xe9\n".encode("latin-1"), "is not UTF-8 text"),
            ("x.csv", "path,text\n".encode("utf-16-le"), "NUL"),
            ("x.csv", b"", "is an empty file"),
            ("x.csv", b"path,text\n", "holds no rows"),
            ("x.csv", b"path,text,text\na,b,c\n", "two columns called text"),
            ("x.csv", b"a,b\n1,2\n", "names no columns"),
            ("x.jsonl", b'{"text": "a"}\n', "names no sounds"),
            ("x.jsonl", b'{"audio": "a.wav"}\n', "holds no texts"),
            ("x.jsonl", b'{"audio": "sounds/one.wav", "text": "a word"}\n', "does not say who speaks"),
            ("x.json", b'[{"path": "sounds/one.wav", "text": "a word"}]', "does not say who speaks"),
            ("x.docx", b"PK", "is no data that can be read"),
        ],
    )
    def test_files_that_are_no_tables(self, clips: Path, name: str, content: bytes, says: str) -> None:
        with pytest.raises(CsmError, match=says) as caught:
            read_data([write(clips / name, content)])
        assert str(clips / name) in caught.value.message


class TestVoxCpm:
    def test_the_documented_lines(self, clips: Path) -> None:
        lines = [
            {"audio": "sounds/one.wav", "text": SAID["one"]},
            {"audio": str(clips / "sounds/two.wav"), "text": SAID["two"], "duration": 1.5, "dataset_id": 1},
            {"audio": "sounds/three.wav", "text": SAID["three"], "ref_audio": "sounds/one.wav", "is_prompt": True},
        ]
        path = write(clips / "train.jsonl", "\n".join(map(json.dumps, lines)))
        for form in (None, "voxcpm", "table"):
            conversations, faults = read_data([path], speaker=2, format=form)
            assert faults == []
            assert told(conversations) == [[(2, text)] for text in SAID.values()]

    def test_a_reference_with_words_is_context_alone(self, clips: Path) -> None:
        line = {"audio": "sounds/two.wav", "text": SAID["two"], "ref_audio": "sounds/one.wav", "ref_text": SAID["one"]}
        ((reference, target),), _ = read_data([write(clips / "train.jsonl", json.dumps(line))], speaker=2)
        assert (reference.text, reference.weight, reference.speaker) == (SAID["one"], 0.0, 2)
        assert (target.text, target.weight, target.speaker) == (SAID["two"], 1.0, 2)


class TestDialogues:
    def make(self, root: Path) -> Path:
        """The documented example, with numbers of one and two digits."""
        turns = {
            "conversation_10/001_speaker0_hello_there.wav": "hello there.",
            "conversation_2/10_speaker5_point.flac": "point ten.",
            "conversation_2/2_speaker12_agenda.ogg": "the agenda.",
            "conversation_2/1_speaker5_answers_speaker12.mp3": "an answer.",
        }
        for name, text in turns.items():
            sound(root / name)
            write((root / name).with_suffix(".txt"), text)
        sound(root / "other_audio.wav")
        return root

    def test_order_is_natural_and_the_first_speaker_counts(self, tmp_path: Path) -> None:
        root = self.make(tmp_path / "raw")
        assert layout_of(str(root)) == ("dialogues", root)
        conversations, faults = read_data([root])
        assert faults == []
        assert told(conversations) == [
            [(5, "an answer."), (12, "the agenda."), (5, "point ten.")],
            [(0, "hello there.")],
        ]
        assert flat(conversations)[0].name == "conversation_2/1_speaker5_answers_speaker12"

    def test_one_conversation_folder_is_one(self, tmp_path: Path) -> None:
        root = self.make(tmp_path / "raw")
        assert told(read_data([root / "conversation_2"])[0]) == told(read_data([root])[0])[:1]

    def test_what_is_wrong_costs_the_turn(self, tmp_path: Path) -> None:
        root = self.make(tmp_path / "raw")
        sound(root / "conversation_2/3_nobody.wav")
        write(root / "conversation_2/3_nobody.txt", "who am I?")
        sound(root / "conversation_2/4_speaker5_mute.wav")
        sound(root / "conversation_2/2_speaker12_agenda.wav")
        write(root / "conversation_2/5_speaker1_latin.txt", "caf\xe9".encode("latin-1"))
        sound(root / "conversation_2/5_speaker1_latin.wav")
        write(root / "notes/readme.txt", "nothing to hear")
        conversations, faults = read_data([root])
        assert told(conversations)[0] == [(5, "an answer."), (5, "point ten.")]
        says = sorted(fault.text for fault in faults)
        assert len(says) == 5
        for part in ("share one name", "no speaker in its name", "has no transcript", "is not UTF-8", "no sound files"):
            assert sum(part in text for text in says) == 1, (part, says)

    def test_a_name_without_speaker_takes_the_default(self, tmp_path: Path) -> None:
        root = self.make(tmp_path / "raw")
        sound(root / "conversation_2/3_nobody.wav")
        write(root / "conversation_2/3_nobody.txt", "who am I?")
        assert (9, "who am I?") in told(read_data([root], speaker=9)[0])[0]


class TestLjSpeech:
    def make(self, root: Path, lines: list[str], folder: str = "wavs") -> Path:
        for seed, name in enumerate(SAID):
            sound(root / folder / f"{name}.wav", seed=seed)
        write(root / "metadata.csv", "\n".join(lines) + "\n")
        return root

    def test_the_normalised_text_counts(self, tmp_path: Path) -> None:
        lines = ["one|Dr. Good, 7|doctor good, seven", "two|How are you?|", 'three|"Fine|"Fine']
        root = self.make(tmp_path / "lj", lines)
        assert layout_of(str(root)) == ("ljspeech", root / "metadata.csv")
        for path in (root, root / "metadata.csv"):
            conversations, faults = read_data([path], speaker=0)
            assert (told(conversations), faults) == (
                [[(0, "doctor good, seven")], [(0, "How are you?")], [(0, '"Fine')]],
                [],
            )
        row = flat(conversations)[0]
        assert (row.name, row.line, row.source) == ("wavs/one", 1, root / "metadata.csv")

    def test_two_fields(self, tmp_path: Path) -> None:
        root = self.make(tmp_path / "lj", [f"{name}|{text}" for name, text in SAID.items()], "wav")
        assert told(read_data([root], speaker=4)[0]) == [[(4, text)] for text in SAID.values()]

    @pytest.mark.parametrize("speakers", [("0", "12", "0"), ("ann", "ben", "ann")])
    def test_file_speaker_text(self, tmp_path: Path, speakers: tuple[str, ...]) -> None:
        lines = [f"wavs/{name}.wav|{who}|{text}" for (name, text), who in zip(SAID.items(), speakers, strict=True)]
        conversations, _ = read_data([self.make(tmp_path / "lj", lines)])
        second = 12 if speakers[1] == "12" else 1
        assert told(conversations) == [[(n, t)] for n, t in zip((0, second, 0), SAID.values(), strict=True)]

    def test_a_header_names_the_columns(self, tmp_path: Path) -> None:
        lines = ["audio_file|text|speaker_name", f"wavs/one.wav|{SAID['one']}|ann", f"wavs/two.wav|{SAID['two']}|ben"]
        root = self.make(tmp_path / "lj", lines)
        assert layout_of(str(root))[0] == "table"
        assert told(read_data([root])[0]) == [[(0, SAID["one"])], [(1, SAID["two"])]]

    def test_bad_lines_cost_themselves(self, tmp_path: Path) -> None:
        lines = ["one", "gone|some words here", "two|", "a|b|c|d", "", "three|good words"]
        conversations, faults = read_data([self.make(tmp_path / "lj", lines)], speaker=0, format="ljspeech")
        assert told(conversations) == [[(0, "good words")]]
        assert [fault.line for fault in faults] == [1, 4, 2, 3] or sorted(f.line or 0 for f in faults) == [1, 2, 3, 4]


class TestScript:
    def make(self, root: Path, script: str, names: tuple[str, ...] = ("1.wav", "002_b.wav", "clip_3.wav")) -> Path:
        for seed, name in enumerate(names):
            sound(root / name, seed=seed)
        return write(root / "script.txt", script)

    def test_brackets_are_speakers(self, tmp_path: Path) -> None:
        path = self.make(tmp_path / "talk", "[1]: good morning.\n\n[2]: how are you?\n[1]: fine, thank you.\n")
        for place in (path, path.parent):
            assert layout_of(str(place)) == ("script", path)
            conversations, faults = read_data([place])
            assert (told(conversations), faults) == (
                [list(zip((1, 2, 1), SAID.values(), strict=True))],
                [],
            )
        assert [row.line for row in conversations[0]] == [1, 3, 4]
        assert [row.name for row in conversations[0]] == ["1", "002_b", "clip_3"]

    def test_brackets_that_count_are_no_speakers(self, tmp_path: Path) -> None:
        path = self.make(tmp_path / "talk", "[1]: good morning.\n[2]: how are you?\n[3]: fine, thank you.\n")
        with pytest.raises(CsmError, match="does not say who speaks"):
            read_data([path])
        assert told(read_data([path], speaker=6)[0]) == [[(6, text) for text in SAID.values()]]

    def test_lines_and_clips_that_do_not_meet(self, tmp_path: Path) -> None:
        names = ("audio/1.wav", "audio/2_a.wav", "audio/2_b.wav", "audio/9.wav")
        path = self.make(tmp_path / "talk", "[0]: good morning.\n[1]: twice.\n[0]: no clip.\nnoise\n[1]:\n", names)
        conversations, faults = read_data([path])
        assert told(conversations) == [[(0, "good morning.")]]
        assert sorted((fault.file.name, fault.line) for fault in faults if fault.line) == [
            ("script.txt", line) for line in (2, 3, 4, 5)
        ]
        assert [fault.file.name for fault in faults if fault.line is None] == ["9.wav"]


class TestSpeakersFile:
    @pytest.mark.parametrize("form", ["speakers.yaml", "speakers.json", "list.json", "names.yml"])
    def test_several_speakers_in_one_run(self, clips: Path, form: str) -> None:
        for name in ("one", "two"):
            write(clips / "texts" / f"{name}.txt", SAID[name])
        write(clips / "texts/three.txt", SAID["three"])
        write(clips / "b/rows.csv", f'path,text\n../sounds/three.wav,"{SAID["three"]}"\n')
        ann = {"name": "ann", "speaker_id": 0, "audio_dir": "sounds", "transcript_dir": "texts"}
        ben = {"name": "ben", "speaker_id": 7, "data_path": ["b/rows.csv"], "language": "de"}
        documents: dict[str, Any] = {
            "speakers.yaml": {"speakers": [ann, ben]},
            "speakers.json": {"speakers": [ann, ben]},
            "list.json": [ann, ben],
            "names.yml": {"ann": {k: v for k, v in ann.items() if k != "name"}, "ben": ben},
        }
        path = write(clips / form, json.dumps(documents[form]))
        assert layout_of(str(path)) == ("speakers", path)
        conversations, faults = read_data([path])
        assert faults == []
        spoken_by = {(row.speaker, row.language, row.text) for row in flat(conversations)}
        assert spoken_by == {(0, "en", text) for text in SAID.values()} | {(7, "de", SAID["three"])}

    @pytest.mark.parametrize(
        ("entries", "says"),
        [
            ([{"speaker_id": 0, "data_path": "x", "voice": 1}], "unknown key 'voice'"),
            ([{"data_path": "x"}], "has no speaker_id"),
            ([{"speaker_id": True, "data_path": "x"}], "has no speaker_id"),
            ([{"speaker_id": 0, "data_path": "x", "audio_dir": "y"}], "either data_path"),
            ([{"speaker_id": 0, "data_path": "gone"}], "speaker 1: .*gone is not there"),
            ([{"speaker_id": 0, "audio_dir": "sounds"}], "without --transcript-dir"),
            ([{"speaker_id": 1, "data_path": "a"}, {"speaker_id": 1, "data_path": "b"}], "two speakers the number 1"),
            ([{"speaker_id": 1, "data_path": "s.json"}], "is a speakers file itself"),
            ([{"speaker_id": 1, "data_path": "rows.csv"}], "name the speakers 3"),
        ],
    )
    def test_what_is_wrong_is_told(self, clips: Path, entries: list[dict[str, Any]], says: str) -> None:
        store_rows(clips, ".csv", ROWS)
        path = write(clips / "s.json", json.dumps(entries))
        with pytest.raises(CsmError, match=says) as caught:
            read_data([path])
        assert str(path) in caught.value.message


class TestHuggingFace:
    def test_a_folder_of_parquet_holds_its_sounds(self, clips: Path, tmp_path: Path) -> None:
        """As the hub stores them: bytes and a path in each row; nothing but pyarrow is needed."""

        def stored(name: str) -> dict[str, Any]:
            return {"bytes": (clips / name).read_bytes(), "path": Path(name).name}

        rows = [{"audio": stored(row["path"]), "text": row["text"], "source": "5"} for row in ROWS]
        (tmp_path / "set/data").mkdir(parents=True)
        as_parquet(tmp_path / "set/data/train-00000.parquet", rows)
        conversations, faults = read_data([tmp_path / "set"])
        assert faults == []
        assert told(conversations) == [[(5, text)] for text in SAID.values()]
        for row, original in zip(flat(conversations), ROWS, strict=True):
            assert row.audio.read_bytes() == (clips / original["path"]).read_bytes()
            assert row.audio.suffix == ".wav"
            assert row.name == Path(original["path"]).stem

    @pytest.mark.slow
    def test_a_data_set_on_disk_without_torchcodec(self, clips: Path, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        columns = {
            "audio": [str(clips / row["path"]) for row in ROWS],
            "text": list(SAID.values()),
            "speaker_id": [0, 1, 0],
        }
        made = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
        made.save_to_disk(tmp_path / "plain")
        datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "splits")
        for name in ("plain", "splits"):
            assert layout_of(str(tmp_path / name))[0] == "huggingface"
            conversations, faults = read_data([tmp_path / name])
            assert (told(conversations), faults) == (
                [[pair] for pair in zip((0, 1, 0), SAID.values(), strict=True)],
                [],
            )
        datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "other")
        with pytest.raises(CsmError, match="no split called train, but test"):
            read_data([tmp_path / "other"])

    @pytest.mark.slow
    def test_the_hub_streams(self, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`load_dataset` is real but for the name, which leads to a folder here."""
        datasets = pytest.importorskip("datasets")
        rows = [
            {"audio": {"bytes": (clips / row["path"]).read_bytes(), "path": None}, "text": row["text"]} for row in ROWS
        ]
        (tmp_path / "hub").mkdir()
        made = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio())
        made.to_parquet(tmp_path / "hub/train.parquet")
        asked, load = [], datasets.load_dataset

        def local(name: str, config: str | None, **more: Any) -> Any:
            asked.append((name, config, more))
            return load("parquet", data_files={"train": str(tmp_path / "hub/train.parquet")}, **more)

        monkeypatch.setattr(datasets, "load_dataset", local)
        conversations, _ = read_data(["hf://owner/set/clean:train"], speaker=1)
        assert told(conversations) == [[(1, text)] for text in SAID.values()]
        assert asked == [("owner/set", "clean", {"split": "train", "streaming": True})]

    @pytest.mark.slow
    def test_no_network_is_one_sentence(self) -> None:
        pytest.importorskip("datasets")
        with pytest.raises(CsmError, match="hf://nobody/nothing cannot be opened"):
            read_data(["hf://nobody/nothing"], speaker=0)


class TestPreference:
    @pytest.mark.parametrize(
        ("document", "says"),
        [
            ([{"chosen": [], "rejected": []}], "preference data"),
            ([{"segments": [], "preference": 1}], "preference data"),
        ],
    )
    def test_it_is_named(self, tmp_path: Path, document: object, says: str) -> None:
        with pytest.raises(CsmError, match=says):
            read_data([write(tmp_path / "data.json", json.dumps(document))])

    def test_the_documented_sample_says_where_its_comma_stands(self, tmp_path: Path) -> None:
        turn = '    {\n      "text": "Hello!",\n      "audio_path": "~/a.wav",\n      "speaker_id": 0\n    },\n'
        path = write(tmp_path / "data.json", f"[\n  [\n{turn}{turn}  ],\n  [\n{turn}  ]\n]\n")
        with pytest.raises(CsmError, match=r"line 12, column 6, .* a comma stands before a closing bracket"):
            read_data([path])


class TestWhole:
    def test_layouts_mix_and_each_says_its_own(self, clips: Path) -> None:
        table = store_rows(clips, ".csv", ROWS[:1])
        talk = write(
            clips / "talk.json",
            json.dumps([[{"text": SAID["two"], "audio_path": "sounds/two.wav", "speaker": 8, "language": "pt_BR"}]]),
        )
        lj = TestLjSpeech().make(clips / "lj", [f"three|{SAID['three']}"])
        conversations, faults = read_data([table, talk, lj], speaker=1, language="fr")
        assert faults == []
        assert told(conversations) == [[(3, SAID["one"])], [(8, SAID["two"])], [(1, SAID["three"])]]
        assert [row.language for row in flat(conversations)] == ["fr", "pt-BR", "fr"]

    def test_parts_in_conversations(self, clips: Path) -> None:
        turn = {"text": SAID["two"], "audio_path": "sounds/two.wav", "speaker": 8, "start": 0.25, "end": 1.25}
        path = write(clips / "talk.json", json.dumps([[turn, {**turn, "start": "x"}]]))
        ((row,),), faults = read_data([path])
        assert (row.start, row.end) == (0.25, 1.25)
        assert "has the start 'x'" in faults[0].message
        assert not isinstance(load_clip(row), Fault)

    def test_formats_are_known_and_asked_for(self, clips: Path) -> None:
        turns = write(clips / "flat.json", json.dumps([{**row, "audio_path": row["path"]} for row in ROWS]))
        with pytest.raises(CsmError, match="list of turns"):
            read_data([turns])
        assert len(read_data([turns], format="table")[0]) == 3
        with pytest.raises(CsmError, match="no format 'tabel'") as caught:
            read_data([turns], format="tabel")
        assert all(name in (caught.value.hint or "") for name in FORMATS)
        with pytest.raises(CsmError, match="is the format folders"):
            read_data((), clips, clips, 0, format="table")
        with pytest.raises(CsmError, match="is a folder, and the format table is a file"):
            read_data([clips], format="table")
        with pytest.raises(CsmError, match="no tag such as en"):
            read_data([turns], format="table", language="english language")

    def test_side_by_side_transcripts_are_no_script(self, clips: Path) -> None:
        for name, text in SAID.items():
            write(clips / "sounds" / f"{name}.txt", text)
        assert layout_of(str(clips / "sounds"))[0] == "folders"
        assert len(read_data([clips / "sounds"], speaker=0)[0]) == 3

    def test_embedded_bytes_that_are_none(self, clips: Path) -> None:
        good = io.BytesIO()
        soundfile.write(good, spoken(1.5, 0), 24_000, format="FLAC")
        rows = [{"audio": good.getvalue(), "text": SAID["one"]}, {"audio": b"", "text": SAID["two"]}]
        as_parquet(clips / "rows.parquet", rows)
        conversations, faults = read_data([clips / "rows.parquet"], speaker=0)
        assert not isinstance(load_clip(flat(conversations)[0]), Fault)
        assert ["no bytes" in fault.message for fault in faults] == [True]
