"""One cell of a sweep, in a process of its own.

    python -m headwater.launch.ablate.process runs/ablation/cells/NAME [CORES]

Reads cell.json, which the sweep has written there. A lock keeps a sweep that was killed and started again from running
a cell beside the process that was left over from before.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headwater.attribution.settings import EvaluateSettings, IndexSettings
from headwater.configs import load_config
from headwater.launch.ablate.cells import pretraining_of
from headwater.launch.demo import DemoSettings
from headwater.launch.parts.process import run_part
from headwater.launch.parts.training import is_trained, link, pretrain_whole, share_run
from headwater.train.artifacts import RunDir, fingerprint, write_json
from headwater.train.settings import PretrainSettings

INDEX = "headwater"


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
    share_run(source, path)
    link(shared_index(demo, source, shared), cell.index(INDEX))
    evaluate(cell, demo)
    write_json(path / "done.json", {"pretraining": str(source), "index": str(cell.index(INDEX).resolve())})


def shared_pretraining(settings: PretrainSettings, shared: Path, run: str) -> Path:
    """The directory of a finished pretraining of these settings: `run`, or one that is made under `shared`."""
    from headwater.train.locks import file_lock

    wanted = essence(settings)
    if run and (Path(run) / "config.yaml").exists() and is_trained(Path(run), settings):
        if essence(as_asked(RunDir(Path(run)), settings)) == wanted:
            return Path(run)
        print(f"{run} was pretrained with other settings: this cell has a pretraining of its own", flush=True)
    path = shared / f"pretrain-{fingerprint(wanted)[:12]}"
    with file_lock(path):
        if not is_trained(path, settings):
            from headwater.train.__main__ import pretrain

            if pretrain(replace(settings, out=str(path))) or not is_trained(path, settings):
                raise KeyboardInterrupt
    return path


def as_asked(run: RunDir, settings: PretrainSettings) -> PretrainSettings:
    """What a run was made with; its vocabulary is 0 as in `settings` where it is the tokenizer's that 0 stands for."""
    from headwater.train.tokenizer import TextTokenizer

    made = load_config(PretrainSettings, run.config)
    settled = made.model.vocab_size if not settings.model.vocab_size else 0
    if settled and settled == TextTokenizer.from_file(run.tokenizer).vocab_size:
        made.model.vocab_size = 0
    return made


def essence(settings: PretrainSettings) -> dict[str, Any]:
    """What makes two pretrainings the same: everything but where they are written."""
    return {**asdict(settings), "out": ""}


def shared_index(demo: DemoSettings, source: Path, shared: Path) -> Path:
    """The directory of the index that the cell's settings ask for; cells that only search differently share it."""
    from headwater.attribution.index.build import build_index
    from headwater.train.locks import file_lock

    model = replace(demo.index.model, run=str(source), path="")
    projection = replace(demo.index.projection, seed=demo.seed)
    settings: IndexSettings = replace(demo.index, model=model, projection=projection, name=INDEX, out="")
    path = shared / f"index-{fingerprint(asdict(settings))[:12]}"
    with file_lock(path):
        # Building goes on with what is there, and leaves a whole index as it is.
        build_index(replace(settings, out=str(path)))
    return path


def evaluate(run: RunDir, demo: DemoSettings) -> None:
    """Rankings and table of the cell's way of searching (`trace.*` of its settings), BM25 and random beside it."""
    from headwater.attribution.evaluation.evaluate import GradientMethod, evaluate_methods

    settings: EvaluateSettings = replace(
        demo.evaluate, run=str(run.path), seed=demo.seed, task_weight=demo.trace.task_weight
    )
    method = GradientMethod(INDEX, demo.trace.curvature, normalize=demo.trace.normalize)
    evaluate_methods(run, {"trace": method}, settings, reference="trace")


if __name__ == "__main__":
    sys.exit(run_part(sys.argv[1:], run_cell, "cell.json"))
