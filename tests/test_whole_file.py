"""Files that appear whole, and JSON that is refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from csm.errors import CsmError
from csm.json_file import read_json
from csm.whole_file import whole_file


def test_a_file_is_swapped_in_whole_or_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    with whole_file(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), whole_file(path) as file:
        file.writelines(text.encode("ascii") for text in ("second", "sécond"))
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["one.txt"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": }', "line 1, column 7"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
        ("[1]", "holds no JSON object"),
    ],
)
def test_json_that_cannot_be_taken_in_is_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CsmError, match=says):
        read_json(tmp_path / "x.json")
