"""`csm model`: where a model is, and what it is."""

from __future__ import annotations

from typing import Any

import click

from csm.cli.console import Group, answer, answer_json


@click.group(cls=Group)
def model() -> None:
    """Look at model folders."""


@model.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the folder of a model: csm-tiny, a run (its best checkpoint), a folder or a hub id."""
    from csm.model_folder import resolve

    answer(str(resolve(name)))


@model.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def info(name: str, as_json: bool) -> None:
    """Check a model folder, every tensor of it, and describe it."""
    from csm.model_folder import open_folder

    facts = _describe(open_folder(name))
    if as_json:
        answer_json(facts)
    else:
        width = max(map(len, facts))
        answer("\n".join(f"{key.replace('_', ' ').ljust(width)}  {value}" for key, value in facts.items()))


def _describe(folder: Any) -> dict[str, Any]:
    config = folder.config
    stacks = {"backbone": config.backbone, "depth_decoder": config.depth}
    shapes = {
        name: f"{s.num_hidden_layers} layers, {s.hidden_size} wide, {s.num_attention_heads} heads, "
        f"{s.num_key_value_heads} key heads, {s.intermediate_size} inner"
        for name, s in stacks.items()
    }
    return {
        "path": str(folder.path),
        **({"adapter_of": folder.base.name} if folder.base else {}),
        "parameters": folder.parameters,
        **shapes,
        "codebooks": config.num_codebooks,
        "audio_vocabulary": config.vocab_size,
        "text_vocabulary": config.text_vocab_size,
        "rows": config.backbone.max_position_embeddings,
        "codec": config.codec.get("model_type"),
        "codec_tensors": len(folder.codec_names),
        "tokenizer": "present" if (folder.path / "tokenizer.json").is_file() else "missing",
        "megabytes": round(sum(f.stat().st_size for f in set(folder.files.values())) / 1e6, 1),
        "recommended": dict(folder.recommended),
        "hash": folder.hash,
    }
