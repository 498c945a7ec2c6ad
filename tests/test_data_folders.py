"""Layouts become conversations of rows: folders, JSON, and what `--data-path` may name."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from csm.data.conversations import read_context, read_conversations
from csm.data.faults import Fault, render, require_usable
from csm.data.folders import read_folders
from csm.data.manifest import read_data
from csm.data.row import Row, natural_key
from csm.errors import CsmError


def write(path: Path, content: str | bytes = b"sound") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "audio", tmp_path / "transcripts"


class TestFolders:
    def test_same_stems_in_subfolders_keep_their_own_text(self, pair: tuple[Path, Path]) -> None:
        audio, texts = pair
        for name in ("x", "a/x", "b/x", "a/b/x"):
            write(audio / f"{name}.wav")
            write(texts / f"{name}.txt", f"words of {name}")
        rows, faults = read_folders(audio, texts, 5)
        assert faults == []
        assert {row.name: row.text for row in rows} == {n: f"words of {n}" for n in ("x", "a/x", "b/x", "a/b/x")}
        for row in rows:
            assert row.audio == audio / f"{row.name}.wav"
            assert (row.source, row.line, row.speaker) == (texts / f"{row.name}.txt", None, 5)

    def test_order_is_natural(self, pair: tuple[Path, Path]) -> None:
        for name in ("clip10", "clip2", "clip1", "set10/a", "set9/b", "set9/a"):
            write(pair[0] / f"{name}.flac")
            write(pair[1] / f"{name}.txt", "hello")
        rows, _ = read_folders(*pair, 0)
        assert [row.name for row in rows] == ["clip1", "clip2", "clip10", "set9/a", "set9/b", "set10/a"]

    @pytest.mark.parametrize(("audio_form", "text_form"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
    def test_accents_pair_however_composed(self, pair: tuple[Path, Path], audio_form: str, text_form: str) -> None:
        sound = write(pair[0] / unicodedata.normalize(audio_form, "éte\u0301/naïve.mp3"))
        write(pair[1] / unicodedata.normalize(text_form, "éte\u0301/naïve.txt"), unicodedata.normalize("NFD", "là-bas"))
        rows, faults = read_folders(*pair, 0)
        assert faults == []
        assert [(row.name, row.text, row.audio) for row in rows] == [("été/naïve", "là-bas", sound)]
        assert unicodedata.is_normalized("NFC", rows[0].name + rows[0].text)

    @pytest.mark.parametrize(
        "content",
        [
            b"Good day to you.",
            b"\xef\xbb\xbfGood day to you.\r\n",
            b"Good day\r\nto you.\r\n\r\n",
            b"\rGood day\rto you.",
            "\n\n  Good\u00a0day\u2003 to\tyou.\u2028".encode(),
        ],
    )
    def test_marks_and_line_ends_are_not_text(self, pair: tuple[Path, Path], content: bytes) -> None:
        write(pair[0] / "x.wav")
        write(pair[1] / "x.txt", content)
        assert [row.text for row in read_folders(*pair, 0)[0]] == ["Good day to you."]

    def test_every_fault_is_named_once_and_no_sound_file_else(self, pair: tuple[Path, Path]) -> None:
        audio, texts = pair
        write(audio / "good.wav")
        write(texts / "good.txt", "fine words")
        write(audio / "lonely.wav")
        write(texts / "orphan.txt", "nobody says this")
        for name, content in {
            "blank": b" \r\n\t",
            "mark": b"\xef\xbb\xbf",
            "latin": "caf\xe9".encode("latin-1"),
            "utf16": "wide".encode("utf-16"),
            "utf16le": "wide".encode("utf-16-le"),
        }.items():
            write(audio / f"{name}.wav")
            write(texts / f"{name}.txt", content)
        write(audio / "twice.wav")
        write(audio / "twice.flac")
        write(texts / "twice.txt", "which one")
        rows, faults = read_folders(audio, texts, 0)
        assert [row.name for row in rows] == ["good"]
        lines = render(faults).splitlines()
        expected = {
            audio / "lonely.wav": "no transcript",
            texts / "orphan.txt": "no sound file",
            texts / "blank.txt": "empty text",
            texts / "mark.txt": "empty text",
            texts / "latin.txt": "not UTF-8",
            texts / "utf16.txt": "not UTF-8",
            texts / "utf16le.txt": "UTF-16",
            audio / "twice.flac": "share one name",
        }
        assert len(lines) == len(expected)
        for file, problem in expected.items():
            (line,) = [line for line in lines if line.startswith(f"{file} ")]
            assert problem in line
            assert line.endswith(".")
        assert str(audio / "twice.wav") in render(faults)
        assert "good" not in render(faults)

    def test_two_spellings_of_one_name_are_ambiguous(self, pair: tuple[Path, Path]) -> None:
        for form in ("NFC", "NFD"):
            write(pair[0] / unicodedata.normalize(form, "é.wav"))
        write(pair[1] / "é.txt", "words")
        rows, faults = read_folders(*pair, 0)
        assert rows == []
        assert len(faults) == 1
        assert "share one name" in faults[0].text

    def test_suffixes_in_capitals_inner_dots_and_hidden_files(self, pair: tuple[Path, Path]) -> None:
        write(pair[0] / "take.1.WAV")
        write(pair[1] / "take.1.TXT", "words")
        write(pair[0] / "._take.1.WAV")
        write(pair[0] / ".trash/old.wav")
        write(pair[0] / "notes.pdf")
        rows, faults = read_folders(*pair, 0)
        assert [row.name for row in rows] == ["take.1"]
        assert faults == []

    def test_linked_folders_are_read_and_loops_end(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        write(tmp_path / "elsewhere/x.wav")
        write(pair[1] / "more/x.txt", "words")
        pair[0].mkdir()
        (pair[0] / "more").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/again").symlink_to(pair[0])
        rows, faults = read_folders(*pair, 0)
        assert [row.name for row in rows] == ["more/x"]
        assert faults == []

    def test_names_that_are_not_unicode_are_faults(self, pair: tuple[Path, Path]) -> None:
        write(pair[0] / "good.wav")
        write(pair[1] / "good.txt", "words")
        write(pair[0] / "caf\udce9.wav")
        write(pair[1] / "caf\udce9.txt", "words")
        rows, faults = read_folders(*pair, 0)
        assert [row.name for row in rows] == ["good"]
        assert len(faults) == 2
        assert r"caf\udce9.wav has a name that is not UTF-8" in render(faults).encode("utf-8").decode()

    def test_a_transcript_that_cannot_be_read_is_a_fault(self, pair: tuple[Path, Path]) -> None:
        write(pair[0] / "x.wav")
        pair[1].mkdir()
        (pair[1] / "x.txt").symlink_to(pair[1] / "nowhere.txt")
        rows, faults = read_folders(*pair, 0)
        assert rows == []
        assert "cannot be read (No such file or directory)" in faults[0].text

    @pytest.mark.parametrize(
        ("make", "named", "told"),
        [
            ([], "audio", "is not there"),
            (["audio/x.wav"], "transcripts", "is not there"),
            (["audio/x.amr", "transcripts/x.txt"], "audio", "holds no sound files (looked for .wav, .flac"),
            (["audio/x.wav", "transcripts/x.md"], "transcripts", "holds no transcripts (looked for .txt"),
            (["audio", "transcripts/x.txt"], "audio", "is not a folder"),
        ],
    )
    def test_folders_that_cannot_do(
        self, pair: tuple[Path, Path], tmp_path: Path, make: list[str], named: str, told: str
    ) -> None:
        for name in make:
            write(tmp_path / name, "words")
        with pytest.raises(CsmError) as caught:
            read_folders(*pair, 0)
        assert caught.value.message.startswith(f"{tmp_path / named} {told}")
        assert caught.value.message.count("\n") == 0


@given(st.lists(st.integers(0, 10**12), min_size=1, unique=True))
def test_natural_order_is_the_order_of_numbers(numbers: list[int]) -> None:
    names = sorted((f"a/clip{n}.x" for n in numbers), key=natural_key)
    assert names == [f"a/clip{n}.x" for n in sorted(numbers)]


@given(st.lists(st.text(max_size=6), max_size=5))
def test_natural_order_compares_any_names(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


class TestFaults:
    def test_render_sorts_by_file_and_line_and_names_each_once(self) -> None:
        faults = [
            Fault(Path("b10.wav"), "is silent"),
            Fault(Path("b9.wav"), "is clipped"),
            Fault(Path("a.json"), "is odd", 12),
            Fault(Path("a.json"), "is odd", 9),
            Fault(Path("b10.wav"), "is silent"),
        ]
        assert render(faults).splitlines() == [
            "a.json, line 9, is odd.",
            "a.json, line 12, is odd.",
            "b9.wav is clipped.",
            "b10.wav is silent.",
        ]

    def test_a_name_with_a_line_break_stays_on_one_line(self) -> None:
        assert render([Fault(Path("a\nb\x1b.wav"), "is silent")]) == r"a\nb\x1b.wav is silent."

    def test_nothing_usable_lists_the_first_faults(self) -> None:
        faults = [Fault(Path(f"c{i}.wav"), "is silent") for i in range(12)]
        with pytest.raises(CsmError) as caught:
            require_usable(0, faults)
        hint = caught.value.hint or ""
        assert [f"c{i}.wav is silent." in hint for i in range(12)] == [True] * 5 + [False] * 7
        assert "7 more" in hint
        require_usable(1, faults)
        require_usable(1, [], strict=True)
        with pytest.raises(CsmError, match="12 faults"):
            require_usable(1, faults, strict=True)


def turn(text: str = "Hello there", audio: str = "x.wav", **more: object) -> dict[str, object]:
    return {"text": text, "audio_path": audio, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("x", "y", "deep/z"):
        write(tmp_path / "sounds" / f"{name}.wav")
    write(tmp_path / "x.wav")
    return tmp_path


def store(folder: Path, document: object, indent: int | None = 1) -> Path:
    return write(folder / "data.json", json.dumps(document, indent=indent))


class TestConversations:
    def test_reads_turns_in_order_with_file_and_line(self, folder: Path) -> None:
        path = write(
            folder / "data.json",
            "\ufeff"
            + """[
  [
    {"text": " Hello,\\n you! ", "audio_path": "./sounds/x.wav", "speaker": 0},
    {
      "text": "[{ \\"odd\\" }]", "audio_path": "sounds/deep/../y.wav", "speaker_id": 9, "extra": [[], {}]
    }
  ], [{"text": "Bye", "audio_path": "sounds/deep/z.wav", "speaker": 3, "speaker_id": 3}]
]""",
        )
        conversations, faults = read_conversations(path)
        assert faults == []
        assert [[(r.text, r.speaker, r.line, r.name) for r in c] for c in conversations] == [
            [("Hello, you!", 0, 3, "sounds/x"), ('[{ "odd" }]', 9, 4, "sounds/y")],
            [("Bye", 3, 7, "sounds/deep/z")],
        ]
        assert all(row.source == path and row.audio.is_file() for c in conversations for row in c)

    def test_home_and_absolute_paths_and_composed_accents(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(folder / "home"))
        at_home = write(folder / "home/a.wav")
        accented = write(folder / unicodedata.normalize("NFD", "é.wav"))
        document = [[turn(audio="~/a.wav"), turn(audio=str(folder / "sounds/x.wav")), turn(audio="\u00e9.wav")]]
        ((first, second, third),), faults = read_conversations(store(folder, document), 1)
        assert faults == []
        assert first.audio == at_home
        assert second.audio == folder / "sounds/x.wav"
        assert third.audio == accented
        assert {first.speaker, second.speaker, third.speaker} == {1}

    def test_the_data_wins_over_the_default_speaker(self, folder: Path) -> None:
        document = [[turn(speaker=0), turn(), turn(speaker=None, speaker_id=4)]]
        ((first, second, third),), _ = read_conversations(store(folder, document), 7)
        assert (first.speaker, second.speaker, third.speaker) == (0, 7, 4)

    @pytest.mark.parametrize(
        ("bad", "told"),
        [
            (turn(speaker=1, speaker_id=2), "names two speakers, speaker 1 and speaker_id 2"),
            (turn(), "names no speaker"),
            (turn(speaker="1"), "speaker that is not a whole number"),
            (turn(speaker=True), "speaker that is not a whole number"),
            (turn(speaker=1.5), "speaker that is not a whole number"),
            (turn(speaker_id=-1), "speaker_id that is not a whole number"),
            ({"audio_path": "x.wav", "speaker": 1}, "has no text"),
            ({"text": "Hi", "speaker": 1}, "has no audio_path"),
            ({"text": 5, "audio_path": "x.wav", "speaker": 1}, "text that is not a string"),
            ("Hi", "is not of the form"),
        ],
    )
    def test_a_turn_of_wrong_form_is_named(self, folder: Path, bad: object, told: str) -> None:
        good = json.dumps(turn(speaker=0))
        path = write(folder / "data.json", f"[[{good}],\r\n[{good},\r\n{json.dumps(bad)}\r\n]]")
        with pytest.raises(CsmError) as caught:
            read_conversations(path)
        assert caught.value.message.startswith(f"{path}, line 3, conversation 2, turn 2, ")
        assert told in caught.value.message

    def test_several_wrong_turns_are_counted(self, folder: Path) -> None:
        with pytest.raises(CsmError) as caught:
            read_conversations(store(folder, [[turn(), turn(speaker=1)], "no", [], [turn()]]))
        assert "conversation 1, turn 1" in caught.value.message
        assert "3 more" in (caught.value.hint or "")

    def test_empty_text_and_missing_sound_leave_the_turn_out(self, folder: Path) -> None:
        document = [
            [turn(speaker=0), turn(" ", speaker=1), turn("kept", speaker=0)],
            [turn(audio="gone.wav", speaker=1)],
            [turn(audio="sounds", speaker=1), turn("half \ud800", speaker=2), turn("kept too", speaker=3)],
        ]
        path = store(folder, document)
        conversations, faults = read_conversations(path)
        assert [[row.text for row in c] for c in conversations] == [["Hello there", "kept"], ["kept too"]]
        lines = render(faults).splitlines()
        assert len(lines) == 4
        for line, place in zip(
            lines, ("2 of conversation 1", "1 of conversation 2", "1 of conversation 3"), strict=False
        ):
            assert line.startswith(f"{path}, line ")
            assert line.endswith(f"turn {place} is left out.")
        assert "gone.wav" in lines[1]

    @pytest.mark.parametrize(
        ("text", "line", "column", "told"),
        [
            ('[\n [\n  {"text": "a",}\n ]\n]', 3, 15, "comma"),
            ('[\n [{"text": "a"},\n ]\n]', 2, 16, "comma"),
            ('[[{"text": "a"}],\n\n]', 1, 17, "comma"),
            ("[[{'text': 1}]]", 1, 4, "double quotes"),
            ('[[{"text": "a"}]] x', 1, 19, "extra data"),
            ('[[{"text": "a"', 1, 15, "delimiter"),
        ],
    )
    def test_invalid_json_is_placed(self, folder: Path, text: str, line: int, column: int, told: str) -> None:
        path = write(folder / "data.json", text)
        with pytest.raises(CsmError) as caught:
            read_conversations(path)
        assert caught.value.message.startswith(f"{path}, line {line}, column {column}, is not valid JSON: ")
        assert told in caught.value.message
        assert caught.value.hint
        assert ("Delete that comma" in caught.value.hint) == (told == "comma")

    @pytest.mark.parametrize(
        ("document", "told"),
        [
            ([{"chosen": [turn()], "rejected": [turn()]}], "preference data (chosen"),
            ([{"segments": [turn()], "preference": 1}], "preference data (segments"),
            ({"chosen": [turn()], "rejected": [turn()]}, "preference data (chosen"),
            ([turn(speaker=1)], "is a list of turns"),
            ({"text": "a"}, "is not a list of conversations"),
            ("words", "is not a list of conversations"),
            (None, "is not a list of conversations"),
            ([], "holds no conversations"),
            ([[]], "conversation 1, has no turns"),
            ([3], "conversation 1, is not a list of turns"),
        ],
    )
    def test_other_forms_are_refused(self, folder: Path, document: object, told: str) -> None:
        with pytest.raises(CsmError) as caught:
            read_conversations(store(folder, document))
        assert told in caught.value.message
        assert str(folder / "data.json") in caught.value.message

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "is an empty file"),
            (b"\xef\xbb\xbf \n", "is an empty file"),
            (b"\x80\x04\x95", "is not UTF-8"),
            ("[[]]".encode("utf-16"), "is not UTF-8"),
            (b"[" * 200_000, "nested too deeply"),
            (b"[[" + b"9" * 5000 + b"]]", "number that cannot be read"),
        ],
    )
    def test_files_that_are_no_json(self, folder: Path, content: bytes, told: str) -> None:
        with pytest.raises(CsmError, match=told):
            read_conversations(write(folder / "data.json", content))

    def test_a_missing_file_and_a_folder(self, folder: Path) -> None:
        with pytest.raises(CsmError, match=r"none\.json is not there"):
            read_conversations(folder / "none.json")
        with pytest.raises(CsmError, match="cannot be read"):
            read_conversations(folder)

    def test_a_context_is_one_conversation_in_either_form(self, folder: Path) -> None:
        turns = [turn("one", speaker=0), turn("two", speaker=1)]
        nested, flat = read_context(store(folder, [turns], None)), read_context(store(folder, turns, None))
        assert nested == flat
        assert [(row.text, row.speaker, row.line) for row in flat] == [("one", 0, 1), ("two", 1, 1)]
        assert [row.line for row in read_context(store(folder, turns))] == [2, 7]

    @pytest.mark.parametrize(
        ("document", "told"),
        [
            ([[turn(speaker=0)], [turn(speaker=0)]], "holds 2 conversations"),
            ([turn(" ", speaker=0), turn(speaker=0)], "has an empty text"),
            ([turn(audio="gone.wav", speaker=0)], "gone.wav"),
            ([turn()], "names no speaker"),
            ([[]], "has no turns"),
        ],
    )
    def test_a_context_is_whole_or_refused(self, folder: Path, document: object, told: str) -> None:
        with pytest.raises(CsmError, match=told):
            read_context(store(folder, document))


KEYS = st.sampled_from(["text", "audio_path", "speaker", "speaker_id", "chosen", "rejected", "segments", "preference"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(
        ["x.wav", "~", "~\0", "~nobody/x.wav", ".", "/", "a\0b", "x.wav/y", "y" * 5000, "\ud800", "~\ud800"]
    ),
)
TURNS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("text", "audio_path", "speaker", "speaker_id", "more"), LEAVES)
)
DOCUMENTS = st.one_of(
    st.lists(st.lists(TURNS, max_size=3), max_size=3),
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)),
)


def assert_tells(path: Path) -> None:
    for read in (
        lambda: read_conversations(path),
        lambda: read_conversations(path, 0),
        lambda: (read_context(path), []),
    ):
        try:
            found, faults = read()
        except CsmError as error:
            told = str(error)
        else:
            told = render(faults)
            assert all(isinstance(row, Row) for c in found for row in (c if isinstance(c, list) else [c]))
        told.encode("utf-8")


FUZZ = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(DOCUMENTS)
@example([[turn("\ud800", "x.wav", speaker=1)]])
@example([[turn("a", "~\0/x.wav", speaker=1)]])
def test_no_document_raises_anything_but_a_sentence(folder: Path, document: object) -> None:
    assert_tells(store(folder, document))


@FUZZ
@given(st.binary(max_size=60) | st.text("[]{}\",: \n\\tesxtaudio_path0123'", max_size=60).map(str.encode))
def test_no_bytes_raise_anything_but_a_sentence(folder: Path, content: bytes) -> None:
    assert_tells(write(folder / "data.json", content))


class TestData:
    def fill(self, folder: Path, audio: str, transcripts: str) -> Path:
        for name in ("a", "sub/b"):
            write(folder / audio / f"{name}.wav")
            write(folder / transcripts / f"{name}.txt", f"words of {name}")
        return folder

    @pytest.mark.parametrize(("audio", "transcripts"), [("audio", "transcripts"), (".", ".")])
    def test_folders_give_conversations_of_one_turn(self, tmp_path: Path, audio: str, transcripts: str) -> None:
        place = self.fill(tmp_path / "voice", audio, transcripts)
        conversations, faults = read_data([place], speaker=3)
        assert [[(r.name, r.text, r.speaker) for r in c] for c in conversations] == [
            [("a", "words of a", 3)],
            [("sub/b", "words of sub/b", 3)],
        ]
        assert faults == []
        if audio == "audio":
            assert read_data((), place / "audio", place / "transcripts", 3) == (conversations, faults)

    def test_several_paths_are_joined_in_their_order(self, folder: Path) -> None:
        path = store(folder, [[turn("one", speaker=0), turn("two", speaker=1), turn(" ", speaker=1)]])
        place = self.fill(folder / "voice", "audio", "transcripts")
        write(place / "audio/lonely.wav")
        conversations, faults = read_data([path, place], speaker=5)
        assert [[row.speaker for row in c] for c in conversations] == [[0, 1], [5], [5]]
        assert len(faults) == 2

    def test_what_cannot_be_read_is_told(self, folder: Path) -> None:
        place = self.fill(folder / "voice", "audio", "transcripts")
        cases = [
            ({"paths": [write(folder / "data.pkl")]}, "is a pickle"),
            ({"paths": [write(folder / "data.PICKLE")]}, "is a pickle"),
            ({"paths": [folder / "gone"]}, "gone is not there"),
            ({"paths": [write(folder / "data.csv")]}, "is no data that can be read"),
            ({"paths": [place]}, "does not say who speaks"),
            ({"paths": [place], "audio_dir": place, "transcript_dir": place}, "Both"),
            ({}, "No data is named"),
            ({"audio_dir": place}, "without --transcript-dir"),
            ({"transcript_dir": place}, "without --audio-dir"),
        ]
        for arguments, told in cases:
            with pytest.raises(CsmError, match=told):
                read_data(**arguments)  # type: ignore[arg-type]

    def test_nothing_usable_is_an_error_that_lists_why(self, folder: Path) -> None:
        write(folder / "voice/audio/a.wav")
        write(folder / "voice/transcripts/b.txt", "words")
        with pytest.raises(CsmError, match="Nothing in the data") as caught:
            read_data([folder / "voice"], speaker=0)
        assert "a.wav has no transcript" in (caught.value.hint or "")
        assert "b.txt has no sound file" in (caught.value.hint or "")
