"""A pretraining run from its settings: puts the pieces together, goes on where the run stands, trains."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from headwater.configs import save_config
from headwater.configs.errors import CorruptError, UserError
from headwater.train import parallel
from headwater.train.artifacts import RunDir, remove_parts, require_match, write_provenance
from headwater.train.callbacks.base import Callback
from headwater.train.callbacks.checkpoints import Checkpoints, restore
from headwater.train.callbacks.ledger import Ledger
from headwater.train.callbacks.metrics import Metrics
from headwater.train.callbacks.preemption import Preemption
from headwater.train.callbacks.probes import Probes, read_prompts
from headwater.train.checkpoint import Checkpoint, load_engine, load_weights, newest, open_checkpoint
from headwater.train.engine import Engine
from headwater.train.model import build_model
from headwater.train.numerics import keep_freed_memory, use_onednn
from headwater.train.parallel import World
from headwater.train.settings import PretrainSettings
from headwater.train.stream.stream import TrainingStream, open_stream, read_ids
from headwater.train.tokenizer import TextTokenizer
from headwater.train.trainer import Trainer

INTERRUPTED = 130

SHAPE = ("layers", "hidden", "heads", "kv_heads", "ffn_hidden", "tie_embeddings", "vocab_size")
"""Settings of a model that weights to start from must have too; the last is 0 until the tokenizer is known."""

# By name: training does not import attribution, which builds on it. A name, not an entry point of the package's
# metadata, so that a callback in anybody's module works without being installed.
CAPTURE = "headwater.attribution.capture.callback:from_settings"


def pretrain_run(settings: PretrainSettings) -> int:
    """Trains a run to its end, or until it is asked to stop.

    Returns:
        0, also after SIGTERM once the checkpoint is written; 130 after Ctrl-C.
    """
    run = RunDir.at(settings.out)
    world = parallel.start(
        tensor=settings.parallel.tensor, pipeline=settings.parallel.pipeline, threads=settings.train.threads
    )
    try:
        prepare(settings, run, world)
        trainer, step = build_trainer(settings, run, world)
        # What can be wrong has been looked at: only now is anything written into a run that is there already.
        parallel.on_main(world, lambda: note_start(settings, run, world))
        trainer.run(step)
        return INTERRUPTED if trainer.stop_signal == signal.SIGINT else 0
    finally:
        parallel.stop()


def check_world(settings: PretrainSettings, world: World) -> None:
    rows = settings.train.micro_batch * world.data
    if settings.train.global_batch % rows:
        raise UserError(
            f"train.global_batch = {settings.train.global_batch} cannot be shared out",
            got=f"{world.data} data-parallel replicas with micro_batch {settings.train.micro_batch}",
            expected=f"a multiple of {rows}",
            fix="change train.global_batch, train.micro_batch or the number of ranks",
        )


def prepare(settings: PretrainSettings, run: RunDir, world: World) -> None:
    """On one rank: looks at what the settings name, then makes the corpus if it is not there. The others wait."""
    from headwater.train.corpus.build import build_corpus

    def make() -> None:
        check_world(settings, world)
        check_inputs(settings, run)
        build_corpus(settings)

    parallel.on_main(world, make)


def check_inputs(settings: PretrainSettings, run: RunDir) -> None:
    """Looks at the files and callbacks that the settings name, and at the run's records, before anything is made."""
    if settings.model.init_from:
        start = open_checkpoint(settings.model.init_from)
        names = SHAPE if settings.model.vocab_size else SHAPE[:-1]
        check_same_model(start, {name: getattr(settings.model, name) for name in names})
        start.verify()
    if settings.train.exclude:
        read_ids(settings.train.exclude)
    for name in settings.callbacks.extra:
        load_callback(name)
    for path in (run.probes, *run.ledger.glob("steps-*.parquet")):
        if path.exists():
            require_parquet(path)


def require_parquet(path: Path) -> None:
    """Refuses a file that cannot be gone on with; its end is read alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(
            f"{path} is not Parquet",
            got=error,
            expected="what this run has noted",
            fix="restore it, or move it away: what it noted is lost then",
        ) from None


def note_start(settings: PretrainSettings, run: RunDir, world: World) -> None:
    """Removes what a killed run left, and notes the resolved config and how this run was started."""
    remove_leftovers(run)
    save_config(settings, run.config)
    write_provenance(run, world_size=world.size)


def remove_leftovers(run: RunDir) -> None:
    """Removes what a killed run was writing: nobody reads a `.part` file, but it takes space."""
    for path in (run.config, run.provenance, run.metrics, run.probes):
        remove_parts(path.parent, f"{path.name}.*")
    for directory in (run.ledger, run.checkpoints):
        remove_parts(directory)


def build_trainer(settings: PretrainSettings, run: RunDir, world: World) -> tuple[Trainer, int]:
    """The trainer and the number of updates it goes on from."""
    tokenizer = TextTokenizer.from_file(run.tokenizer, settings.corpus.tokenizer.bos)
    keep_freed_memory()
    if settings.train.precision == "fp32":
        use_onednn()
    settings.model.vocab_size = settings.model.vocab_size or tokenizer.vocab_size
    train = settings.train
    stream = open_stream(run, global_batch=train.global_batch, seed=settings.seed, exclude=train.exclude)
    meta = checkpoint_meta(settings, stream)
    checkpoint = newest_everywhere(run, world, meta)
    seed = settings.seed if settings.model.seed is None else settings.model.seed
    model = build_model(settings.model, train, world, seed=seed, sequence=settings.parallel.sequence)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    elif settings.model.init_from:
        load_weights(model, open_checkpoint(settings.model.init_from))
    engine = Engine(model, settings, world)
    trainer = Trainer(settings, run, world, stream, engine, build_callbacks(settings, run, world, tokenizer, meta))
    trainer.check_stream(checkpoint.step if checkpoint is not None else 0)
    if checkpoint is None:
        return trainer, 0
    engine.materialise_moments(trainer._read(1)[1][0].to(world.device))
    load_engine(engine, checkpoint)
    restore(trainer, checkpoint)
    return trainer, checkpoint.step


def build_callbacks(
    settings: PretrainSettings, run: RunDir, world: World, tokenizer: TextTokenizer, meta: dict[str, Any]
) -> list[Callback]:
    metrics, probes = settings.callbacks.metrics, settings.callbacks.probes
    callbacks: list[Callback] = [
        Preemption(),
        Ledger(run.ledger),
        Metrics(
            run.metrics,
            run.tensorboard if metrics.tensorboard else None,
            every=metrics.every,
            peak_tflops=metrics.peak_tflops,
        ),
    ]
    path = run.facts / "probes.jsonl"
    if path.exists() and (probes.every or probes.steps):
        prompts = read_prompts(path, tokenizer)
        callbacks.append(
            Probes(run.probes, prompts, every=probes.every, steps=probes.steps, batch_tokens=probes.batch_tokens)
        )
    names = [*settings.callbacks.extra, *([CAPTURE] if settings.callbacks.capture.enabled else [])]
    callbacks += [load_callback(name)(settings, run, world) for name in names]
    callbacks.append(Checkpoints(run.checkpoints, settings.checkpoint, world, meta))
    return callbacks


def load_callback(name: str) -> Callable[[PretrainSettings, RunDir, World], Callback]:
    """`module:function`, imported now.

    Raises:
        UserError: there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"callback {name} cannot be loaded", got=error, expected="module:function", fix="see callbacks.extra"
        ) from None


def checkpoint_meta(settings: PretrainSettings, stream: TrainingStream) -> dict[str, Any]:
    """What every checkpoint of a run says of it."""
    return {
        "model": dataclasses.asdict(settings.model),
        "optimizer": dataclasses.asdict(settings.optimizer),
        "seed": settings.seed,
        "steps": settings.train.steps,
        "precision": settings.train.precision,
        "stream": stream.fingerprint,
        "tokenizer": stream.passages.tokenizer_fingerprint,
    }


def check_same_run(checkpoint: Checkpoint, meta: dict[str, Any]) -> None:
    """Refuses to go on when the stream or the model is not the one that the checkpoint was trained with."""
    require_match(
        f"{checkpoint.path} was trained on another stream",
        meta["stream"],
        str(checkpoint.meta.get("stream")),
        "restore the corpus, train.global_batch, seed and schedule, or start in a new run directory",
    )
    check_same_model(checkpoint, {name: value for name, value in meta["model"].items() if name != "init_from"})


def check_same_model(checkpoint: Checkpoint, wanted: dict[str, Any]) -> None:
    """Refuses a checkpoint whose model has other settings than those wanted."""
    saved = checkpoint.meta.get("model", {})
    differing = {k: (saved.get(k), v) for k, v in wanted.items() if saved.get(k) != v}
    if differing:
        raise UserError(
            f"{checkpoint.path} holds another model",
            got="; ".join(f"model.{k} = {new}" for k, (_, new) in differing.items()),
            expected="; ".join(f"model.{k} = {old}" for k, (old, _) in differing.items()),
            fix="restore these settings, or start in a new run directory",
        )


def newest_everywhere(run: RunDir, world: World, meta: dict[str, Any]) -> Checkpoint | None:
    """The newest whole checkpoint, if it is this run's; rank 0 looks for it and tells the others."""

    def look() -> str | None:
        checkpoint = newest(run.checkpoints, say=lambda text: print(f"warning: {text}", file=sys.stderr, flush=True))
        if checkpoint is None:
            return None
        check_same_run(checkpoint, meta)
        return str(checkpoint.path)

    found = parallel.from_main(world, look)
    return open_checkpoint(Path(found)) if found else None
