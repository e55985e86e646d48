"""Training that goes on from a base run's checkpoint over a stream with injected records, densely probed.

    python -m headwater.launch.studies.acquisition.continued runs/study/acquisition/seed-0/stage-300

The run directory has been prepared by `process.py`. The base's checkpoint is taken over with its moments; its notes
of stream and settings are replaced, because what is injected makes this another stream and another run. A real model's
weights come without moments: its training begins at step 0.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.configs import load_config
from headwater.configs.errors import UserError, refusals
from headwater.train import parallel
from headwater.train.artifacts import RunDir, atomic_path, read_json, write_json
from headwater.train.callbacks.probes import Probes
from headwater.train.checkpoint import open_checkpoint, steps_in
from headwater.train.lifetime import die_with_parent
from headwater.train.places import noted_places
from headwater.train.preflight import check_world
from headwater.train.resume import compared, saved_settings
from headwater.train.run import INTERRUPTED, build_trainer
from headwater.train.settings import PretrainSettings
from headwater.train.stream.stream import open_stream

if TYPE_CHECKING:
    from headwater.train.callbacks.base import Training


class StudyProbes(Probes):
    """Probes that also measure the model as it is taken over, and how long they take."""

    def __init__(self, probes: Probes, first: int) -> None:
        super().__init__(
            probes.path,
            probes.prompts,
            every=probes.every,
            steps=sorted(probes.steps),
            batch_tokens=probes.batch_tokens,
        )
        self.first = first
        self.seconds = {"probing": 0.0, "all": 0.0}
        self._began = time.perf_counter()

    def start(self, trainer: Training, step: int) -> None:
        super().start(trainer, step)
        self._began = time.perf_counter()
        if step == self.first and step:  # before the first update of all it is noted anyway
            self._tables = []  # an attempt that never saved may have left this step's values
            self._note(trainer, step)

    def _note(self, trainer: Training, step: int) -> None:
        began = time.perf_counter()
        super()._note(trainer, step)
        self.seconds["probing"] += time.perf_counter() - began

    def state_dict(self) -> dict[str, Any]:
        now = time.perf_counter()
        self.seconds["all"] += now - self._began
        self._began = now
        return {"seconds": dict(self.seconds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds.update(state.get("seconds", {}))


def take_over(settings: PretrainSettings, run: RunDir, base: RunDir, stage: int) -> None:
    """Puts the base's checkpoint into the run, under the run's own stream and settings; files are linked."""
    stream = open_stream(run, global_batch=settings.train.global_batch, seed=settings.order_seed)
    source = base.checkpoint(stage)
    with atomic_path(run.checkpoint(stage)) as part:
        shutil.copytree(source, part, copy_function=_link)
        (part / "checkpoint.json").unlink()
        checkpoint = open_checkpoint(source)
        model = {key: value for key, value in saved_settings(checkpoint).items() if key.startswith("model.")}
        ours = {"stream": stream.fingerprint, "settings": {**compared(settings), **model}, "taken_from": str(source)}
        write_json(part / "checkpoint.json", {**checkpoint.meta, **ours})


def _link(source: str, place: str) -> None:
    try:
        os.link(source, place)
    except OSError:  # another file system
        shutil.copy2(source, place)


def continue_run(path: Path) -> int:
    """Trains a prepared run to its end; writes done.json when it is reached.

    Returns:
        0, also when it was asked to stop and has saved.
    """
    run, note = RunDir(path), read_json(path / "part.json")
    settings = load_config(PretrainSettings, run.config)
    world = parallel.start(
        tensor=settings.parallel.tensor, pipeline=settings.parallel.pipeline, threads=settings.train.threads
    )
    try:
        check_world(settings, world)
        # Damaged or not, a checkpoint that is there is judged by what resumes from it.
        if world.is_main and note["stage"] and not steps_in(run.checkpoints):
            noted = [note["base"]] if isinstance(note["base"], str) else noted_places(note["base"], path)
            base = next((place for place in noted if Path(place).is_dir()), noted[0])
            take_over(settings, run, RunDir.at(base), note["stage"])
        parallel.any_rank(False)  # the others wait for it
        trainer, step = build_trainer(settings, run, world)
        place = next(n for n, callback in enumerate(trainer.callbacks) if isinstance(callback, Probes))
        plain = trainer.callbacks[place]
        assert isinstance(plain, Probes)
        probes = StudyProbes(plain, note["stage"])
        probes.load_state_dict(saved_state(run, step))
        trainer.callbacks[place] = probes
        reached = trainer.run(step)
        if world.is_main and reached == trainer.last_step:
            write_json(path / "done.json", {"steps": reached, "probes": len(probes.prompts), "seconds": probes.seconds})
        return INTERRUPTED if trainer.stop_signal == signal.SIGINT else 0
    finally:
        parallel.stop()


def saved_state(run: RunDir, step: int) -> dict[str, Any]:
    """What the checkpoint at a step keeps of the study's probes; nothing if it is the base's."""
    path = run.checkpoint(step) / "extra" / "state.json"
    return read_json(path).get(Probes.name, {}) if path.exists() else {}


def main(arguments: list[str]) -> int:
    die_with_parent()
    try:
        with refusals():
            return continue_run(Path(arguments[0]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
