"""The benchmarks."""

from __future__ import annotations

import typer

from headwater.launch.cli.front import OPTIONS, load

bench_app = typer.Typer(**OPTIONS)


@bench_app.callback()
def bench() -> None:
    """Measure speed and size; each prints ratios taken in one run."""


_BENCHMARKS = {
    "kernels": "Projection kernels against their floors.",
    "train": "Tokens per second of the trainer against a bare loop and Hugging Face's Llama; where a step's time goes.",
    "collect": "Collecting gradient rows against the model's own forward and backward pass.",
    "capture": "A training step with gradient rows captured against one without.",
    "codecs": "What each way to store rows costs and keeps, in one stage and in two.",
    "search": "The scan of an index against a sequential read and faiss; memory against the size of the corpus.",
    "scale": "Memory and time of an index against its number of passages: written, opened, scanned, traced.",
    "survive": "Kills and faults at random moments, and what was lost.",
    "explore": "The explorer: first paint, a filter over many questions, a question asked live.",
}


def _add_benchmark(name: str, help: str) -> None:
    # The benchmark parses its own options, so that its heavy imports wait until it is called.
    passing = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @bench_app.command(name, help=help, context_settings=passing)
    def run(context: typer.Context) -> None:
        from headwater.launch.bench.parser import run_benchmark

        measured = run_benchmark(name, load(f"headwater.launch.bench.{name}:main"), context.args)
        if isinstance(measured, dict) and measured.get("lost"):
            raise typer.Exit(1)


for _name, _help in _BENCHMARKS.items():
    _add_benchmark(_name, _help)
