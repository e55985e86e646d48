"""One cell of a sweep, in a process of its own.

    python -m headwater.launch.ablate.process runs/ablation/cells/NAME [CORES]

Reads cell.json, which the sweep has written there. A lock keeps a sweep that was killed and started again from running
a cell beside the process that was left over from before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headwater.attribution.settings import EvaluateSettings, IndexSettings
from headwater.configs import load_config
from headwater.configs.errors import UserError
from headwater.launch.ablate.cells import pretraining_of
from headwater.launch.demo import DemoSettings
from headwater.launch.parts.training import is_trained, link, pretrain_whole
from headwater.train.artifacts import RunDir, fingerprint, read_json, write_json
from headwater.train.settings import PretrainSettings

SHARED = (
    "config.yaml",
    "tokenizer.json",
    "corpus",
    "facts",
    "checkpoints",
    "ledger",
    "probes.parquet",
    "metrics.jsonl",
)
"""What a trace cell takes from the pretraining that it shares with others, as links."""
INDEX = "headwater"


def main(arguments: list[str], work: Callable[[Path, dict[str, Any]], int] | None = None) -> int:
    """Does a cell's work (`run_cell`, unless told otherwise) on its cores, while nobody else does."""
    from headwater.train.stream.shards import file_lock

    path = Path(arguments[0])
    if len(arguments) > 1 and arguments[1]:
        os.sched_setaffinity(0, {int(core) for core in arguments[1].split(",")})
    try:
        with file_lock(path / "running"):
            return (work or run_cell)(path, read_json(path / "cell.json"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def run_cell(path: Path, task: dict[str, Any]) -> int:
    """Makes a cell's run directory, or goes on with it; returns the exit status."""
    if task["kind"] == "pretrain":
        return pretrain_whole(path, load_config(PretrainSettings, task["preset"], task["overrides"]))
    if task["kind"] == "storage":
        from headwater.launch.studies.storage.settings import StorageSettings
        from headwater.launch.studies.storage.study import run_storage

        run_storage(load_config(StorageSettings, task["preset"], task["overrides"]))
        return 0
    demo = load_config(DemoSettings, task["preset"], task["overrides"])
    if task["kind"] == "demo":
        from headwater.launch.demo import run_demo

        run_demo(demo)
        return 0
    run_trace_cell(path, demo, Path(task["shared"]), task["run"])
    return 0


def run_trace_cell(path: Path, demo: DemoSettings, shared: Path, run: str) -> None:
    """An index and its evaluation, on a pretraining (and on an index) that other cells may have made."""
    source = shared_pretraining(pretraining_of(demo), shared, run)
    cell = RunDir(path)
    for name in SHARED:
        link(source / name, path / name)
    link(shared_index(demo, source, shared), cell.index(INDEX))
    write_json(cell.evaluation / "table.json", evaluate(cell, demo))
    write_json(path / "done.json", {"pretraining": str(source), "index": str(cell.index(INDEX).resolve())})


def shared_pretraining(settings: PretrainSettings, shared: Path, run: str) -> Path:
    """The directory of a finished pretraining of these settings: `run`, or one that is made under `shared`."""
    from headwater.train.stream.shards import file_lock

    wanted = essence(settings)
    if run and (Path(run) / "config.yaml").exists() and is_trained(Path(run), settings):
        if essence(load_config(PretrainSettings, Path(run) / "config.yaml")) == wanted:
            return Path(run)
        print(f"{run} was pretrained with other settings: this cell has a pretraining of its own", flush=True)
    path = shared / f"pretrain-{fingerprint(wanted)[:12]}"
    with file_lock(path):
        if not is_trained(path, settings):
            from headwater.train.__main__ import pretrain

            if pretrain(replace(settings, out=str(path))) or not is_trained(path, settings):
                raise KeyboardInterrupt
    return path


def essence(settings: PretrainSettings) -> dict[str, Any]:
    """What makes two pretrainings the same: everything but where they are written."""
    return {**asdict(settings), "out": ""}


def shared_index(demo: DemoSettings, source: Path, shared: Path) -> Path:
    """The directory of the index that the cell's settings ask for; cells that only search differently share it."""
    from headwater.attribution.index.build import build_index
    from headwater.train.stream.shards import file_lock

    model = replace(demo.index.model, run=str(source), path="")
    projection = replace(demo.index.projection, seed=demo.seed)
    settings: IndexSettings = replace(demo.index, model=model, projection=projection, name=INDEX, out="")
    path = shared / f"index-{fingerprint(asdict(settings))[:12]}"
    with file_lock(path):
        # Building goes on with what is there, and leaves a whole index as it is.
        build_index(replace(settings, out=str(path)))
    return path


def evaluate(run: RunDir, demo: DemoSettings) -> dict[str, Any]:
    """Rankings and table of the cell's way of searching (`trace.*` of its settings), BM25 and random beside it."""
    from headwater.attribution.evaluation import run as evaluation
    from headwater.attribution.evaluation.table import build_table
    from headwater.attribution.methods.bm25 import BM25
    from headwater.attribution.methods.random_ranking import RandomRanking
    from headwater.attribution.methods.ranking import Passages, Query, write_rankings
    from headwater.attribution.queries import read_queries
    from headwater.train import parallel
    from headwater.train.numerics import keep_freed_memory, use_onednn
    from headwater.train.stream.corpus import open_passages
    from headwater.train.stream.tokenizer import TextTokenizer

    settings: EvaluateSettings = replace(demo.evaluate, run=str(run.path), seed=demo.seed, lambda_=demo.trace.lambda_)
    method = evaluation.GradientMethod(INDEX, demo.trace.curvature, normalize=demo.trace.normalize)
    world = parallel.start()
    try:
        keep_freed_memory()
        use_onednn()
        queries = read_queries(run.facts / "probes.jsonl")
        texts = Passages.read(open_passages(run), TextTokenizer.from_file(run.tokenizer))
        asked = [Query(q.example_id, q.prompt, q.target, q.gold) for q in queries]
        rankings = {
            "trace": evaluation.gradient_rankings(run, method, queries, texts, settings, world),
            "bm25": BM25().rank(asked, texts),
            "random": RandomRanking(settings.seed).rank(asked, texts),
        }
        for name, each in rankings.items():
            write_rankings(run.evaluation / f"{name}.jsonl", each)
        patched = None
        if settings.tail_patch.enabled:
            step = evaluation.last_indexed_step(run, {"trace": method})
            patched = evaluation.measure_tail_patch(run, step, settings, queries, rankings, texts, world)
        return build_table(rankings, patched, reference="trace", seed=settings.seed)
    finally:
        parallel.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
