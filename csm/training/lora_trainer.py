"""CSMLoRATrainer: the LoRA guide's Python class, a face of CSMFineTuner.

trainer = CSMLoRATrainer(model_path="csm-tiny", output_dir="out", lora_r=8, lora_alpha=16.0)
trainer.load_lora_weights("out/fine_tuned_model.safetensors")
trainer.generate_sample(text="this is a test.", speaker_id=0, output_path="sample.wav")
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from csm.errors import CsmError
from csm.model_folder import ModelFolder, open_folder, pointed_to
from csm.training.finetuner import CSMFineTuner, Outcome
from csm.training.lora_files import LATEST, adapter_folder_of, run_to_resume, write_adapter_file, write_tuned
from csm.training.watchers import Watchers

if TYPE_CHECKING:
    from csm.generator import Generator

PRESET = "finetune-lora"
SEEDS = (0, 1, 2)


class CSMLoRATrainer(CSMFineTuner):
    """Adapters on a model: trained into a run folder, or loaded and heard.

    Args:
        model_path: a model folder, a run, a hub id, `csm-tiny`, or weights that have config and tokenizer beside them.
        output_dir: the run folder.
        learning_rate, semantic_weight, acoustic_weight, weight_decay: None is the documented default, as for those below.
        lora_r, lora_alpha, lora_dropout, lora_use_bias: of the adapters.
        target_modules: q_proj and v_proj where it is None.
        target_layers: of the backbone; all where it is None.
        placement: `backend`, `device`, `dtype`, `threads`, `cache`, `base` as CSMFineTuner takes them.

    Raises:
        CsmError: the model cannot be used, or an argument is out of range (a layer, say, names the range).
    """

    def __init__(
        self,
        model_path: str | Path,
        output_dir: str | Path,
        learning_rate: float | None = None,
        semantic_weight: float | None = None,
        acoustic_weight: float | None = None,
        weight_decay: float | None = None,
        lora_r: int | None = None,
        lora_alpha: float | None = None,
        lora_dropout: float | None = None,
        target_modules: Sequence[str] | None = None,
        target_layers: Sequence[int] | None = None,
        lora_use_bias: bool | None = None,
        **placement: Any,
    ):
        super().__init__(model_path, output_dir, learning_rate, preset=PRESET, **placement)
        given: dict[str, Any] = {
            "semantic_weight": semantic_weight,
            "acoustic_weight": acoustic_weight,
            "weight_decay": weight_decay,
        }
        given |= {"lora_rank": lora_r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout}
        lists = {"lora_targets": target_modules, "lora_layers": target_layers}
        given |= {key: None if value is None else tuple(value) for key, value in lists.items()}
        self.layers.append(("arguments", {**given, "lora_bias": lora_use_bias}))
        assert self.adapters, "the preset's method is lora"
        self._loaded: ModelFolder | None = None
        self._scratch: TemporaryDirectory[str] | None = None
        self._generator: Generator | None = None

    def load_lora_weights(self, lora_path: str | Path) -> ModelFolder:
        """Take up an adapter to speak with: a folder of PEFT's form, or a file that this program wrote.

        Rank, alpha and targets are the adapter's own, whatever this trainer was made with.

        Raises:
            CsmError: it is no adapter, was trained on another model, or does not fit.
        """
        scratch = TemporaryDirectory(prefix="csm-lora-")
        folder = adapter_folder_of(Path(lora_path).expanduser(), Path(scratch.name))
        self._loaded, self._scratch, self._generator = open_folder(folder, self.base.name), scratch, None
        own, stored = self.resolved.recipe, _rank_and_alpha(folder)
        if stored != (own.lora_rank, own.lora_alpha):
            rank, alpha = stored
            warnings.warn(f"{lora_path} has rank {rank} and alpha {alpha:g}, which hold.", stacklevel=2)
        return self._loaded

    def generate_sample(self, text: str, speaker_id: int = 0, output_path: str | Path = "sample.wav") -> Path:
        """Speak `text` with the loaded adapter, else with the run's best checkpoint, else with the base, into a .wav or
        .flac file. The first of three seeds that says anything is kept.

        Raises:
            CsmError: the text cannot be read, or nothing was spoken; no file is written then.
        """
        from csm.audio import write_wave

        speech = speak_first(self._speaker(), text, speaker_id)
        out = Path(output_path).expanduser()
        out.parent.mkdir(parents=True, exist_ok=True)
        write_wave(out, speech.wave, speech.sample_rate)
        return out

    def _speaker(self) -> Generator:
        from csm.generator import Generator

        if self._generator is None:
            best = pointed_to(self.run.path, "best") if self.run.exists else None
            self._generator = Generator(self._loaded or (open_folder(best) if best else self.base), self.backend)
        return self._generator

    def train(
        self,
        train_dataset: Any,
        batch_size: int | str | None = None,
        epochs: int | None = None,
        *,
        val_every: int | None = None,
        save_every: int | None = None,
        max_grad_norm: float | None = None,
        resume_from: str | Path | None = None,
        watch: Watchers | None = None,
        **more: Any,
    ) -> Outcome:
        """Train as `CSMFineTuner.train`, and keep `checkpoint_latest.safetensors` beside the run's checkpoints.

        Args:
            resume_from: that file, the run folder or its newest checkpoint: go on there, exactly.

        Raises:
            CsmError: as CSMFineTuner; weights were loaded to speak with; `resume_from` is of another run.
        """
        if self._loaded is not None:
            raise CsmError(
                "weights were loaded to speak with.", "To train on from them give their folder as model_path."
            )
        if resume_from is not None:
            run_to_resume(Path(resume_from).expanduser(), self.run.path)
            more["resume"] = True
        given = {"val_every": val_every, "save_every": save_every, "max_grad_norm": max_grad_norm}
        self.layers.append(("arguments", given))
        watch = watch or Watchers(**({"report": report} if (report := more.pop("report", None)) else {}))

        def saved(step: int, folder: Path) -> None:
            write_adapter_file(folder, self.run.path / LATEST)
            watch.saved(step, folder)

        self._generator = None
        return super().train(train_dataset, batch_size, epochs, watch=replace(watch, saved=saved), **more)

    def save_model(self, save_mode: str = "lora") -> list[Path]:
        """Write the guide's `fine_tuned_model...` files of the run's best checkpoint; see `csm.training.lora_files`."""
        best = pointed_to(self.run.path, "best") if self.run.exists else None
        if best is None:
            raise CsmError(f"{self.run.path} has no checkpoint yet.", "Train first.")
        return write_tuned(self.run.path, best, save_mode, lora_values(self.run.recipe()["recipe"]))


def lora_values(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's keys that are about adapters."""
    return {key: value for key, value in recipe.items() if key.startswith("lora_")}


def speak_first(generator: Generator, text: str, speaker: int) -> Any:
    """The Speech of the first of three seeds that says anything. Raises as `Generator.speak`."""
    from csm.generator import NothingSpokenError

    for seed in SEEDS[:-1]:
        try:
            return generator.speak(text, speaker, seed=seed)
        except NothingSpokenError:
            continue  # told below, if the last seed is as silent
    return generator.speak(text, speaker, seed=SEEDS[-1])


def _rank_and_alpha(folder: Path) -> tuple[int, float]:
    from csm.adapters.origin import CONFIG
    from csm.json_file import read_json

    values = read_json(folder / CONFIG)
    lora = values.get("lora_parameters", {})
    rank = int(values.get("r", lora.get("rank", 0)))
    return rank, float(values.get("lora_alpha", float(lora.get("scale", 0.0)) * rank))
