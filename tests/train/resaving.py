"""What each rank does in test_checkpoint: opens a run where it stands and saves that again, elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resave(arguments: list[str], directory: str) -> None:
    """`arguments` as for `python -m headwater.train`; writes `directory`/step-NNNNNNNN, and read-RANK.json: the bytes
    that loading has read, by the kernel's count. What the forward pass multiplies with is the checkpoint's, too."""
    from headwater.configs import load_config
    from headwater.train import parallel, run
    from headwater.train.artifacts import RunDir
    from headwater.train.checkpoint import newest
    from headwater.train.checkpoint_writer import CheckpointWriter
    from headwater.train.model import parameter_parts
    from headwater.train.settings import PretrainSettings

    settings = load_config(PretrainSettings, arguments[0], arguments[1:])
    world = parallel.start(tensor=settings.parallel.tensor, pipeline=settings.parallel.pipeline)
    counts: dict[str, Any] = {}
    loaders = {name: getattr(run, name) for name in ("load_weights", "load_engine")}
    try:
        for name, loader in loaders.items():
            setattr(run, name, counted(loader, counts, name))
        trainer, step = run.build_trainer(settings, RunDir.at(settings.out), world)
    finally:
        vars(run).update(loaders)
    checkpoint = newest(RunDir.at(settings.out).checkpoints)
    assert checkpoint is not None
    for part in parameter_parts(trainer.engine.model):
        if settings.zero.stage < 3:  # ZeRO-3 leaves the parameter itself empty
            whole = checkpoint.tensor("weight", part.name).to(part.parameter.dtype)
            own = part.slice(whole, parallel.tensor_rank(), parallel.tensor_size())
            assert (own == part.parameter).all(), part.name
    (Path(directory) / f"read-{world.rank}.json").write_text(json.dumps(counts))
    CheckpointWriter(Path(directory), world).save(trainer.engine, step, {"updates": trainer.engine.updates})


def counted(function: Callable[..., None], counts: dict[str, Any], name: str) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        before = bytes_read()
        function(*arguments)
        counts[name] = bytes_read() - before

    return call


def bytes_read() -> int:
    """What this process has asked the kernel for; mapped files are not in it."""
    with open("/proc/self/io") as counts:
        return int(next(line for line in counts if line.startswith("rchar")).split()[1])
