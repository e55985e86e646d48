"""The stages of a run, from documents to the report, and `demo`, which is all of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headwater.configs.errors import UserError
from headwater.launch.cli.front import (
    OPTIONS,
    Arguments,
    Keys,
    StageGroup,
    Yaml,
    load,
    read_settings,
    split_arguments,
)

corpus_app = typer.Typer(cls=StageGroup, **OPTIONS)
index_app = typer.Typer(cls=StageGroup, **OPTIONS)


def demo(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Run everything, small, on this machine: corpus, facts, pretraining, index, trace, evaluation, report."""
    settings = read_settings(
        "headwater.launch.demo:DemoSettings",
        arguments,
        keys,
        yaml,
        preset="demo",
        command="headwater demo",
    )
    load("headwater.launch.demo:run_demo")(settings)


@corpus_app.callback()
def corpus() -> None:
    """Read documents, train a tokenizer, cut passages, pack them and write the shards."""


@corpus_app.command("run")
def corpus_run(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Build the corpus of a pretraining configuration (`run` may be left out)."""
    settings = read_settings(
        "headwater.train.settings:PretrainSettings",
        arguments,
        keys,
        yaml,
        command="headwater corpus",
        example="pretrain/tiny out=runs/tiny",
    )
    load("headwater.train.corpus.build:build_corpus")(settings, progress=typer.echo)


@corpus_app.command("inspect")
def corpus_inspect(
    path: Annotated[Path, typer.Argument(help="A corpus directory, or a run directory.")],
    sequence: Annotated[int, typer.Option(min=0, help="The first sequence to show.")] = 0,
    count: Annotated[int, typer.Option(min=0, help="How many sequences to show.")] = 3,
    passage: Annotated[str | None, typer.Option(help="Show this passage (id or number) in full instead.")] = None,
) -> None:
    """Show a corpus's figures and some of its sequences with their passages, and check its files."""
    load("headwater.train.corpus.inspect:inspect")(path, sequence=sequence, count=count, passage=passage)


def pretrain(
    arguments: Arguments = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    keys: Keys = False,
    yaml: Yaml = False,
) -> None:
    """Train; a run that was stopped goes on where it was."""
    settings = read_settings(
        "headwater.train.settings:PretrainSettings",
        arguments,
        keys,
        yaml,
        command="headwater pretrain",
        example="pretrain/tiny out=runs/tiny",
    )
    if nproc == 1:
        raise typer.Exit(load("headwater.train.__main__:pretrain")(settings))
    if split_arguments(arguments)[0] is None:
        raise UserError(
            "several processes need a configuration", expected="a YAML file or a preset before the overrides"
        )
    from headwater.launch.jobs.command import module_command

    command = module_command("headwater.train", arguments or [], processes=nproc)
    sys.stdout.flush()
    # Replacing this process lets signals reach torchrun, and its exit status reach the caller.
    os.execv(command[0], command)


@index_app.callback()
def index() -> None:
    """Store the gradient row of every passage of a run's corpus at a checkpoint."""


@index_app.command("run")
def index_run(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Build an index (`run` may be left out); one that was stopped goes on where it was."""
    settings = read_settings(
        "headwater.attribution.settings:IndexSettings",
        arguments,
        keys,
        yaml,
        command="headwater index",
        example="index/run model.run=runs/tiny",
    )
    typer.echo(load("headwater.attribution.index.build:build_index")(settings))


@index_app.command("verify")
def index_verify(directory: Annotated[Path, typer.Argument(help="An index directory.")]) -> None:
    """Read every byte of an index and compare it with what the index says of itself."""
    found = load("headwater.attribution.index.verify:verify")(directory)
    typer.echo(f"{directory} is whole: {found.passages:,} passages, {found.shards} shards, {found.bytes:,} bytes")


@index_app.command("send")
def index_send(
    directory: Annotated[Path, typer.Argument(help="A finished index.")],
    address: Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX")],
) -> None:
    """Put an index into an object store, from where it can be searched."""
    count = load("headwater.attribution.index.store:send")(directory, address)
    typer.echo(f"{address}: {count} files")


@index_app.command("fetch")
def index_fetch(
    address: Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX")],
    directory: Annotated[Path, typer.Argument(help="A new directory.")],
    cache_bytes: Annotated[str, typer.Option(help="What rows may take of the disk, 200GB for example.")] = "",
) -> None:
    """Search an index in an object store: its rows are fetched as a scan comes to them."""
    load("headwater.attribution.index.store:fetch")(address, directory, cache_bytes)
    typer.echo(f"{directory} can be searched; its rows come from {address} as they are asked for")


def queries(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Make the gradient rows of a file of queries once, so that `trace rows=FILE` needs no model."""
    settings = read_settings(
        "headwater.attribution.settings:QueriesSettings",
        arguments,
        keys,
        yaml,
        command="headwater queries",
        example="queries/default index=runs/demo/index/headwater queries=q.jsonl out=q.safetensors",
    )
    made = load("headwater.attribution.tracing.asking:run_queries")(settings)
    typer.echo(f"{settings.out}: the rows of {len(made.queries):,} queries")


def trace(
    arguments: Arguments = None,
    prompt: Annotated[str | None, typer.Option(help="Trace this prompt instead of the run's probes.")] = None,
    target: Annotated[str | None, typer.Option(help="What follows the prompt.")] = None,
    against: Annotated[str | None, typer.Option(help="Another target: trace what favours the one over it.")] = None,
    keys: Keys = False,
    yaml: Yaml = False,
) -> None:
    """Scan a whole index for the passages that moved each prediction, with the steps at which they were seen."""
    if (prompt is None) != (target is None):
        raise UserError("--prompt and --target go together", fix="give both, or neither to trace the run's probes")
    if against is not None and prompt is None:
        raise UserError("--against needs --prompt and --target", fix='in a file of queries, write "against": "..."')
    settings = read_settings(
        "headwater.attribution.settings:TraceSettings",
        arguments,
        keys,
        yaml,
        command="headwater trace",
        example="" if prompt else "index=runs/demo/index/headwater --prompt 'The capital of Peru is' --target Lima",
    )
    results = load("headwater.attribution.tracing.run:run_trace")(
        settings, prompt=prompt, target=target, against=against
    )
    if prompt is not None:
        _print_trace(results[0])
    else:
        typer.echo(
            f"{len(results):,} queries traced" + (f": {settings.out}" if settings.out else "; set out= to keep them")
        )


def select(
    arguments: Arguments = None,
    top: Annotated[int | None, typer.Option(min=1, help="Take this many; short for top=.")] = None,
    share: Annotated[float | None, typer.Option(min=0, max=1, help="Take this share; short for share=.")] = None,
    keys: Keys = False,
    yaml: Yaml = False,
) -> None:
    """Score a whole corpus for a task, and write the passages or documents that serve it best."""
    given = [f"{key}={value}" for key, value in (("top", top), ("share", share)) if value is not None]
    settings = read_settings(
        "headwater.attribution.selection.settings:SelectSettings",
        [*(arguments or []), *given],
        keys,
        yaml,
        command="headwater select",
        example="select/default index=runs/demo/index/headwater queries=task.jsonl share=0.5 out=chosen.jsonl",
    )
    made = load("headwater.attribution.selection.run:run_select")(settings)
    for source, count in made.of.items():
        typer.echo(f"{source}: {made.taken[source]:,} of {count:,}")
    typer.echo(f"{made.out}: {sum(made.taken.values()):,} {settings.unit}s, scores from {made.lowest:.4f} up")


def evaluate(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Compare attribution methods on queries whose sources are known."""
    settings = read_settings(
        "headwater.attribution.settings:EvaluateSettings",
        arguments,
        keys,
        yaml,
        command="headwater evaluate",
        example="run=runs/demo",
    )
    table = load("headwater.attribution.evaluation.evaluate:evaluate")(settings)
    from rich.console import Console

    console = Console()
    for each in load("headwater.attribution.evaluation.table:console_tables")(table, console.width):
        console.print(each)


def report(arguments: Arguments = None, keys: Keys = False, yaml: Yaml = False) -> None:
    """Write the report of a run: one self-contained page, and summary.json."""
    settings = read_settings(
        "headwater.attribution.report.settings:ReportSettings",
        arguments,
        keys,
        yaml,
        command="headwater report",
        example="run=runs/demo",
    )
    typer.echo(load("headwater.attribution.report.build:build_report")(settings))


def _print_trace(result: dict[str, Any]) -> None:
    """One query's results: score, steps at which the passage was seen, id and text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for end in ("proponent", "opponent"):
        table = Table("score", "seen at steps", f"{end}s", box=None, header_style="bold", pad_edge=False)
        scored = result.get(f"{end}_token_scores") or [[]] * len(result[f"{end}s"])
        pieces = result.get(f"{end}_tokens") or scored
        seen = result.get(f"{end}_seen_steps") or [[]] * len(result[f"{end}s"])
        for score, steps, name, text, tokens, scores in zip(
            result[f"{end}_scores"], seen, result[f"{end}_ids"], result[f"{end}s"], pieces, scored, strict=True
        ):
            shown = ", ".join(map(str, steps[:4])) + (", ..." if len(steps) > 4 else "")
            table.add_row(f"{score:.3g}", shown, Text.assemble((f"{name}  ", "bold"), " ".join(text.split())))
            if tokens:
                each = (
                    f"{part.strip() or repr(part)} {value:+.4f}" for part, value in zip(tokens, scores, strict=True)
                )
                table.add_row("", "", Text("  ".join(each), style="dim"))
        Console(highlight=False).print(table)
