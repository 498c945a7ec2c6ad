"""The embedded model's folder, its spectral codec, both faces of it, and the example voice."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from csm.audio import load_wave
from csm.codec import Codec, load_codec
from csm.errors import CsmError
from csm.tiny_codec import BANDS, N_FFT, griffin_lim, log_mel, register_with_transformers

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "csm" / "assets" / "csm-tiny"
VOICE = ROOT / "examples" / "voice"
TABLE = "depth_decoder.model.embed_tokens.weight"
CLIPS = ["001", "020", "047", "072"]


def codec_tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("codec_model.")]  # noqa: SIM118
        return {name.removeprefix("codec_model."): file.get_tensor(name) for name in names}


@pytest.fixture(scope="module")
def codec_config() -> dict[str, Any]:
    return json.loads((FOLDER / "config.json").read_text())["codec_config"]


@pytest.fixture(scope="module")
def codec(codec_config: dict[str, Any]) -> Codec:
    return load_codec(codec_config, codec_tensors(FOLDER), num_codebooks=8)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import CsmForConditionalGeneration

    register_with_transformers()
    return CsmForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


def clip(name: str) -> np.ndarray:
    return load_wave(VOICE / "audio" / f"{name}.flac")


# The folder


def test_the_folder_is_whole_and_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
        "chat_template.jinja", "generation_config.json", "recommended.json", "README.md",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 40e6


def test_the_tied_audio_table_is_saved_once_under_transformers_name() -> None:
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert [name for name, shape in shapes.items() if shape == (8 * 1024, 256)] == [TABLE]


def test_the_recommendation_names_its_schema() -> None:
    values = json.loads((FOLDER / "recommended.json").read_text())
    assert values["schema_version"] == 1
    assert values["speakers"] == list(range(8))
    assert set(values["presets"]["voice-adapt"]) <= {"learning_rate", "epochs", "batch_size"}


def test_the_tokenizer_adds_both_ends_and_spells() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    letters = [tokenizer.token_to_id(c) for c in "hello there."]
    expected = [tokenizer.token_to_id("<bos>"), tokenizer.token_to_id("[3]"), *letters, tokenizer.token_to_id("<eos>")]
    assert tokenizer.encode("[3]hello there.").ids == expected
    assert None not in expected
    assert tokenizer.encode("[3]Hello  there.").ids == expected
    assert [len(tokenizer.encode(f"[{n}]").ids) for n in range(16)] == [3] * 16
    assert tokenizer.token_to_id("<unk>") in tokenizer.encode("[3]4 eggs").ids


# The codec


@pytest.mark.parametrize("samples", [1, 1920, 1921, 24_000])
def test_encoding_pads_to_whole_frames_and_never_says_the_end(codec: Codec, samples: int) -> None:
    for wave in (clip("001")[:samples], np.zeros(samples, np.float32)):
        codes = codec.encode(wave)
        assert codes.shape == (8, -(-samples // 1920))
        assert codes.min() >= 1
        assert codes.max() <= 1023
        assert codec.decode(codes).shape == (codes.shape[1] * 1920,)


@pytest.mark.parametrize("name", CLIPS)
def test_a_round_trip_keeps_the_spectrum(codec: Codec, name: str) -> None:
    """What is heard stays: the log mel of the sound that comes back follows the one that went in, and no other's."""
    wave = clip(name)
    back = codec.decode(codec.encode(wave))[: len(wave)]
    assert spectral_likeness(wave, back) > 0.9
    assert spectral_likeness(wave, np.roll(back, 7200)) < 0.4
    assert np.abs(back).max() < 1
    assert -9 < 20 * np.log10(back.std() / wave.std()) < 0  # the context decoder is cautious: about 5 dB quieter


def spectral_likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two waves' log mels over time and bands, after each band's mean is gone."""
    mels = [log_mel(torch.from_numpy(np.ascontiguousarray(wave))).numpy() for wave in (one, other)]
    mels = [mel - mel.mean(0) for mel in mels]
    return float(np.corrcoef(mels[0].ravel(), mels[1].ravel())[0, 1])


def test_decoding_is_a_function_of_the_codes(codec: Codec) -> None:
    codes = codec.encode(clip("001"))
    torch.manual_seed(1)
    first = codec.decode(codes)
    torch.manual_seed(2)
    np.testing.assert_array_equal(codec.decode(codes), first)


def test_an_end_code_inside_is_read_as_the_lowest_sound(codec: Codec) -> None:
    codes = codec.encode(clip("001"))[:, :6]
    codes[3, 2] = 0
    lowest = codes.copy()
    lowest[3, 2] = 1
    np.testing.assert_array_equal(codec.decode(codes), codec.decode(lowest))


def test_the_log_mel_is_what_its_definition_says() -> None:
    """Each band against a sum over a plain discrete Fourier transform of one window, at three places."""
    wave = clip("001")
    mel = log_mel(torch.from_numpy(wave)).numpy()
    edges = 700 * (10 ** (np.linspace(*(2595 * np.log10(1 + hz / 700) for hz in (30, 12_000)), BANDS + 2) / 2595) - 1)
    hertz = np.arange(N_FFT // 2 + 1) * 24_000 / N_FFT
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    for frame in (20, 75, 120):
        start = frame * 240 - 392
        size = np.abs(np.fft.rfft(wave[start : start + N_FFT] * window))
        for band in (3, 30, 70):
            triangle = np.interp(hertz, edges[band : band + 3], [0, 1, 0])
            expected = np.log(max(1e-3, (triangle * size).sum() / triangle.sum()))
            assert mel[frame, band] == pytest.approx(expected, abs=1e-3)


def test_griffin_lim_gives_the_spectrum_asked_for_and_momentum_helps() -> None:
    mel = log_mel(torch.from_numpy(clip("020")))
    loud = mel > -4

    def miss(**settings: Any) -> float:
        return float((log_mel(griffin_lim(mel, **settings)) - mel)[loud].abs().mean())

    assert miss(iterations=24) < miss(iterations=24, momentum=0.0) < 0.2 * miss(iterations=0)


def test_three_seconds_are_decoded_in_a_tenth_of_that(codec: Codec) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = min(_timed(codec, np.full((8, 38), 5)) for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    assert seconds < 0.3


def _timed(codec: Codec, codes: np.ndarray) -> float:
    began = time.perf_counter()
    codec.decode(codes)
    return time.perf_counter() - began


@pytest.mark.parametrize(
    ("change", "codebooks", "sentence"),
    [
        ({"sampling_rate": 16_000}, 8, "16000 Hz"),
        ({"codebook_size": "1024"}, 8, "codebook_size = '1024'"),
        ({"dimension": 128}, 8, r"first is \[1023, 160\], wanted \[1023, 128\]"),
        ({}, 4, "4 codebooks a frame; its codec has 8"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    codec_config: dict[str, Any], change: dict, codebooks: int, sentence: str
) -> None:
    with pytest.raises(CsmError, match=sentence):
        load_codec({**codec_config, **change}, codec_tensors(FOLDER), num_codebooks=codebooks)


# Its face in transformers


def test_transformers_has_the_same_codec(codec: Codec, model: Any) -> None:
    wave = clip("047")
    encoded = model.codec_model.encode(torch.from_numpy(wave)[None, None]).audio_codes
    codes = codec.encode(wave)
    np.testing.assert_array_equal(encoded[0].numpy(), codes)
    sound = model.codec_model.decode(encoded.expand(2, -1, -1)).audio_values
    np.testing.assert_array_equal(sound[1, 0].numpy(), codec.decode(codes))
    assert model.codec_model.get_encoded_length(len(wave)) == codes.shape[1]
    mask = torch.arange(len(wave))[None] < torch.tensor([[len(wave)], [1921]])
    expected = torch.arange(codes.shape[1])[None] < torch.tensor([[codes.shape[1]], [2]])
    assert torch.equal(model.codec_model.get_audio_codes_mask(mask), expected)


def test_transformers_speaks_and_stops_by_itself(model: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    torch.manual_seed(0)
    seconds = [
        len(model.generate(**tokenizer(text, return_tensors="pt"), output_audio=True)[0]) / 24_000
        for text in ("[3]hello there.", "[5]please open the window, it is warm in here.")
    ]
    assert 0.5 < seconds[0] < 1.6
    assert 1.5 < seconds[1] < 4.5


def test_the_processor_writes_what_the_tokenizer_writes(model: Any) -> None:
    from transformers import AutoProcessor, AutoTokenizer, CsmProcessor

    processor = AutoProcessor.from_pretrained(FOLDER)
    assert isinstance(processor, CsmProcessor)
    audio, end = model.config.audio_token_id, model.config.audio_eos_token_id
    assert (processor.audio_token_id, processor.audio_eos_token_id) == (audio, end)
    turn = {"role": "5", "content": [{"type": "text", "text": "hello there."}]}
    ids = AutoTokenizer.from_pretrained(FOLDER)("[5]hello there.").input_ids
    given = processor.apply_chat_template([turn], tokenize=True, return_dict=True)
    assert given["input_ids"][0].tolist() == ids
    heard = {"role": "5", "content": [*turn["content"], {"type": "audio", "path": clip("001")}]}
    given = processor.apply_chat_template([heard, turn], tokenize=True, return_dict=True)
    frames = -(-len(clip("001")) // 1920)
    assert given["input_ids"][0].tolist() == [*ids, *[audio] * frames, end, *ids]
    with torch.no_grad():
        assert torch.isfinite(model(**given).logits).all()


def test_saving_from_transformers_keeps_the_codec(codec: Codec, codec_config: dict, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["codec_config"]
    assert load_codec(saved, codec_tensors(tmp_path)).fingerprint == codec.fingerprint
    other = codec_tensors(FOLDER)
    other["mel_mean"] = other["mel_mean"] + 0.1
    assert load_codec(codec_config, other).fingerprint != codec.fingerprint


def test_registering_twice_changes_nothing() -> None:
    assert register_with_transformers() is register_with_transformers()


# The example voice


def test_the_example_voice_is_whole() -> None:
    audio, texts = sorted((VOICE / "audio").iterdir()), sorted((VOICE / "transcripts").iterdir())
    assert [path.stem for path in audio] == [path.stem for path in texts]
    assert 60 <= len(audio) <= 80
    facts = [soundfile.info(path) for path in audio]
    assert {(f.samplerate, f.channels, f.format, f.subtype) for f in facts} == {(24_000, 1, "FLAC", "PCM_16")}
    assert 120 <= sum(f.duration for f in facts) <= 180
    assert all(2 <= f.duration <= 4 for f in facts[-8:])


def test_the_model_can_read_every_transcript() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    texts = [path.read_text().strip() for path in (VOICE / "transcripts").iterdir()]
    unknown = tokenizer.token_to_id("<unk>")
    assert all(text and unknown not in tokenizer.encode(f"[5]{text}").ids for text in texts)
    assert len(set(texts)) == len(texts)


def test_making_the_voice_again_makes_the_same_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hibari")
    monkeypatch.syspath_prepend(ROOT / "examples")
    maker = importlib.import_module("make_voice")
    number, teacher = 5, maker.Hibari()
    text = maker.SENTENCES[number - 1]
    assert text == (VOICE / "transcripts" / f"{number:03d}.txt").read_text().strip()
    waves = [maker.speak(teacher, text, maker.VOICE, np.random.default_rng([maker.SEED, number])) for _ in range(2)]
    np.testing.assert_array_equal(*waves)
    shipped = clip(f"{number:03d}")
    assert abs(len(waves[0]) - len(shipped)) <= 480
    length = min(len(waves[0]), len(shipped))
    assert spectral_likeness(waves[0][:length], shipped[:length]) > 0.95
