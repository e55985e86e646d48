"""Checkpoints as models of Hugging Face, and the other way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.launch.cli.front import load


def export_(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or one checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new directory for the Hugging Face model.")],
    step: Annotated[int | None, typer.Option(min=0, help="A checkpoint of the run; the newest if not given.")] = None,
    dtype: Annotated[str, typer.Option(help="Number format of the weights: fp32 or bf16.")] = "fp32",
) -> None:
    """Write a checkpoint as a Llama model of Hugging Face, tokenizer included."""
    checkpoint = load("headwater.train.huggingface.export:export_llama")(source, out, step=step, dtype=dtype)
    typer.echo(f"{out}: {checkpoint.path} as LlamaForCausalLM")


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="A directory with a Llama model of Hugging Face, or a .gguf file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new directory for the checkpoint.")],
) -> None:
    """Make a Llama model of Hugging Face, or a GGUF file, into a checkpoint that training can start from."""
    load("headwater.train.huggingface.importing:import_llama")(source, out)
    typer.echo(f"{out}: start from it with `base: {out / 'model.yaml'}` in a configuration (model.init_from)")
