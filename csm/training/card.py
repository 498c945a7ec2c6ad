"""The model card: a README.md beside every checkpoint, so that weights that are passed on say what they are.

It names no file of the data and quotes no text of it: a card travels further than recordings should.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csm.training.metrics import MetricsFile
from csm.training.run_folder import RunFolder, write_text

CONSENT = (
    "A voice belongs to the person who speaks with it. Use this model only where everyone whose recordings it learned "
    "from has agreed to that use, say that its speech is generated, and do not let it speak for someone who has not "
    "agreed."
)
LIMITS = (
    "It was trained on little data and says what is like that data best: judge it by listening, on texts it never saw.",
    "The losses are of held-out clips of the same recordings, and say nothing of other voices, rooms or topics.",
    "Its sound carries no watermark.",
)
LOSSES = {
    "validation_loss": "validation loss (weighted)",
    "validation_semantic_loss": "of codebook 0",
    "validation_acoustic_loss": "of the other codebooks",
    "validation_terms_loss": "of clips with a term",
    "validation_other_loss": "of clips without",
    "speaker_similarity": "speaker similarity of the samples spoken in training",
    "score": "score of those samples, by which the best is chosen",
    "evaluated_similarity": "speaker similarity to the reference of `csm evaluate`",
}


def write_card(
    out: Path, identity: Mapping[str, Any], lineage: Mapping[str, Any], step: int, values: Mapping[str, float]
) -> None:
    """Write README.md into a checkpoint; arguments as `card`."""
    write_text(out / "README.md", card(identity, lineage, step, values))


def refresh_cards(run: RunFolder, similarity: Mapping[str, float]) -> None:
    """Write the cards of a run's checkpoints anew, with what `csm evaluate` found of them by name."""
    records = {record["step"]: record for record in MetricsFile(run.path / "metrics.jsonl").read()}
    for step in run.steps():
        found = {key: similarity[name] for key, name in (("evaluated_similarity", run.checkpoint(step).name),)
                 if name in similarity}  # fmt: skip
        write_card(run.checkpoint(step), run.recipe(), run.lineage(), step, {**records.get(step, {}), **found})


def card(identity: Mapping[str, Any], lineage: Mapping[str, Any], step: int, values: Mapping[str, float]) -> str:
    """The card's Markdown, with the header that model hubs read.

    Args:
        identity: the run's recipe.json.
        lineage: the run's lineage.json.
        step: updates done.
        values: figures of this step; those that are there are shown.
    """
    parent, data, recipe = lineage["parent"], lineage["data"], identity["recipe"]
    style = f" for the style {recipe['style_name']!r}" if recipe.get("style_name") else ""
    origin = f", a checkpoint of run {parent['run']['id']}" if parent.get("run") else ""
    sections = [
        _header("peft" if recipe.get("method") == "lora" else "transformers"),
        f"# A CSM after {identity['preset']}, step {step}",
        f"A conversational speech model (CSM), fine-tuned with the preset {identity['preset']}{style} by "
        f"{lineage['program']}. It began from `{Path(parent['path']).name}`{origin} (sha256 `{parent['hash'][:16]}`).",
        "## Data",
        f"{data['clips']} clips, {data['minutes']} minutes, speaker {', '.join(map(str, data['speakers']))}; "
        f"{len(data['training'])} clips to learn from, {len(data['validation'])} held out. "
        f"Fingerprint `{data['fingerprint'][:16]}`.",
        "## Scores",
        _scores(values),
        "## Recipe",
        _table("key", "value", {key: _plain(value) for key, value in recipe.items()}),
        "## Limits",
        "\n".join(f"- {sentence}" for sentence in LIMITS),
        "## Consent",
        CONSENT,
        "The licence is that of the model it began from, and of the recordings.",
    ]
    return "\n\n".join(sections) + "\n"


def _header(library: str) -> str:
    lines = (f"library_name: {library}", "pipeline_tag: text-to-speech", "tags:", "- csm", "- text-to-speech")
    return "\n".join(("---", *lines, "---"))


def _scores(values: Mapping[str, float]) -> str:
    known = {name: f"{values[key]:.4g}" for key, name in LOSSES.items() if key in values}
    return _table("figure", "value", known) if known else "None were taken at this step."


def _plain(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ") or "-"


def _table(left: str, right: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {left} | {right} |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines)
