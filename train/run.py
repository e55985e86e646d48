"""A pretraining run from its settings: puts the pieces together, goes on where the run stands, trains."""

from __future__ import annotations

import signal
import sys
from typing import Any

from headwater.configs import save_config
from headwater.train import parallel
from headwater.train.artifacts import RunDir, remove_parts, require_directory, write_provenance
from headwater.train.callbacks.base import Callback
from headwater.train.callbacks.boards import Boards
from headwater.train.callbacks.checkpoints import Checkpoints, restore
from headwater.train.callbacks.garbage import Garbage
from headwater.train.callbacks.ledger import Ledger
from headwater.train.callbacks.metrics import Metrics
from headwater.train.callbacks.preemption import Preemption
from headwater.train.callbacks.probes import Probes, read_prompts
from headwater.train.callbacks.profiler import Profiler
from headwater.train.callbacks.stragglers import Stragglers
from headwater.train.callbacks.validation import Validation
from headwater.train.checkpoint import open_checkpoint
from headwater.train.compared import note_compared
from headwater.train.ending import FINISHED, STOPPED, note_ending
from headwater.train.engine import Engine
from headwater.train.loading import load_engine, load_weights
from headwater.train.locks import sole_writer
from headwater.train.model import build_model
from headwater.train.numerics import keep_freed_memory, use_onednn
from headwater.train.parallel import World
from headwater.train.preflight import check_inputs, check_shared, check_vocabulary, check_world, load_callback
from headwater.train.resume import checkpoint_meta, find_resumption
from headwater.train.settings import PretrainSettings
from headwater.train.stream.corpus import open_corpus
from headwater.train.stream.skipping import read_ranges
from headwater.train.stream.stream import open_stream
from headwater.train.tokenizer import TextTokenizer
from headwater.train.trainer import Trainer

INTERRUPTED = 130

# By name: training does not import attribution, which builds on it. A name, not an entry point of the package's
# metadata, so that a callback in anybody's module works without being installed.
CAPTURE = "headwater.attribution.capture.callback:from_settings"


def pretrain_run(settings: PretrainSettings) -> int:
    """Trains a run to its end, or until it is asked to stop.

    Returns:
        0, also after SIGTERM once the checkpoint is written; 130 after Ctrl-C.
    """
    run = RunDir.at(settings.out)
    parallel.require_launcher()
    world = parallel.start(
        tensor=settings.parallel.tensor, pipeline=settings.parallel.pipeline, threads=settings.train.threads
    )
    try:
        parallel.on_main(world, lambda: require_directory(run.path))
        with sole_writer(run.path, "train", lambda action: parallel.on_main(world, action)):
            check_shared(run.path, "train", world)
            prepare(settings, run, world)
            trainer, step = build_trainer(settings, run, world)
            # What can be wrong has been looked at: only now is anything written into a run that is there already.
            parallel.on_main(world, lambda: note_start(settings, run, world, trainer.origin, step))
            step = trainer.run(step)
            if world.is_main:
                word = FINISHED if step >= trainer.last_step else STOPPED
                note_ending(f"{word} step {step} of {trainer.last_step}")
        return INTERRUPTED if trainer.stop_signal == signal.SIGINT else 0
    finally:
        parallel.stop()


def prepare(settings: PretrainSettings, run: RunDir, world: World) -> None:
    """On one rank: looks at what the settings name, then makes the corpus if it is not there, and says what it is at.
    The others wait, however long that takes."""
    from headwater.train.corpus.build import build_corpus

    def make() -> None:
        check_world(settings, world)
        check_inputs(settings, run)
        build_corpus(settings, lambda line: print(line, file=sys.stderr, flush=True))
        tokenizer = TextTokenizer.from_file(run.tokenizer, settings.corpus.tokenizer.bos)
        check_vocabulary(settings, tokenizer)  # where the tokenizer was not there before

    parallel.on_main(world, make)


def note_start(settings: PretrainSettings, run: RunDir, world: World, origin: dict[str, Any], step: int) -> None:
    """Removes what a killed run left, and notes the resolved config, how this run was started and from where; and that
    the checkpoint it goes on from, if there is one, has been compared."""
    remove_leftovers(run)
    write_provenance(run, world_size=world.size, origin=origin)  # first: it marks the directory as a run's
    save_config(settings, run.config)
    if step:
        note_compared(run.checkpoint(step), open_checkpoint(run.checkpoint(step)).meta["files"])


def remove_leftovers(run: RunDir) -> None:
    """Removes what a killed run was writing: nobody reads a `.part` file, but it takes space."""
    for path in (run.config, run.provenance, run.metrics, run.probes, run.validation, run.stragglers):
        remove_parts(path.parent, f"{path.name}.*")
    for directory in (run.ledger, run.checkpoints, run.profile):
        remove_parts(directory)


def build_trainer(settings: PretrainSettings, run: RunDir, world: World) -> tuple[Trainer, int]:
    """The trainer and the number of updates it goes on from."""
    tokenizer = TextTokenizer.from_file(run.tokenizer, settings.corpus.tokenizer.bos)
    keep_freed_memory()
    if settings.train.precision == "fp32":
        use_onednn()
    settings.model.vocab_size = settings.model.vocab_size or tokenizer.vocab_size
    train = settings.train
    stream = open_stream(
        run,
        global_batch=train.global_batch,
        seed=settings.order_seed,
        exclude=train.exclude,
        skip=read_ranges(train.skip),
    )
    resumption = find_resumption(run, world, settings, stream)
    meta = checkpoint_meta(settings, stream, resumption)
    seed = settings.seed if settings.model.seed is None else settings.model.seed
    model = build_model(settings.model, train, world, seed=seed, sequence=settings.parallel.sequence)
    start = resumption.checkpoint if resumption is not None else None
    if start is None and settings.model.init_from:
        start = open_checkpoint(settings.model.init_from)
    if start is not None:
        load_weights(model, start)
    engine = Engine(model, settings, world)
    trainer = Trainer(settings, run, world, stream, engine, build_callbacks(settings, run, world, tokenizer, meta))
    trainer.check_stream(resumption.checkpoint.step if resumption is not None else 0)
    if start is not None and (resumption is not None or settings.optimizer.keep_moments):
        engine.materialise_moments(trainer._read(1)[1][0].to(world.device))
        load_engine(engine, start)
    if resumption is None:
        trainer.origin = {"start": meta["start"]} if "start" in meta else {}
        return trainer, 0
    restore(trainer, resumption.checkpoint)
    trainer.origin = {"resumed": resumption.note}
    return trainer, resumption.checkpoint.step


def build_callbacks(
    settings: PretrainSettings, run: RunDir, world: World, tokenizer: TextTokenizer, meta: dict[str, Any]
) -> list[Callback]:
    metrics, probes = settings.callbacks.metrics, settings.callbacks.probes
    boards = Boards(run.path, run.tensorboard if metrics.tensorboard else None, metrics.wandb)
    callbacks: list[Callback] = [
        Preemption(),
        Ledger(run.ledger),
        boards,
        *watching(settings, run, world),
        Metrics(run.metrics, boards, every=metrics.every, peak_tflops=metrics.peak_tflops),
    ]
    path = run.facts / "probes.jsonl"
    if path.exists() and (probes.every or probes.steps):
        prompts = read_prompts(path, tokenizer)
        callbacks.append(
            Probes(run.probes, prompts, every=probes.every, steps=probes.steps, batch_tokens=probes.batch_tokens)
        )
    validation = settings.callbacks.validation
    if settings.corpus.held_out and validation.every:
        micro_batch = settings.train.micro_batch
        callbacks.append(Validation(run.validation, open_corpus(run.held_out), validation, micro_batch, boards))
    names = [*settings.callbacks.extra, *([CAPTURE] if settings.callbacks.capture.enabled else [])]
    callbacks += [load_callback(name)(settings, run, world) for name in names]
    callbacks.append(Checkpoints(run.checkpoints, settings.checkpoint, world, meta))
    return callbacks


def watching(settings: PretrainSettings, run: RunDir, world: World) -> list[Callback]:
    """What looks at the processes themselves."""
    found: list[Callback] = []
    if settings.profile.steps:
        found.append(Profiler(run.profile, settings.profile))
    if settings.train.gc_every:
        found.append(Garbage(settings.train.gc_every))
    if world.size > 1 and settings.callbacks.stragglers.every:
        found.append(Stragglers(run.stragglers, settings.callbacks.stragglers))
    return found
