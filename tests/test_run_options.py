"""What may be said of a run beyond its recipe's first form: each option makes its difference, and resume stays exact."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import dry, finetune, train
from test_examples import clip
from test_run import STEPS, assert_same_run, final_state, metrics, tuner

from csm.data.batches import EpochBatches
from csm.data.codes import Tokenised
from csm.data.examples import ExampleSet
from csm.data.manifest import read_data
from csm.data.split import split
from csm.data.terms import TermClips, read_terms, repeated
from csm.errors import CsmError
from csm.presets import EPOCHS
from csm.recipe import CHANGEABLE, Recipe
from csm.training.finetuner import CSMFineTuner, Outcome
from csm.training.interrupt import Interrupted
from csm.training.memory import memory_explained, remedy
from csm.training.overfit import learning_by_heart
from csm.training.watchers import Watchers
from evaluation.judges import Judges


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenised:
    """Ten clips, speakers 5 and 6 in turn, two clips a conversation."""
    rows, faults = read_data((), clip_folder / "audio", clip_folder / "transcripts", 5)
    flat = [replace(c[0], speaker=5 + i % 2) for i, c in enumerate(rows)]
    pairs = [flat[i : i + 2] for i in range(0, len(flat), 2)]
    return tuner(toy_folder, tmp_path_factory.mktemp("unused") / "run", cache).tokenise(pairs, faults)


def sounding(folder: Path, step: int) -> dict[str, float]:
    """A scorer that loads the folder it is lent; the later, the less like the voice, from step 3 on."""
    from csm.model_folder import open_folder

    assert open_folder(folder).parameters > 0
    torch.rand(3)  # a careless listener: the run's own chance must not hear of it
    return {"speaker_similarity": 0.9 - 0.05 * abs(step - 3)}


def go(made: CSMFineTuner, data: Tokenised, stop_at: int | None = None, listen: Any = sounding) -> Outcome:
    def report(step: int, *_: object) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    return made.train(data, watch=Watchers(report, listen=listen))


OPTIONS: dict[str, dict[str, Any]] = {
    "terms": {"terms": ("fox",), "term_factor": 2.5},
    "context-dropout": {"context_dropout": 0.5},
    "mask": {"mask_speaker_ids": (6,)},
    "only": {"only_speaker_ids": (6,)},
    "checkpointed": {"gradient_ckpt": True},
    "keep": {"keep": 1},
    "samples": {"sample_every": 2},
    "by sound": {"select_by": "speaker_similarity"},
    "adam": {"optimizer": "adam", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd"},
    "constant": {"schedule": "constant"},
    "cut": {"max_audio_length_ms": 500.0},
    "rows": {"max_seq_len": 40},
    "lone": {"clip_context": False},
    "validated": {"val_every": 2, "val_batch_size": 1},
    "few lines": {"log_every": 4},
}
LEAVE_WEIGHTS = (
    "checkpointed",
    "keep",
    "samples",
    "by sound",
    "lone",
    "validated",
    "few lines",
)  # here, of conversations


@pytest.mark.parametrize("name", OPTIONS)
def test_resume_is_exact_with_every_option(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path, name: str
) -> None:
    for run, stops in (("one", ()), ("two", (2, 5))):
        for stop in stops:
            with pytest.raises(Interrupted):
                go(tuner(toy_folder, tmp_path / run, cache, **OPTIONS[name]), data, stop)
        go(tuner(toy_folder, tmp_path / run, cache, **OPTIONS[name]), data)
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "best").read_text() == (tmp_path / "two" / "best").read_text()


@pytest.fixture(scope="module")
def plain(toy_folder: Path, data: Tokenised, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    go(tuner(toy_folder, run, cache), data)
    return run


@pytest.mark.parametrize("name", OPTIONS)
def test_what_shapes_learning_does_and_the_rest_does_not(
    toy_folder: Path, data: Tokenised, cache: Path, plain: Path, tmp_path: Path, name: str
) -> None:
    """Checkpointed layers, kept checkpoints, samples and the choice of the best leave every bit of the weights alone."""
    go(tuner(toy_folder, tmp_path / "run", cache, **OPTIONS[name]), data)
    one, two = final_state(plain), final_state(tmp_path / "run")
    same = all(np.array_equal(one[key], two[key]) for key in one)
    assert same == (name in LEAVE_WEIGHTS)


def test_a_run_goes_on_under_other_changeable_values(
    toy_folder: Path, data: Tokenised, cache: Path, plain: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        go(tuner(toy_folder, run, cache), data, 4)
    changed = {"keep": 1, "gradient_ckpt": True, "sample_every": 3, "log_to": ()}
    assert set(changed) == set(CHANGEABLE) - {"log_every"}  # which leaves lines out of the record
    assert go(tuner(toy_folder, run, cache, **changed), data).step == STEPS
    assert_same_run(plain, run, but=("speaker_similarity",))


# Epochs


@pytest.mark.parametrize(
    ("preset", "minutes", "epochs"),
    [
        ("voice-adapt", 1, 10), ("voice-adapt", 5, 10), ("voice-adapt", 7, 7), ("voice-adapt", 10, 5),
        ("voice-adapt", 60, 5),
        ("style-tune", 3, 5), ("style-tune", 4, 4), ("style-tune", 5, 3), ("domain", 20, 8), ("domain", 25, 6),
        ("domain", 90, 5),
    ],
)  # fmt: skip
def test_epochs_follow_the_minutes_within_the_documented_range(preset: str, minutes: float, epochs: int) -> None:
    assert EPOCHS[preset].epochs(minutes) == epochs


def test_epochs_are_printed_with_the_reason_and_explicit_values_win(
    toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path
) -> None:
    words = ["--model-path", toy_folder, "--batch-size", 8, "--learning-rate", "1e-5"]
    told = train(tmp_path / "a", clip_folder, cache, *words)
    recipe = json.loads((tmp_path / "a" / "recipe.json").read_text())["recipe"]
    assert recipe["epochs"] == 10
    assert "epochs: 10, from 0.2 minutes of data (5-10 documented" in told.stderr
    assert "0.2 minutes" in json.loads((tmp_path / "a" / "lineage.json").read_text())["recipe_sources"]["epochs"]
    told = train(tmp_path / "b", clip_folder, cache, *words, "--epochs", 1)
    assert json.loads((tmp_path / "b" / "recipe.json").read_text())["recipe"]["epochs"] == 1
    assert "documented" not in told.stderr
    assert dry()["epochs"] == ("12", "csm-tiny/recommended.json"), "a model's recommendation is explicit"


# Terms


def test_terms_are_whole_words_in_any_case(tmp_path: Path) -> None:
    texts = ["The Ulna, here.", "an ulnar nerve", "open the vena  cava now", "cava"]
    sources = [replace(clip(i), text=text) for i, text in enumerate(texts)]
    found = TermClips.of(sources, ("ulna", "Vena cava", "aorta", "C++"))
    assert found.holds.tolist() == [True, False, True, False]
    assert found.absent == ("aorta", "C++")
    file = tmp_path / "terms.txt"
    file.write_text("\ufeffulna\n\n  vena   cava \nulna\n", encoding="utf-8")
    assert read_terms(file) == ("ulna", "vena cava")
    file.write_text("\n")
    with pytest.raises(CsmError, match="holds no term"):
        read_terms(file)


@pytest.mark.parametrize("seed", range(6))
def test_both_sides_of_the_split_have_a_term_where_two_clips_do(seed: int) -> None:
    conversations = [[replace(clip(i), text="the fox" if i in (3, 11) else "a dog")] for i in range(20)]
    parts = split(conversations, 0.1, seed, TermClips.finder(("fox",)))
    assert [sum("fox" in source.text for source in part) for part in parts] == [1, 1]
    assert len(parts[1]) == 3
    plain = split(conversations, 0.1, seed)
    assert [s.id for s in split(conversations, 0.1, seed, TermClips.finder(("cat",)))[1]] == [s.id for s in plain[1]]


def test_clips_with_terms_are_shown_as_often_as_stated() -> None:
    examples = ExampleSet([clip(i) for i in range(12)], 0, 256, seed=0)
    often = [2.5 if i % 3 == 0 else 1.0 for i in range(12)]
    batches = EpochBatches(examples, 2, 1, 1.0, 0, often)
    counts = []
    for epoch in range(2):
        seen = [key for update in range(batches.updates) for b in batches.update(epoch, update) for key in b.keys]
        count = [seen.count(examples.example(i, epoch).key) for i in range(12)]
        assert sum(count) == 8 + 2 * 4 + 2 == len(seen)
        assert all(count[i] == 1 for i in range(12) if i % 3)
        assert sorted(count[i] for i in range(0, 12, 3)) == [2, 2, 3, 3]
        counts.append(count)
    ids = [source.id for source in examples.sources]
    assert repeated(ids.__getitem__, often, 0, 0) == repeated(ids.__getitem__, often, 0, 0)
    assert len({tuple(repeated(ids.__getitem__, often, 0, epoch)) for epoch in range(8)}) > 1, (
        "who is shown once more changes"
    )


def test_clips_with_terms_are_validated_apart(toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path) -> None:
    """The two means, weighted by their tokens, are the whole one."""
    made = tuner(toy_folder, tmp_path / "run", cache, terms=("fox",), val_split=0.5, max_steps=3, semantic_weight=0.0)
    _, validation = made._split(data)
    holds = TermClips.of(validation.sources, ("fox",)).holds
    assert 0 < holds.sum() < len(holds)
    go(made, data)
    last = metrics(tmp_path / "run")[-1]
    frames = np.array([len(validation.example(i, 0).targets) for i in range(len(validation))])
    terms, other = frames[holds].sum(), frames[~holds].sum()
    both = (last["validation_terms_loss"] * terms + last["validation_other_loss"] * other) / (terms + other)
    assert both == pytest.approx(last["validation_loss"], rel=1e-5)
    with pytest.raises(CsmError, match="no clip to learn from holds"):
        go(tuner(toy_folder, tmp_path / "none", cache, terms=("aorta",)), data)
    assert not (tmp_path / "none").exists()


def test_the_flag_of_terms(toy_folder: Path, clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("fox\naorta\n")
    words = ["--model-path", toy_folder, "--max-steps", 2, "--terms", tmp_path / "terms.txt", "--term-factor", 4]
    told = train(tmp_path / "run", clip_folder, cache, *words, preset="domain")
    assert "terms: 1 of 2 occur" in told.stderr
    assert "each shown 4 times an epoch" in told.stderr
    assert "not found: aorta" in told.stderr
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["terms"] == ["fox", "aorta"]


# Ends and choices


def test_early_stop_ends_after_validations_without_a_better_one(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path
) -> None:
    """By sound, step 3 is the best of validations at 2, 3, ...: two worse ones follow, and step 5 is the end."""
    settings = {"save_every": 1, "early_stop": 2, "select_by": "speaker_similarity"}
    run, told = tmp_path / "run", []
    watch = Watchers(notice=told.append, listen=sounding)
    outcome = tuner(toy_folder, run, cache, **settings).train(data, watch=watch)
    assert (outcome.step, outcome.best.name) == (5, "step-000003")
    assert any("ended early after step 5 of 8" in sentence for sentence in told)
    again = go(tuner(toy_folder, run, cache, **settings), data)
    assert (again.from_step, again.step) == (5, 5), "a run that ended early is done"
    with pytest.raises(Interrupted):
        go(tuner(toy_folder, tmp_path / "two", cache, **settings), data, 4)
    assert go(tuner(toy_folder, tmp_path / "two", cache, **settings), data).step == 5
    one, two = final_state(run, 5), final_state(tmp_path / "two", 5)
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_best_goes_by_what_is_chosen(
    toy_folder: Path, data: Tokenised, cache: Path, plain: Path, tmp_path: Path
) -> None:
    losses = {line["step"]: line["validation_loss"] for line in metrics(plain)[1:] if "validation_loss" in line}
    assert (plain / "best").read_text() == f"step-{min(losses, key=losses.get):06d}\n"
    go(tuner(toy_folder, tmp_path / "run", cache, select_by="speaker_similarity"), data)
    assert (tmp_path / "run" / "best").read_text() == "step-000003\n"
    assert [line.get("speaker_similarity") for line in metrics(tmp_path / "run")][3] == 0.9
    with pytest.raises(CsmError, match="someone who listens"):
        go(tuner(toy_folder, tmp_path / "deaf", cache, select_by="speaker_similarity"), data, listen=None)


def test_keep_leaves_the_newest_and_the_best(toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path) -> None:
    settings = {"save_every": 1, "keep": 2, "select_by": "speaker_similarity"}
    go(tuner(toy_folder, tmp_path / "run", cache, **settings), data)
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-000003", "step-000007", "step-000008"]


def test_samples_are_spoken_at_their_steps_and_the_folder_is_lent(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path
) -> None:
    heard: list[int] = []

    def listen(folder: Path, step: int) -> dict[str, float]:
        heard.append(step)
        return sounding(folder, step)

    go(tuner(toy_folder, tmp_path / "run", cache, sample_every=3), data, listen=listen)
    assert heard == [0, 3, 6]
    assert not (tmp_path / "run" / ".speaking").exists()
    quiet: list[int] = []
    go(tuner(toy_folder, tmp_path / "two", cache), data, listen=lambda _, step: quiet.append(step) or {})
    assert quiet == []


def test_the_command_speaks_and_chooses_by_sound(clip_folder: Path, cache: Path, tmp_path: Path) -> None:
    """csm-tiny speaks the prompt at steps 0 and 2, and it is compared with the data's own recordings."""
    run = tmp_path / "run"
    words = ["--max-steps", 2, "--sample-every", 2, "--sample-prompt", "good morning.", "--log-to", "none"]
    train(run, clip_folder, cache, *words, "--select-by", "speaker_similarity")
    assert sorted(p.parent.name for p in run.rglob("samples/*/*.wav")) == ["base", "step-000002"]
    last = metrics(run)[-1]
    assert 0 < last["speaker_similarity"] < 1
    assert last["samples_spoken"] == 1
    assert json.loads((run / "recipe.json").read_text())["recipe"]["sample_prompts"] == ["good morning."]
    refused = train(tmp_path / "no", clip_folder, cache, "--max-steps", 1, "--reference", clip_folder, code=1)
    assert "--sample-every" in refused.stderr


def test_the_command_chooses_by_the_rule_of_evaluation(
    clip_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The score is the mean similarity, and 1 less where words, endings or opinions were lost; then `best` is the other."""
    run = tmp_path / "run"
    names = ("anna", "peter", "mary", "john", "susan")
    prompts = [word for name in names for word in ("--sample-prompt", f"good morning {name}, how are you today?")]
    words = ["--save-every", 1, "--select-by", "score", *prompts, "--log-to", "none"]
    monkeypatch.setattr("csm.cli.chooser.make_judges", lambda _: Judges())
    monkeypatch.setattr("evaluation.choice.lost", lambda base, system: ["words"] * (system.name == "step-000002"))
    train(run, clip_folder, cache, "--max-steps", 2, *words)
    lines = {line["step"]: line for line in metrics(run)}
    assert lines[0]["score"] == lines[0]["speaker_similarity"]
    assert lines[1]["score"] == lines[1]["speaker_similarity"] > 0
    assert lines[2]["score"] == pytest.approx(lines[2]["speaker_similarity"] - 1)
    assert lines[1]["samples_spoken"] <= 10
    assert lines[1]["stopped"] <= 1
    assert (run / "best").read_text() == "step-000001\n"
    few = train(tmp_path / "few", clip_folder, cache, "--max-steps", 1, *words[:6], "--log-to", "none", code=1)
    assert "needs 5 prompts" in few.stderr


def test_a_chooser_that_goes_on_finds_the_bases_samples_or_says_that_they_are_gone(tmp_path: Path) -> None:
    from csm.cli.chooser import Chooser
    from csm.data.row import Row

    rows = [Row("a", Path("a.wav"), "a", 5, Path("a.txt"))]
    chooser = Chooser(None, tmp_path, rows, ["one.", "two."])  # type: ignore[arg-type]
    with pytest.raises(CsmError, match=r"base's samples in .* are gone"):
        chooser(tmp_path, 4)


# Whose turns, which context


def test_masked_speakers_are_context_only(toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path) -> None:
    def targets(**settings: Any) -> tuple[ExampleSet, ExampleSet]:
        return tuner(toy_folder, tmp_path / "run", cache, **settings)._split(data)

    training, validation = targets(mask_speaker_ids=(5,))
    assert {s.speaker for part in (training, validation) for s in part.sources} == {6}
    assert all(len(training.example(i, 0)) > len(s.own) for i, s in enumerate(training.sources)), "5 is heard before 6"
    kept = targets(only_speaker_ids=(6,))
    assert [[s.id for s in part.sources] for part in kept] == [
        [s.id for s in p.sources] for p in (training, validation)
    ]
    with pytest.raises(CsmError, match=r"names 9; the data have speakers 5, 6"):
        targets(mask_speaker_ids=(9,))
    with pytest.raises(CsmError, match="every speaker"):
        targets(mask_speaker_ids=(5, 6))
    with pytest.raises(CsmError, match="exclude each other"):
        targets(mask_speaker_ids=(5,), only_speaker_ids=(6,))


def test_context_dropout_drops_that_share_and_draws_anew() -> None:
    sources = [clip(i, speaker=0) for i in range(60)]
    full, half = ExampleSet(sources, 1, 256, 0), ExampleSet(sources, 1, 256, 0, context_dropout=0.5)
    bare = np.array([[half.example(i, e).target_start == 0 for i in range(60)] for e in range(4)])
    assert 0.4 < bare.mean() < 0.6
    assert (bare[0] != bare[1]).any()
    kept = [i for i in range(60) if not bare[0][i]]
    assert all(half.example(i, 0).key == full.example(i, 0).key for i in kept), "the rest is as it was"


def test_lists_on_the_command_line() -> None:
    for words in (["0,2"], ["0 2"], ["0", "2"], ["0", "--mask-speaker-ids", "2"], ["0,", "2", "0"]):
        assert dry("--mask-speaker-ids", *words)["mask_speaker_ids"] == ("0,2", "flag")
    assert "whole numbers" in finetune("domain", "--output-dir", "x", "--mask-speaker-ids", "a", code=2).stderr
    assert "the list is empty" in finetune("domain", "--output-dir", "x", "--mask-speaker-ids", "", code=2).stderr
    assert "unexpected extra argument (2)" in finetune("domain", "--output-dir", "x", "2", code=2).stderr
    words = ["0", "1", "--epochs", 3, "--log-to", "wandb", "trackio"]
    shown = dry("--mask-speaker-ids", *words)
    assert [shown[key][0] for key in ("mask_speaker_ids", "epochs", "log_to")] == ["0,1", "3", "wandb,trackio"]
    assert dry("--max-context-turns", 3)["context_turns"] == ("3", "flag")


FLAGS = {
    "early_stop": (["--early-stop", 2], "2"),
    "keep": (["--keep", 3], "3"),
    "select_by": (["--select-by", "speaker_similarity"], "speaker_similarity"),
    "sample_every": (["--sample-every", 5], "5"),
    "context_dropout": (["--context-dropout", 0.25], "0.25"),
    "gradient_ckpt": (["--gradient-ckpt"], "True"),
    "only_speaker_ids": (["--only-speaker-ids", "1"], "1"),
    "log_to": (["--log-to", "none"], "-"),
}


@pytest.mark.parametrize("key", FLAGS)
def test_a_flag_reaches_the_recipe(key: str) -> None:
    words, shown = FLAGS[key]
    assert dry(*words)[key] == (shown, "flag")
    assert dry()[key][0] != shown


# Numbers and sentences


def test_metrics_hold_each_codebook_rate_and_memory(plain: Path) -> None:
    records = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    books = [last[f"validation_codebook_{book}_loss"] for book in range(6)]
    assert books[0] == last["validation_semantic_loss"]
    assert np.mean(books[1:]) == pytest.approx(last["validation_acoustic_loss"], rel=1e-6)
    assert last["rate_embeddings"] == pytest.approx(0.5 * last["rate_backbone"])
    assert last["peak_memory_mb"] > 100
    assert {"grad_norm", "frames_per_second"} <= last.keys()


def test_checkpointed_layers_give_equal_gradients_on_that_instance_alone(toy_folder: Path) -> None:
    from test_trainer import batch, trainer

    plain, thrifty = trainer(toy_folder), trainer(toy_folder, gradient_ckpt=True)
    calls = {"plain": 0, "thrifty": 0}
    for name, made in (("plain", plain), ("thrifty", thrifty)):
        layer = made.model.backbone_model.layers[0].self_attn
        layer.register_forward_pre_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
        made.step([batch(1, 2, 3)], 1e-3)
    assert calls == {"plain": 1, "thrifty": 2}, "the layer is run again for its gradients"
    for p, q in zip(plain.model.parameters(), thrifty.model.parameters(), strict=True):
        assert torch.equal(p, q)


def saved_bytes(made: Any, one: Any) -> int:
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    from csm.torch.loss import backbone_states, read_codes

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone_states(made.model, one, read_codes(made.model, one), torch.float32)
    return total


def test_checkpointed_layers_keep_less(toy_folder: Path) -> None:
    from test_trainer import batch, trainer

    one = batch(1, 2, 3, 4)
    assert saved_bytes(trainer(toy_folder, gradient_ckpt=True), one) < 0.5 * saved_bytes(trainer(toy_folder), one)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_a_sentence_with_the_flag_that_helps(error: Exception) -> None:
    with pytest.raises(CsmError, match="memory ran out at step 7") as caught, memory_explained(Recipe(), 7):
        raise error
    assert "--gradient-ckpt" in str(caught.value.hint)
    assert "--batch-size 2 --accumulate 2" in remedy(Recipe(batch_size=4, gradient_ckpt=True))
    assert "--batch-size 3 --accumulate 6" in remedy(Recipe(batch_size=9, accumulate=2, gradient_ckpt=True))
    assert "--batch-size 1 --accumulate 5" in remedy(Recipe(batch_size=5, gradient_ckpt=True)), "as many examples"
    assert "--context-turns 1" in remedy(Recipe(batch_size=1, gradient_ckpt=True, context_turns=2))
    with pytest.raises(RuntimeError, match="shape"), memory_explained(Recipe(), 7):
        raise RuntimeError("shape mismatch")


def test_a_run_short_of_memory_goes_on_with_the_flag_it_was_told(
    toy_folder: Path, data: Tokenised, cache: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csm.torch.trainer import TorchTrainer

    real, calls = TorchTrainer.step, iter(range(100))

    def step(self: Any, batches: Any, rate: float) -> dict[str, float]:
        if next(calls) == 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(self, batches, rate)

    monkeypatch.setattr(TorchTrainer, "step", step)
    with pytest.raises(CsmError, match="memory ran out at step 5, with micro-batches of 2 examples"):
        go(tuner(toy_folder, tmp_path / "run", cache), data)
    outcome = go(tuner(toy_folder, tmp_path / "run", cache, gradient_ckpt=True), data)
    assert (outcome.from_step, outcome.step) == (3, STEPS)
    assert_same_run(plain, tmp_path / "run")


def test_a_real_shortage_on_the_cpu_is_told() -> None:
    with pytest.raises(CsmError, match="memory ran out"), memory_explained(Recipe(), 1):
        torch.empty(1 << 60, dtype=torch.uint8)


def records(validation: list[float], training: list[float]) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"step": 0, "validation_loss": validation[0]}]
    for step, (one, two) in enumerate(zip(training, validation[1:], strict=True), 1):
        lines += [{"step": 2 * step - 1, "loss": one}, {"step": 2 * step, "loss": one - 0.01, "validation_loss": two}]
    return lines


def test_learning_by_heart_is_told_once() -> None:
    assert "risen twice" in str(learning_by_heart(records([3, 2, 2.1, 2.2], [3, 2, 1])))
    assert learning_by_heart(records([3, 2, 2.1, 2.2, 2.3], [3, 2, 1, 0.5])) is None, "it was said before"
    assert learning_by_heart(records([3, 2, 2.1, 2.2], [3, 2, 2.5])) is None, "training rises too"
    assert learning_by_heart(records([3, 2, 2.1, 2.0], [3, 2, 1])) is None
    assert learning_by_heart(records([3, 3.1], [3])) is None


def test_every_checkpoint_has_a_card(plain: Path, clip_folder: Path) -> None:
    for checkpoint in (plain / "checkpoints").iterdir():
        text = (checkpoint / "README.md").read_text()
        assert text.startswith("---\nlibrary_name: transformers\n")
        for part in ("style-tune", "10 clips", "| learning_rate | 0.001 |", "## Limits", "agreed", "validation loss"):
            assert part in text, part
        assert str(clip_folder) not in text, "a card names no file of the data"
        assert "brown" not in text


def test_an_evaluation_is_written_into_the_cards(plain: Path, tmp_path: Path) -> None:
    import shutil

    from csm.training.card import refresh_cards
    from csm.training.run_folder import RunFolder

    shutil.copytree(plain, tmp_path / "run")
    refresh_cards(RunFolder(tmp_path / "run"), {"step-000003": 0.8125})
    texts = {p.name: (p / "README.md").read_text() for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert "0.8125" in texts["step-000003"]
    assert "| validation loss (weighted) |" in texts["step-000003"]
    assert texts["step-000006"] == (plain / "checkpoints" / "step-000006" / "README.md").read_text()


def test_the_default_log_is_told_or_written(toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path) -> None:
    from importlib.util import find_spec

    told: list[str] = []
    made = tuner(toy_folder, tmp_path / "run", cache, max_steps=2)
    made.train(data, watch=Watchers(notice=told.append))
    written = list((tmp_path / "run").glob("tensorboard/events*"))
    assert bool(written) == bool(find_spec("tensorboard"))
    assert sum("tensorboard is not installed" in sentence for sentence in told) == (0 if written else 1)
    if written:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(written[0].parent))
        found.Reload()
        assert [event.step for event in found.Scalars("training/loss")] == [1, 2]
        assert "validation/codebook_5_loss" in found.Tags()["scalars"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_log_that_is_asked_for_and_not_there_is_an_error(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csm.training.events.find_spec", lambda _: None)
    with pytest.raises(CsmError, match=f"needs the package {name}"):
        go(tuner(toy_folder, tmp_path / "run", cache, log_to=(name,)), data)


def test_a_hosted_log_is_told_every_step_and_keeps_off_stdout(
    toy_folder: Path, data: Tokenised, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import sys
    from types import ModuleType

    calls: list[tuple[str, Any]] = []
    fake = ModuleType("trackio")
    fake.init = lambda **settings: calls.append(("init", settings["project"])) or print("hello")  # type: ignore
    fake.log = lambda values, step: calls.append(("log", (step, "training/loss" in values)))  # type: ignore[attr-defined]
    fake.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr("csm.training.events.find_spec", lambda _: True)
    go(tuner(toy_folder, tmp_path / "run", cache, log_to=("trackio",), max_steps=2), data)
    assert calls == [("init", "csm-finetune"), ("log", (1, True)), ("log", (2, True)), ("finish", None)]
    told = capsys.readouterr()
    assert "hello" in told.err
    assert told.out == ""
    fake.init = lambda **_: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(CsmError, match="could not begin: division by zero"):
        go(tuner(toy_folder, tmp_path / "two", cache, log_to=("trackio",), max_steps=2), data)
