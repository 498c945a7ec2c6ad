"""Reference, systems, comparison, choice of the best, and what is written about them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from scipy.signal import lfilter

from csm.audio import write_wave
from csm.errors import CsmError
from evaluation.compare import METRICS, in_words, paired_bootstrap
from evaluation.report import markdown_report, terminal_table, write_json, write_markdown
from evaluation.score import Kind, Reference, Sample, Scores, SystemScores, score_sample, score_system
from evaluation.speaker import embed, mean_embedding, similarity

HZ = 24_000
TARGET, OTHER = (110.0, (700, 1200, 2500)), (230.0, (450, 1900, 3100))


def voice(kind: tuple[float, tuple[int, ...]], seconds: float, seed: int) -> np.ndarray:
    """A pulse train with a wandering pitch through three resonances."""
    rng, count = np.random.default_rng(seed), round(seconds * HZ)
    knots = np.arange(0, seconds + 1, 0.25)
    wander = np.interp(np.arange(count) / HZ, knots, rng.normal(0, 1.5, len(knots)))
    wave = np.diff(np.floor(np.cumsum(kind[0] * 2 ** (wander / 12) / HZ)), prepend=0)
    for formant in kind[1]:
        radius = np.exp(-np.pi * 90 / HZ)
        wave = lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant / HZ), radius**2], wave)
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def sample(name: str, wave: np.ndarray, text: str = "hello there", seed: int = 0) -> Sample:
    return Sample(name, text, seed, wave, HZ, "end")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.from_recordings("recordings", [sample(f"r{n}", voice(TARGET, 2.0 + 0.2 * n, n)) for n in range(5)])


@pytest.fixture(scope="module")
def scores(reference: Reference) -> Scores:
    texts = ["one", "two", "three", "four", "five", "six"]

    def spoken(kind: tuple[float, tuple[int, ...]], at: int) -> list[Sample]:
        return [
            sample(f"{text}-{seed}", voice(kind, 1.5, 100 * at + 10 * n + seed), text, seed)
            for n, text in enumerate(texts)
            for seed in (0, 1)
        ]

    systems = [
        score_system("step-000020", spoken(TARGET, 1), reference, "checkpoint"),
        score_system("base", spoken(OTHER, 2), reference, "base"),
        score_system("step-000010", spoken(OTHER, 3), reference, "checkpoint"),
    ]
    return Scores.of(reference, systems)


# the bootstrap


def rows(values: dict[tuple[str, int], float | None]) -> list[dict[str, Any]]:
    return [{"text": text, "seed": seed, "speaker_similarity": value} for (text, seed), value in values.items()]


def drawn(rng: np.random.Generator, texts: int, planted: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Base and tuned rows of 3 seeds a text; texts differ much, the tuned ones by `planted` and some noise."""
    keys = [(f"text {n}", seed) for n in range(texts) for seed in range(3)]
    level = {f"text {n}": rng.normal(0.7, 0.1) for n in range(texts)}
    effect = {f"text {n}": planted + rng.normal(0, 0.02) for n in range(texts)}
    base = {key: level[key[0]] + rng.normal(0, 0.02) for key in keys}
    tuned = {key: level[key[0]] + effect[key[0]] + rng.normal(0, 0.02) for key in keys}
    return rows(base), rows(tuned)


@pytest.mark.parametrize("texts", [8, 20])
def test_the_interval_covers_the_planted_difference_about_95_times_in_100(texts: int) -> None:
    rng, covered, draws = np.random.default_rng(1), {0.0: 0, 0.05: 0}, 200
    for planted in covered:
        for _ in range(draws):
            low, high = paired_bootstrap(*drawn(rng, texts, planted), "speaker_similarity", 500).interval_95 or (1, 0)
            covered[planted] += low <= planted <= high
    for count in covered.values():
        assert 0.90 <= count / draws <= 0.99  # .95 within three standard errors of 200 draws, and a little for n = 8


def test_a_clear_rise_is_seen_although_texts_differ_more() -> None:
    found = paired_bootstrap(*drawn(np.random.default_rng(2), 8, 0.05), "speaker_similarity")
    assert found.mean_difference == pytest.approx(0.05, abs=0.02)
    assert found.interval_95 is not None
    assert 0 < found.interval_95[0] < found.mean_difference < found.interval_95[1]
    assert (found.texts, found.pairs) == (8, 24)
    assert found == paired_bootstrap(*drawn(np.random.default_rng(2), 8, 0.05), "speaker_similarity")


def test_seeds_are_averaged_within_a_text_and_only_pairs_count() -> None:
    base = rows({("a", 0): 0.5, ("a", 1): 0.5, ("b", 0): 0.5, ("c", 0): None, ("d", 0): 0.9, ("e", 7): 0.1})
    tuned = rows({("a", 0): 0.8, ("a", 1): 0.6, ("b", 0): 0.6, ("c", 0): 0.9, ("d", 0): None, ("e", 8): 0.9})
    found = paired_bootstrap(base, tuned, "speaker_similarity")
    assert found.mean_difference == pytest.approx((0.2 + 0.1) / 2)
    assert (found.texts, found.pairs) == (2, 3)
    assert found.interval_95 is None  # two texts cannot give one


def test_nothing_paired_is_refused() -> None:
    with pytest.raises(CsmError, match="Nothing pairs"):
        paired_bootstrap(rows({("a", 0): 0.5}), rows({("a", 1): 0.5}), "speaker_similarity")


# the reference


def test_a_folder_gives_recordings_texts_and_what_was_skipped(tmp_path: Path) -> None:
    audio, transcripts = tmp_path / "data" / "audio", tmp_path / "data" / "transcripts"
    for n, name in enumerate(["a.wav", "deep/b.flac", "c.wav", "d.wav"]):
        write_wave(audio / name, voice(TARGET, 1.5, n), HZ)
    (audio / "a.txt").write_text("beside it\n")
    (transcripts / "deep").mkdir(parents=True)
    (transcripts / "deep" / "b.txt").write_text("in the other folder")
    (transcripts / "c.txt").write_text("beside it\n")
    (audio / "noise.wav").write_text("this is no sound")
    write_wave(audio / "silent.wav", np.zeros(HZ, np.float32), HZ)
    for folder in (audio, tmp_path / "data"):
        found = Reference.from_folder(folder)
        assert [Path(row["name"]).stem for row in found.rows] == ["a", "c", "d", "b"]
        assert [row["text"] for row in found.rows] == ["beside it", "beside it", None, "in the other folder"]
        assert found.texts == ["beside it", "in the other folder"]
        assert sorted(Path(name).stem for name in found.skipped) == ["noise", "silent"]
        assert found.to_json()["recordings"] == 4
        assert found.rows[2]["syllables_per_second"] is None
        assert found.summary["syllables_per_second"] is not None


def test_folders_that_hold_nothing_usable_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CsmError, match="is not a folder"):
        Reference.from_folder(tmp_path / "missing")
    with pytest.raises(CsmError, match="holds no sound file"):
        Reference.from_folder(tmp_path)
    write_wave(tmp_path / "silent.wav", np.zeros(HZ, np.float32), HZ)
    with pytest.raises(CsmError, match=r"silent\.wav"):
        Reference.from_folder(tmp_path)


def test_the_ceiling_is_each_recording_against_the_mean_of_the_others(reference: Reference) -> None:
    voices = [embed(voice(TARGET, 2.0 + 0.2 * n, n), HZ) for n in range(5)]
    own = [similarity(voices[n], mean_embedding(voices[:n] + voices[n + 1 :])) for n in range(5)]
    assert [row["speaker_similarity"] for row in reference.rows] == pytest.approx(own, abs=1e-6)
    assert reference.summary["speaker_similarity"] == pytest.approx(np.mean(own), abs=1e-6)
    halves = similarity(mean_embedding(voices[::2]), mean_embedding(voices[1::2]))
    assert reference.summary["self_similarity"] == pytest.approx(halves, abs=1e-6)
    assert similarity(reference.embedding, mean_embedding(voices)) == pytest.approx(1)


def test_one_recording_is_a_reference_without_a_ceiling() -> None:
    found = Reference.from_recordings("one", [sample("r", voice(TARGET, 2.0, 1))])
    assert found.summary["speaker_similarity"] is None
    assert found.summary["self_similarity"] is None
    assert "two" in found.reasons["self_similarity"]
    assert score_sample(sample("s", voice(TARGET, 2.0, 2)), found)["speaker_similarity"] > 0.8
    json.dumps(found.to_json(), allow_nan=False)


# systems and the best


def test_a_system_like_the_target_scores_above_another_and_the_difference_is_significant(scores: Scores) -> None:
    by_name = {system.name: system.summary for system in scores.systems}
    assert by_name["step-000020"]["speaker_similarity"] > by_name["base"]["speaker_similarity"] + 0.1
    assert by_name["step-000020"]["pitch_median_hz"] == pytest.approx(110, rel=0.1)
    assert by_name["base"]["pitch_median_hz"] == pytest.approx(230, rel=0.1)
    assert by_name["base"]["speaker_similarity_pooled"] is not None
    assert scores.best == "step-000020"
    compared = {(c["system"], c["metric"]): c for c in scores.comparisons}
    unasked = {"word_error_rate", "term_hit_rate", "predicted_mos"}
    unasked |= {"pitch_contour_distance_semitones", "energy_profile_correlation"}
    metrics = set(METRICS) - unasked
    assert set(compared) == {(name, metric) for name in ("step-000020", "step-000010") for metric in metrics}
    rise = compared["step-000020", "speaker_similarity"]
    assert rise["interval_95"][0] > 0
    assert (rise["against"], rise["texts"], rise["pairs"]) == ("base", 6, 12)


def test_a_row_is_flat_and_has_the_identity_of_its_sample(reference: Reference) -> None:
    found = score_sample(sample("x/y.wav", voice(TARGET, 1.5, 7), "hello there", 3), reference)
    expected = {"name": "x/y.wav", "text": "hello there", "seed": 3, "stop_reason": "end"}
    assert {key: found[key] for key in expected} == expected
    assert found["duration_seconds"] == pytest.approx(1.5)
    assert all(value is None or isinstance(value, str | int | float | dict | list) for value in found.values())


def failed(reference: Reference) -> SystemScores:
    bad = [np.zeros(HZ), np.zeros(0), np.full(HZ, np.nan), voice(TARGET, 0.2, 1)]
    return score_system("step-000001", [sample(f"{n}", wave) for n, wave in enumerate(bad)], reference, "checkpoint")


def test_a_system_that_failed_has_reasons_and_no_numbers(reference: Reference) -> None:
    system = failed(reference)
    assert (system.summary["samples"], system.summary["scored"]) == (4, 0)
    for key in ("speaker_similarity", "speaker_similarity_pooled"):
        assert system.summary[key] is None
        assert system.reasons[key]
    found = Scores.of(reference, [system])
    assert found.best is None
    assert "no best" in found.best_reason
    json.dumps(found.to_json(), allow_nan=False)
    assert "silent" in markdown_report(found)


def made_up(name: str, kind: Kind, values: list[float | None]) -> SystemScores:
    found = [
        {"name": f"{n}", "text": f"text {n}", "seed": 0, "speaker_similarity": value, "reasons": {}}
        for n, value in enumerate(values)
    ]
    scored = [value for value in values if value is not None]
    mean = sum(scored) / len(scored) if scored else None
    summary = {"samples": len(values), "scored": len(scored), "speaker_similarity": mean}
    return SystemScores(name, kind, found, summary, {})


@pytest.mark.parametrize(
    ("checkpoints", "best"),
    [
        ({"early": [0.7, 0.7], "late": [0.8, 0.8]}, "late"),
        ({"early": [0.8, 0.8], "late": [0.8, 0.8]}, "early"),
        ({"steady": [0.7, 0.7], "lucky": [0.9, None]}, "steady"),
        ({"none": [None, None]}, None),
        ({}, None),
    ],
)
def test_the_best_is_the_most_similar_and_failures_count(
    reference: Reference, checkpoints: dict[str, list[float | None]], best: str | None
) -> None:
    systems = [made_up("base", "base", [0.75, 0.75])]
    systems += [made_up(name, "checkpoint", values) for name, values in checkpoints.items()]
    found = Scores.of(reference, systems)
    assert found.best == best
    if best == "steady":
        assert "not above the base's 0.750" in found.best_reason
    if best == "late":
        assert "0.800" in found.best_reason
        assert ", above the base's 0.750" in found.best_reason


def test_what_stands_in_the_bases_place_is_named(reference: Reference) -> None:
    found = Scores.of(reference, [made_up("old/step-1", "base", [0.5]), made_up("step-2", "checkpoint", [0.6])])
    assert "above old/step-1's 0.500" in found.best_reason


def test_two_systems_of_one_name_and_a_system_without_samples_are_refused(reference: Reference) -> None:
    with pytest.raises(CsmError, match="Two systems are called base"):
        Scores.of(reference, [made_up("base", "base", [0.5]), made_up("base", "folder", [0.5])])
    with pytest.raises(CsmError, match="no samples"):
        score_system("empty", [], reference)


# what is written


def test_scores_survive_json(scores: Scores, tmp_path: Path) -> None:
    write_json(scores, tmp_path / "deep" / "scores.json")
    document = json.loads((tmp_path / "deep" / "scores.json").read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert list(document)[1:] == ["reference", "systems", "comparisons", "best", "best_reason", "terms", "forgetting"]
    again = Scores.from_json(document)
    assert again == scores
    assert again.to_json() == document


@pytest.mark.parametrize(
    "document", [{}, [], {"schema_version": 2}, {"schema_version": 1}, {"schema_version": 1, "systems": [{"name": 1}]}]
)
def test_other_documents_are_refused(document: Any) -> None:
    with pytest.raises(CsmError, match="scores"):
        Scores.from_json(document)


def test_nan_is_never_written_and_what_stood_there_stays(scores: Scores, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_json(scores, path)
    before = path.read_bytes()
    broken = Scores(scores.reference, [made_up("x", "base", [float("nan")])])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(broken, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside(
    scores: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "report.md"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        with pytest.raises(OSError, match="No space"):
            write_markdown(scores, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_shows_base_checkpoints_reference_and_marks_the_best(scores: Scores) -> None:
    lines = terminal_table(scores).splitlines()
    assert lines[0].split() == ["similarity", "pooled", "same", "rate", "pitch", "spread", "pauses", "energy", "style"]
    assert lines[1].split() == ["voice", "syl/s", "Hz", "st", "/min", "dB", "dist."]
    names = [re.split(r"\s{2,}", line)[0] for line in lines[3:]]
    assert names == ["base", "step-000020 (best)", "step-000010", "reference (5)"]
    base = next(system for system in scores.systems if system.kind == "base").summary
    cells = lines[3].split()
    assert cells[1] == f"{base['speaker_similarity']:.3f}"
    assert cells[5] == f"{base['pitch_median_hz']:.1f}"
    assert max(map(len, lines)) <= 110


def test_a_value_that_is_missing_is_a_dash(reference: Reference) -> None:
    silent = score_system("quiet", [sample("s", np.zeros(HZ))], reference)
    line = terminal_table(Scores.of(reference, [silent])).splitlines()[3]
    assert line.split() == ["quiet", "–", "–", "1.00", *["–"] * 4], "all of it is empty"


def test_words_say_when_a_difference_is_none() -> None:
    comparison = {
        "system": "tuned",
        "against": "base",
        "metric": "pitch_median_hz",
        "mean_difference": 3.14,
        "texts": 8,
    }
    assert "no significant difference" in in_words({**comparison, "interval_95": [-2.0, 8.0]})
    assert "no significant difference" in in_words({**comparison, "interval_95": [0.0, 8.0]})
    clear = in_words({**comparison, "interval_95": [1.04, 5.0]})
    assert clear == "median pitch: higher: tuned +3.1 Hz against base (95 % interval +1.0 to +5.0, 8 texts)."
    assert "no interval can be given" in in_words({**comparison, "interval_95": None})


def test_the_report_tells_everything_and_its_links_lead_to_files(scores: Scores, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "my samples"
    scores = Scores.from_json(scores.to_json())
    for name, system in zip(("base/one-0.wav", "step [20]/a|b.wav"), scores.systems, strict=False):
        write_wave(folder / name, voice(TARGET, 0.5, 1), HZ)
        system.samples.append({**system.samples[0], "name": name})
    write_wave(folder / "one-0.wav", voice(TARGET, 0.5, 1), HZ)
    path = tmp_path / "run" / "report" / "report.md"
    write_markdown(scores, path, folder, {"validation loss": [(0, 5.0), (10, 3.5), (20, 4.0)], "empty": []})
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Scores against recordings\n")
    assert "step-000020 (best)" in text
    assert "Speaker similarity: higher: step-000020" in text
    assert "no significant difference (step-000010" in text
    assert "half against half" in text
    assert "| validation loss | 5.0000 (step 0) | 3.5000 (step 10) | 4.0000 (step 20) |" in re.sub(" +", " ", text)
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) == 3
    assert all((path.parent / unquote(link)).is_file() for link in links)
    assert "one-0.wav](../my%20samples/one-0.wav): one" in text


def test_samples_of_an_earlier_evaluation_are_not_listed(scores: Scores, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for name in (scores.systems[0].samples[0]["name"], "old"):
        (folder / f"{name}.wav").write_bytes(b"")
    text = markdown_report(scores, folder)
    assert "/old.wav" not in text
    assert text.count("/samples/") == 1


def test_a_table_of_tabs_has_one_line_of_heads(scores: Scores) -> None:
    lines = terminal_table(scores, "tsv").splitlines()
    assert len(lines) == len(scores.systems) + 2
    assert len({line.count("\t") for line in lines}) == 1


def test_a_name_cannot_break_the_report(reference: Reference) -> None:
    nasty = "a|b](x) <script>"
    text = markdown_report(Scores.of(reference, [made_up("base", "base", [0.5]), made_up(nasty, "checkpoint", [0.6])]))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<script>" not in re.sub(r"\\<", "", text)


def test_without_a_base_nothing_is_compared_and_the_report_says_so(reference: Reference) -> None:
    found = Scores.of(reference, [made_up("mine", "folder", [0.5])])
    assert found.comparisons == []
    assert "nothing is compared" in markdown_report(found)
