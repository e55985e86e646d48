"""What each rank does in test_checkpoint: opens a run where it stands and saves that again, elsewhere."""

from __future__ import annotations

from pathlib import Path


def resave(arguments: list[str], directory: str) -> None:
    """`arguments` as for `python -m headwater.train`; writes `directory`/step-NNNNNNNN."""
    from headwater.configs import load_config
    from headwater.train import parallel
    from headwater.train.artifacts import RunDir
    from headwater.train.checkpoint_writer import CheckpointWriter
    from headwater.train.run import build_trainer
    from headwater.train.settings import PretrainSettings

    settings = load_config(PretrainSettings, arguments[0], arguments[1:])
    world = parallel.start(tensor=settings.parallel.tensor, pipeline=settings.parallel.pipeline)
    trainer, step = build_trainer(settings, RunDir.at(settings.out), world)
    CheckpointWriter(Path(directory), world).save(trainer.engine, step, {"updates": trainer.engine.updates})
