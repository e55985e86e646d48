"""The `headwater` command: one subcommand for each stage, and the tools around them.

    headwater demo                                     # everything, small, on two CPU cores
    headwater pretrain pretrain/tiny out=runs/a train.steps=20
    headwater trace trace/default index=runs/a/index/headwater --prompt "The capital is" --target "Lima"

A stage takes a configuration (a YAML file, or a packaged preset's name) and `key=value` overrides. Everything heavy
is imported by the command that needs it, so that `headwater --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from headwater.launch.cli.benchmarks import bench_app
from headwater.launch.cli.checkpoints import export_, import_
from headwater.launch.cli.exploring import explore
from headwater.launch.cli.front import OK, OPTIONS, Front, load
from headwater.launch.cli.machines import doctor, launch, plan
from headwater.launch.cli.pairs import pair
from headwater.launch.cli.results import fetch, send
from headwater.launch.cli.stages import (
    corpus_app,
    demo,
    evaluate,
    index_app,
    pretrain,
    queries,
    report,
    select,
    trace,
)
from headwater.launch.cli.studies import ablate_app, study_app

app = typer.Typer(
    cls=Front,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    **{**OPTIONS, "add_completion": True},
)


@app.callback(invoke_without_command=True)
def front(
    show_version: Annotated[bool, typer.Option("--version", help="Print version and commit, and stop.")] = False,
) -> None:
    """Train a language model on a stream of documents, plant facts in it, and trace what it knows to its source."""
    if show_version:
        from importlib.metadata import version

        commit = load("headwater.train.artifacts:git_commit")()
        typer.echo(f"headwater {version('headwater')}" + (f" ({commit})" if commit else ""))
        raise typer.Exit(OK)


for command in (
    demo,
    pretrain,
    queries,
    trace,
    select,
    evaluate,
    report,
    explore,
    pair,
    plan,
    launch,
    send,
    fetch,
    doctor,
):
    app.command()(command)
app.command("export")(export_)
app.command("import")(import_)
app.add_typer(corpus_app, name="corpus")
app.add_typer(index_app, name="index")
app.add_typer(bench_app, name="bench")
app.add_typer(study_app, name="study")
app.add_typer(ablate_app, name="ablate")
