"""The `headwater` command: one subcommand for each stage, and the tools around them.

    headwater demo                                     # everything, small, on two CPU cores
    headwater pretrain pretrain/tiny out=runs/a train.steps=20
    headwater trace trace/default run=runs/a --prompt "The capital of" --target "Peru"

A stage takes a configuration (a YAML file, or a packaged preset's name) and `key=value` overrides. Everything heavy
is imported by the command that needs it, so that `headwater --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headwater.configs.errors import UserError

OK, USER_ERROR, INTERRUPTED = 0, 2, 130


ORDER = ["demo", "corpus", "pretrain", "index", "trace", "evaluate", "report", "study", "ablate"]
ORDER += ["plan", "launch", "export", "import", "bench"]


class Front(TyperGroup):
    """The outermost group: turns what a user can mend into a message and an exit status, without a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _say("error", str(error), "bold red")
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            _say("interrupted", "what was finished is kept; the same command goes on from there", "bold yellow")
            raise typer.Exit(INTERRUPTED) from None


class StageGroup(TyperGroup):
    """A stage with further tools: `headwater index CONFIG` means `headwater index run CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _say(label: str, message: str, style: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble((f"{label}: ", style), message))


_OPTIONS = {"no_args_is_help": True, "pretty_exceptions_enable": False, "add_completion": False}
_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(cls=Front, context_settings=_HELP, rich_markup_mode="rich", **_OPTIONS)  # type: ignore[arg-type]
corpus_app = typer.Typer(cls=StageGroup, **_OPTIONS)  # type: ignore[arg-type]
index_app = typer.Typer(cls=StageGroup, **_OPTIONS)  # type: ignore[arg-type]
bench_app = typer.Typer(**_OPTIONS)  # type: ignore[arg-type]
study_app = typer.Typer(**_OPTIONS)  # type: ignore[arg-type]
ablate_app = typer.Typer(cls=StageGroup, **_OPTIONS)  # type: ignore[arg-type]

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file or preset, then settings that replace its own."
    ),
]
Keys = Annotated[bool, typer.Option("--keys", help="Print every setting with its default, and stop.")]


def split_arguments(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """The configuration (the first argument, unless it is `key=value`) and the overrides."""
    arguments = arguments or []
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).is_file()):
        return arguments[0], arguments[1:]
    return None, arguments


def _load(target: str) -> Any:
    """`package.module:name`, imported now."""
    module, name = target.split(":")
    return getattr(import_module(module), name)


def _settings(schema: str, arguments: list[str] | None, keys: bool, preset: str | None = None) -> Any:
    """The settings that the arguments name; `preset` is the configuration when they name none."""
    from headwater.configs import load_config

    settings_class = _load(schema)
    if keys:
        _print_keys(settings_class)
        raise typer.Exit(OK)
    config, overrides = split_arguments(arguments)
    return load_config(settings_class, config or preset, overrides)


def _print_keys(schema: type) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from headwater.configs import describe

    table = Table("setting", "type", "default", "what it is", box=None, header_style="bold")
    for row in describe(schema):
        table.add_row(
            Text(row.key),
            Text(row.type),
            Text(row.default),
            Text(". ".join(filter(None, [row.help.rstrip("."), row.allowed]))),
        )
    Console().print(table)


def _print_trace(result: dict[str, Any]) -> None:
    """One query's results: score, steps at which the passage was seen, id and text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for end in ("proponent", "opponent"):
        table = Table("score", "seen at steps", f"{end}s", box=None, header_style="bold", pad_edge=False)
        seen = result.get(f"{end}_seen_steps") or [[]] * len(result[f"{end}s"])
        for score, steps, name, text in zip(
            result[f"{end}_scores"], seen, result[f"{end}_ids"], result[f"{end}s"], strict=True
        ):
            shown = ", ".join(map(str, steps[:4])) + (", ..." if len(steps) > 4 else "")
            table.add_row(f"{score:.4f}", shown, Text.assemble((f"{name}  ", "bold"), " ".join(text.split())))
        Console(highlight=False).print(table)


@app.callback(invoke_without_command=True)
def front(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version, and stop.")] = False,
) -> None:
    """Train a language model on a stream of documents, plant facts in it, and trace what it knows to its source."""
    if show_version:
        from importlib.metadata import version

        typer.echo(f"headwater {version('headwater')}")
        raise typer.Exit(OK)


@app.command()
def demo(arguments: Arguments = None, keys: Keys = False) -> None:
    """Run everything, small, on this machine: corpus, facts, pretraining, index, trace, evaluation, report."""
    settings = _settings("headwater.launch.demo:DemoSettings", arguments, keys, preset="configs/demo.yaml")
    _load("headwater.launch.demo:run_demo")(settings)


@corpus_app.callback()
def corpus() -> None:
    """Read documents, train a tokenizer, cut passages, pack them and write the shards."""


@corpus_app.command("run")
def corpus_run(arguments: Arguments = None, keys: Keys = False) -> None:
    """Build the corpus of a pretraining configuration (`run` may be left out)."""
    settings = _settings("headwater.train.settings:PretrainSettings", arguments, keys)
    _load("headwater.train.stream.build:build_corpus")(settings, progress=typer.echo)


@corpus_app.command("inspect")
def corpus_inspect(
    path: Annotated[Path, typer.Argument(help="A corpus directory, or a run directory.")],
    sequence: Annotated[int, typer.Option(min=0, help="The first sequence to show.")] = 0,
    count: Annotated[int, typer.Option(min=0, help="How many sequences to show.")] = 3,
    passage: Annotated[str | None, typer.Option(help="Show this passage (id or number) in full instead.")] = None,
) -> None:
    """Show a corpus's figures and some of its sequences with their passages, and check its files."""
    _load("headwater.train.stream.inspect:inspect")(path, sequence=sequence, count=count, passage=passage)


@app.command()
def pretrain(
    arguments: Arguments = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    keys: Keys = False,
) -> None:
    """Train; a run that was stopped goes on where it was."""
    settings = _settings("headwater.train.settings:PretrainSettings", arguments, keys)
    if nproc == 1:
        raise typer.Exit(_load("headwater.train.__main__:pretrain")(settings))
    if split_arguments(arguments)[0] is None:
        raise UserError(
            "several processes need a configuration", expected="a YAML file or a preset before the overrides"
        )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc), "-m", "headwater.train"]
    sys.stdout.flush()
    # Replacing this process lets signals reach torchrun, and its exit status reach the caller.
    os.execv(sys.executable, [sys.executable, *torchrun, *(arguments or [])])


@index_app.callback()
def index() -> None:
    """Store the gradient row of every passage of a run's corpus at a checkpoint."""


@index_app.command("run")
def index_run(arguments: Arguments = None, keys: Keys = False) -> None:
    """Build an index (`run` may be left out); one that was stopped goes on where it was."""
    settings = _settings("headwater.attribution.settings:IndexSettings", arguments, keys)
    typer.echo(_load("headwater.attribution.index.build:build_index")(settings))


@index_app.command("verify")
def index_verify(directory: Annotated[Path, typer.Argument(help="An index directory.")]) -> None:
    """Read every byte of an index and compare it with what the index says of itself."""
    found = _load("headwater.attribution.index.verify:verify")(directory)
    typer.echo(f"{directory} is whole: {found.passages:,} passages, {found.shards} shards, {found.bytes:,} bytes")


@app.command()
def trace(
    arguments: Arguments = None,
    prompt: Annotated[str | None, typer.Option(help="Trace this prompt instead of the run's probes.")] = None,
    target: Annotated[str | None, typer.Option(help="What follows the prompt.")] = None,
    against: Annotated[str | None, typer.Option(help="Another target: trace what favours the one over it.")] = None,
    keys: Keys = False,
) -> None:
    """Scan a whole index for the passages that moved each prediction, with the steps at which they were seen."""
    if (prompt is None) != (target is None):
        raise UserError("--prompt and --target go together", fix="give both, or neither to trace the run's probes")
    if against is not None and prompt is None:
        raise UserError("--against needs --prompt and --target", fix='in a file of queries, write "against": "..."')
    settings = _settings("headwater.attribution.settings:TraceSettings", arguments, keys)
    results = _load("headwater.attribution.tracing:run_trace")(settings, prompt=prompt, target=target, against=against)
    if prompt is not None:
        _print_trace(results[0])
    else:
        typer.echo(
            f"{len(results):,} queries traced" + (f": {settings.out}" if settings.out else "; set out= to keep them")
        )


@app.command()
def evaluate(arguments: Arguments = None, keys: Keys = False) -> None:
    """Compare attribution methods on queries whose sources are known."""
    settings = _settings("headwater.attribution.settings:EvaluateSettings", arguments, keys)
    table = _load("headwater.attribution.evaluation.run:evaluate")(settings)
    from rich.console import Console

    console = Console()
    console.print(_load("headwater.attribution.evaluation.table:console_table")(table, console.width))


@app.command()
def report(arguments: Arguments = None, keys: Keys = False) -> None:
    """Write the report of a run: one self-contained page, and summary.json."""
    settings = _settings("headwater.attribution.settings:ReportSettings", arguments, keys)
    typer.echo(_load("headwater.attribution.report.build:build_report")(settings))


@study_app.callback()
def study() -> None:
    """Run a study, and say which of its claims hold here."""


@study_app.command("acquisition")
def study_acquisition(arguments: Arguments = None, keys: Keys = False) -> None:
    """Plant facts from a checkpoint on, and follow how they are acquired and forgotten."""
    config, overrides = split_arguments(arguments)
    given = [config or "configs/study/acquisition.yaml", *overrides]
    settings = _settings("headwater.launch.studies.acquisition.study:AcquisitionSettings", given, keys)
    _load("headwater.launch.studies.acquisition.study:run_acquisition")(settings)


@study_app.command("storage")
def study_storage(arguments: Arguments = None, keys: Keys = False) -> None:
    """Write people's biographies in sixteen ways, and see which of them questions can be answered from."""
    config, overrides = split_arguments(arguments)
    given = [config or "configs/study/storage.yaml", *overrides]
    settings = _settings("headwater.launch.studies.storage.study:StorageSettings", given, keys)
    _load("headwater.launch.studies.storage.study:run_storage")(settings)


@study_app.command("overlearnt")
def study_overlearnt(arguments: Arguments = None, keys: Keys = False) -> None:
    """Trace facts that a model has learnt too well, and train again without the passages that are named."""
    config, overrides = split_arguments(arguments)
    given = [config or "configs/study/overlearnt.yaml", *overrides]
    settings = _settings("headwater.launch.studies.overlearnt.study:OverlearntSettings", given, keys)
    _load("headwater.launch.studies.overlearnt.study:run_overlearnt")(settings)


@ablate_app.callback()
def ablate() -> None:
    """Run a sweep of cells that differ in a grid of settings, each an ordinary run directory, and compare them."""


@ablate_app.command("run")
def ablate_run(arguments: Arguments = None, keys: Keys = False) -> None:
    """Run the cells that are not finished, and write the report (`run` may be left out)."""
    settings = _settings("headwater.launch.ablate.cells:AblateSettings", arguments, keys)
    raise typer.Exit(1 if _load("headwater.launch.ablate.cells:run_ablation")(settings) else OK)


@ablate_app.command("report")
def ablate_report(arguments: Arguments = None, keys: Keys = False) -> None:
    """Write the table and the plots of what is finished."""
    settings = _settings("headwater.launch.ablate.cells:AblateSettings", arguments, keys)
    _load("headwater.launch.ablate.report:write_report")(settings)


@app.command()
def plan(
    arguments: Arguments = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    keys: Keys = False,
) -> None:
    """Say what a pretraining configuration needs on given GPUs, before anything is launched: gpus=64 gpu=h100.

    Parameters, memory, FLOPs, time, checkpoints, index. A layout that cannot work is refused, with the nearest that do.
    """
    from headwater.launch.plan.layouts import PlanSettings
    from headwater.launch.plan.report import run_plan

    if keys:
        _print_keys(PlanSettings)
        return
    run_plan(*split_arguments(arguments), as_json=json)


@app.command()
def launch(
    arguments: Arguments = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Processes on each machine.")] = 8,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write an sbatch script instead of a torchrun one.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Also submit it (--slurm) or run it here.")] = False,
    time_limit: Annotated[str, typer.Option(help="SLURM's time limit, [D-]HH:MM:SS.")] = "24:00:00",
    notice: Annotated[int, typer.Option(min=1, help="Minutes before the limit at which the run saves and stops.")] = 10,
    restarts: Annotated[int, typer.Option(min=0, help="Times that torchrun starts failed processes again.")] = 3,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the rendezvous.")] = 29400,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the script goes; RUN/launch.sh if not given.")] = None,
) -> None:
    """Write (and with --submit start) the torchrun or sbatch script of a pretraining run over several machines."""
    from headwater.launch.jobs.launch import Job, launch_job

    config, overrides = split_arguments(arguments)
    job = Job(
        config=config,
        overrides=overrides,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        slurm=slurm,
        time_limit=time_limit,
        notice_minutes=notice,
        restarts=restarts,
        port=port,
        partition=partition,
        account=account,
        script=output,
    )
    raise typer.Exit(launch_job(job, submit=submit))


@app.command("export")
def export_(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or one checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new directory for the Hugging Face model.")],
    step: Annotated[int | None, typer.Option(min=0, help="A checkpoint of the run; the newest if not given.")] = None,
    dtype: Annotated[str, typer.Option(help="Number format of the weights: fp32 or bf16.")] = "fp32",
) -> None:
    """Write a checkpoint as a Llama model of Hugging Face, tokenizer included."""
    checkpoint = _load("headwater.train.huggingface:export_llama")(source, out, step=step, dtype=dtype)
    typer.echo(f"{out}: {checkpoint.path} as LlamaForCausalLM")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A directory with a Llama model of Hugging Face.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="A new directory for the checkpoint.")],
) -> None:
    """Make a Llama model of Hugging Face into a checkpoint that training can start from."""
    _load("headwater.train.huggingface:import_llama")(source, out)
    typer.echo(f"{out}: start from it with `base: {out / 'model.yaml'}` in a configuration (model.init_from)")


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
}


def _add_benchmark(name: str, help: str) -> None:
    # The benchmark parses its own options, so that its heavy imports wait until it is called.
    passing = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @bench_app.command(name, help=help, context_settings=passing)
    def run(context: typer.Context) -> None:
        from headwater.launch.bench.parser import run_benchmark

        run_benchmark(name, _load(f"headwater.launch.bench.{name}:main"), context.args)


for _name, _help in _BENCHMARKS.items():
    _add_benchmark(_name, _help)
app.add_typer(corpus_app, name="corpus")
app.add_typer(index_app, name="index")
app.add_typer(bench_app, name="bench")
app.add_typer(study_app, name="study")
app.add_typer(ablate_app, name="ablate")
