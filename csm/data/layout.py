"""Which layout a file or a folder has: told from its suffix, its first line, or what lies in it; or as the user says."""

from __future__ import annotations

from pathlib import Path

from csm.data.dialogue_folders import is_dialogues
from csm.data.hugging_face import ADDRESS, is_hugging_face
from csm.data.json_file import load_json
from csm.data.remote import is_remote
from csm.data.script import is_script
from csm.data.speakers_file import is_speakers
from csm.data.table_files import TABLES, header_separator
from csm.data.text_file import read_lines
from csm.errors import CsmError

FORMATS = {
    "conversations": "JSON, a list of conversations, each a list of turns, as csm-mlx has it",
    "dialogues": "a folder of conversation folders with NNN_speakerK_words.wav and .txt",
    "folders": "a folder with audio/ and transcripts/, or with a .txt beside each sound",
    "table": "rows with sound, text, and where there are any speaker, start, end: JSON, JSONL, CSV, Parquet, SQLite",
    "voxcpm": "JSON lines with audio, text and perhaps ref_audio",
    "ljspeech": "id|text|normalised, id|text or file|speaker|text, beside wavs/",
    "script": "a dialogue of [1]: text lines beside numbered clips",
    "speakers": "several speakers with their data, as JSON or YAML",
    "huggingface": "a data set of Hugging Face: a folder, or hf://owner/name",
}
MOST_TEXTS = 5  # in a folder that is still looked through for a script
METADATA = ("metadata.csv", "metadata.txt", "metadata.jsonl")


def layout_of(written: str, format: str | None = None) -> tuple[str, Path]:
    """The name of the layout in `FORMATS`, and the file or folder that is to be read as it.

    Raises:
        CsmError: there is nothing there, it is a pickle, it has no layout that is known, or not the one it should have.
    """
    path = Path(written)
    if ADDRESS.fullmatch(written):
        return _expected("huggingface", format), path
    if is_remote(written):
        raise CsmError(
            f"{written} is no file of data here.", "Fetch the list of clips; the sounds in it may be addresses."
        )
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise CsmError(f"{path} is a pickle, which can run code and is never read.", "Export it as JSON.")
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        raise CsmError(f"{written} is not there.")
    if path.is_dir():
        return _of_folder(path, format)
    return format or _of_file(path), path


def _expected(layout: str, format: str | None) -> str:
    if format not in (None, layout):
        raise CsmError(f"An address hf://... is the format {layout}, not {format}.", "Leave --format out.")
    return layout


def _of_folder(path: Path, format: str | None) -> tuple[str, Path]:
    if format in ("folders", "dialogues", "huggingface"):
        return format, path
    inside = _listed_in(path)
    if format is not None:
        if len(inside) != 1:
            raise CsmError(f"{path} is a folder, and the format {format} is a file.", "Name the file.")
        return format, inside[0]
    if is_hugging_face(path):
        return "huggingface", path
    if (path / "audio").is_dir() and (path / "transcripts").is_dir():
        return "folders", path
    if len(inside) == 1:
        return _of_file(inside[0]), inside[0]
    return "dialogues" if is_dialogues(path) else "folders", path


def _listed_in(path: Path) -> list[Path]:
    """The file of a folder that lists its clips: its metadata, or the one text file that is a script."""
    if metadata := [path / name for name in METADATA if (path / name).is_file()]:
        return metadata
    texts = sorted(path.glob("*.txt"))
    if len(texts) > MOST_TEXTS:
        return []
    scripts = []
    for text in texts:
        try:
            lines = [line for line in read_lines(text) if line.strip()]
        except CsmError:
            continue  # a transcript that cannot be read is told by who reads the folder
        if lines and all(map(is_script, lines)):
            scripts.append(text)
    return scripts if len(scripts) == 1 else []


def _of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return "speakers"
    if suffix == ".json":
        return _of_json(path)
    if suffix in (".csv", ".tsv", ".psv", ".txt", ".list", ".lst"):
        return _of_lines(path)
    if suffix in TABLES:
        return "table"
    raise CsmError(f"{path} is no data that can be read.", f"Readable are .yaml, {', '.join(TABLES)}, and folders.")


def _of_json(path: Path) -> str:
    document = load_json(path)[1]
    if is_speakers(document):
        return "speakers"
    entries = document if isinstance(document, list) else []
    keys = {key for entry in entries if isinstance(entry, dict) for key in entry}
    flat = bool(keys) and not any(isinstance(entry, list) for entry in entries)
    preferences = keys & {"chosen", "rejected", "segments", "preference"}
    columns = isinstance(document, dict) and {"text", "path"} <= document.keys()
    return "table" if columns or (flat and not preferences and "audio_path" not in keys) else "conversations"


def _of_lines(path: Path) -> str:
    line = next((line for line in read_lines(path) if line.strip()), "")
    if is_script(line):
        return "script"
    if header_separator(line):
        return "table"
    if "|" in line:
        return "ljspeech"
    if not line:
        raise CsmError(f"{path} is an empty file.")
    raise CsmError(
        f"{path} is no data that can be read: its first line names no columns.",
        "It may begin as path,text,speaker, or hold lines id|text, file|speaker|text or [1]: text.",
    )
