"""The Python API told something of a wrong kind: a sentence that names it, never a TypeError."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_run import CPU

from csm.errors import CsmError
from csm.generator import Generator, load_generator
from csm.model_folder import open_folder
from csm.segment import Segment
from csm.training.finetuner import CSMFineTuner


@pytest.fixture(scope="module")
def generator(toy_folder: Path) -> Generator:
    return load_generator(toy_folder, "cpu", threads=1)


CONTEXTS: list[tuple[Any, str]] = [
    (None, "context is None; it is a list of Segments"),
    ("hello.", "context is 'hello.'; it is a list"),
    (Segment("hello.", 0), "it is a list of Segments"),
    (["hello."], "context[0] is 'hello.'; it is a Segment"),
    ([Segment("hello.", 0), {"text": "x"}], "context[1] is {'text': 'x'}; it is a Segment"),
    ([Segment(7, 0)], "the text of context[0] is 7; it is a string"),  # type: ignore[arg-type]
    ([Segment("hello.", "0")], "the speaker of context[0] is '0'; it is a whole number"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("context", "says"), CONTEXTS)
def test_a_context_of_a_wrong_kind(generator: Generator, context: Any, says: str) -> None:
    for call in (generator.speak, generator.generate):
        with pytest.raises(CsmError) as caught:
            call("hello.", 0, context=context)
        assert says in caught.value.message


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"text": None}, "the text of what is to be said is None"),
        ({"speaker": "Anna"}, "the speaker of what is to be said is 'Anna'"),
        ({"speaker": -1}, "the speaker of what is to be said is -1"),
        ({"temperature": "hot"}, "temperature is 'hot'; it is a number"),
        ({"top_k": 2.5}, "top_k is 2.5; it is a whole number"),
        ({"seed": "seven"}, "seed is 'seven'; it is a whole number"),
        ({"max_audio_length_ms": "long"}, "max_audio_length_ms is 'long'; it is a number"),
    ],
)
def test_what_to_say_of_a_wrong_kind(generator: Generator, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(CsmError) as caught:
        generator.speak(**{"text": "hello.", "speaker": 0, **wrong})
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("clips/", "the data are 'clips/'; they are a list of Segments and Conversations"),
        (None, "the data are None"),
        ({"a": 1}, "the data are {'a': 1}"),
        ([["hello.", 0]], "train_dataset[0][0] is 'hello.'; it is a Segment"),
        (["hello."], "train_dataset[0] is 'hello.'; it is a list of Segments"),
        ([Segment("hello.", 1.5)], "the speaker of train_dataset[0][0] is 1.5"),  # type: ignore[arg-type]
    ],
)
def test_data_of_a_wrong_kind(toy_folder: Path, tmp_path: Path, data: Any, says: str) -> None:
    tuner = CSMFineTuner(toy_folder, tmp_path / "run", backend=CPU, cache=tmp_path / "cache")
    with pytest.raises(CsmError) as caught:
        tuner.train(data)
    assert says in caught.value.message
    assert not (tmp_path / "run").exists()


def test_paths_of_a_wrong_kind(toy_folder: Path) -> None:
    with pytest.raises(CsmError, match="a model is named by a string or a path, not None"):
        open_folder(None)  # type: ignore[arg-type]
    with pytest.raises(CsmError, match="output_dir is None; it is a path"):
        CSMFineTuner(toy_folder, None, backend=CPU)  # type: ignore[arg-type]
