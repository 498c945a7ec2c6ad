"""`csm model`: where a model is, what it is, and its weights in other layouts, merged and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from csm.cli.console import Group, answer, answer_json
from csm.cli.options import PATH, takes_base


@click.group(cls=Group)
def model() -> None:
    """Look at models, convert, merge and compare them."""


@model.command()
@click.argument("name")
def path(name: str) -> None:
    """Print the folder of a model: csm-tiny, a run (its best checkpoint), a folder or a hub id."""
    from csm.model_folder import resolve

    answer(str(resolve(name)))


@model.command()
@click.argument("name")
@takes_base
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def info(name: str, base: Path | None, as_json: bool) -> None:
    """Check a model, every tensor of it but its codec's, and describe it."""
    from csm.model_folder import open_folder

    facts = _describe(open_folder(name, base))
    if as_json:
        answer_json(facts)
    else:
        width = max(map(len, facts))
        answer("\n".join(f"{key.replace('_', ' ').ljust(width)}  {value}" for key, value in facts.items()))


@model.command()
@click.argument("source", metavar="IN")
@click.argument("out", type=PATH)
@click.option("--to", "layout", required=True, type=click.Choice(["transformers", "sesame", "csm-mlx"]))
@takes_base
def convert(source: str, out: Path, layout: str, base: Path | None) -> None:
    """Write the model IN, of any layout, to the new folder OUT. The numbers stay the same, bit for bit.

    IN may be an adapter folder too: transformers is PEFT's form then. --base names the model it was trained on, where
    nothing in it does.
    """
    from csm.adapters.folder import is_adapter
    from csm.model_folder import open_folder
    from csm.torch.convert import convert as convert_model
    from csm.torch.convert import convert_adapter

    adapter, opened = Path(source).expanduser(), open_folder(source, base)
    if is_adapter(adapter) and opened.base:
        convert_adapter(adapter, opened.base, out.expanduser(), layout)
    else:
        convert_model(opened, out.expanduser(), layout)
    answer(str(out))


@model.command()
@click.argument("name", metavar="M")
@click.argument("out", type=PATH)
@click.option("--adapter", required=True, help="an adapter folder, PEFT's or csm-mlx's, or a run (its best checkpoint)")
@takes_base
def merge(name: str, out: Path, adapter: str, base: Path | None) -> None:
    """Write the model M with an adapter merged in to the new folder OUT.

    M must be the model that the adapter was trained on, where the adapter says which that is.
    """
    from csm.model_folder import open_folder, resolve
    from csm.torch.convert import merge_adapter

    merge_adapter(open_folder(name, base), resolve(adapter), out.expanduser())
    answer(str(out))


@model.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@takes_base
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def diff(before: str, after: str, base: Path | None, as_json: bool) -> None:
    """Show which parts of B differ from A and by how much: the norm of the change over the norm of A's.

    --base serves those of the two that are weights alone. The exit code is 0 whether they differ or not.
    """
    from csm.model_folder import open_either
    from csm.torch.difference import differences, summary

    facts = summary(differences(open_either(before, base), open_either(after, base)))
    if as_json:
        answer_json(facts)
        return
    for group, values in facts["groups"].items():
        answer(
            f"{group:<11} {values['changed']:>4} of {values['tensors']:<4} changed  {_share(values['relative_norm'])}"
        )
    for values in facts["tensors"]:
        answer(f"  {_share(values['relative_norm'])}  {values['name']}")


def _share(value: float | None) -> str:
    return "from nothing" if value is None else f"{value:.3e}"


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
        "layout": folder.layout,
        "parameters": folder.parameters,
        **shapes,
        "codebooks": config.num_codebooks,
        "audio_vocabulary": config.vocab_size,
        "text_vocabulary": config.text_vocab_size,
        "rows": config.backbone.max_position_embeddings,
        "codec": config.codec.get("model_type"),
        "codec_tensors": len(folder.codec_names),
        "tokenizer": "present" if (folder.beside / "tokenizer.json").is_file() else "missing",
        "megabytes": round(sum(f.stat().st_size for f in set(folder.files.values())) / 1e6, 1),
        "recommended": dict(folder.recommended),
        "hash": folder.hash,
    }
