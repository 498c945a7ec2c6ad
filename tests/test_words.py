"""The aligner's reading of written words, and what is said where a recogniser is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from csm.audio import read_audio
from csm.errors import CsmError
from evaluation import aligner, recogniser
from evaluation.aligner import PhoneAligner, require_language
from evaluation.alignment_process import phones_of, spoken_words
from evaluation.recogniser import Recogniser

VOICE = Path(__file__).parents[1] / "examples" / "voice"


@pytest.mark.parametrize(
    ("written", "spoken"),
    [("5,", ["five"]), ("well-known", ["well", "known"]), ("PBX!", ["p", "b", "x"]), ("—", []), ("it’s", ["it's"]),
     ("'tis'", ["tis"]), ("café", ["cafe"]), ("$3", ["three", "dollars"])],
)  # fmt: skip
def test_written_words_are_read_aloud(written: str, spoken: list[str]) -> None:
    assert spoken_words(written) == spoken


def test_words_outside_the_dictionary_get_phones() -> None:
    assert phones_of("shpock") == "SH P AA K"
    assert phones_of("brr") == "B IY AA R AA R"


def test_the_aligner_answers_for_every_word_or_says_why_not() -> None:
    if importlib.util.find_spec("pocketsphinx") is None:
        pytest.skip("pocketsphinx is not installed")
    wave, rate = read_audio(VOICE / "audio" / "001.flac")
    text = (VOICE / "transcripts" / "001.txt").read_text()
    with PhoneAligner() as align:
        found = align(wave, rate, f"— {text}", "en-GB")
        assert isinstance(found, list)
        assert [word for word, _, _ in found] == ["—", *text.split()]
        times = [time for _, start, end in found for time in (start, end)]
        assert times == sorted(times)
        assert times[-1] == pytest.approx(len(wave) / rate, abs=0.3)
        lost = "its text could not be found in its sound"
        assert align(wave, rate, text.replace(" ", " unprecedented bureaucracy ", 1), "en") == lost
        assert align(wave[:3000], rate, text, "en") == lost
        assert align(wave, rate, "— !", "en") == "its text has no word that can be spoken"
        assert isinstance(align(wave, rate, text, "en"), list), "one failure does not spoil the next clip"
    with pytest.raises(CsmError, match="knows English words only") as error:
        require_language("de")
    assert "Montreal Forced Aligner" in str(error.value)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module, make, extra in ((aligner, PhoneAligner, "[align]"), (recogniser, Recogniser, "[asr]")):
        with monkeypatch.context() as patch:
            patch.setattr(module.importlib.util, "find_spec", lambda name: None)
            with pytest.raises(CsmError, match="not installed") as error:
                make()
            assert extra in str(error.value)


def test_a_recogniser_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    if importlib.util.find_spec("faster_whisper") is None:
        pytest.skip("faster-whisper is not installed")
    for model, language, says in (
        (tmp_path, "en", "holds no model.bin"),
        ("giant", "en", "There is no recogniser giant"),
        (None, "de", "No recogniser for the language 'de' is named"),
        ("tiny.en", "de", "knows English alone"),
    ):
        with pytest.raises(CsmError, match=says):
            Recogniser(model, language)
