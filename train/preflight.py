"""What is looked at before a run writes anything: processes, the files that the settings name, the vocabulary."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train import parallel
from headwater.train.artifacts import RunDir, require_own, sync
from headwater.train.callbacks.base import Callback
from headwater.train.checkpoint import open_checkpoint, steps_in
from headwater.train.engine import MOMENTS
from headwater.train.locks import noted_at
from headwater.train.parallel import World
from headwater.train.remote import Store, attempted
from headwater.train.remote_checkpoints import RemoteCheckpoints
from headwater.train.resume import SHAPE, check_same_model
from headwater.train.settings import PretrainSettings
from headwater.train.stream.leaving_out import read_exclusions
from headwater.train.tokenizer import TextTokenizer

SEEN_S = 60.0
"""Seconds after which every machine sees a file that another has made: a network share may remember what was not there
for about so long."""


def check_world(settings: PretrainSettings, world: World) -> None:
    rows = settings.train.micro_batch * world.data
    if settings.train.global_batch % rows:
        raise UserError(
            f"train.global_batch = {settings.train.global_batch} cannot be shared out",
            got=f"{world.data} data-parallel replicas with micro_batch {settings.train.micro_batch}",
            expected=f"a multiple of {rows}",
            fix="change train.global_batch, train.micro_batch or the number of ranks",
        )
    absent = [rank for rank in settings.profile.ranks if rank >= world.size]
    if settings.profile.steps and absent:
        raise UserError("profile.ranks names ranks that are not there", got=absent, expected=f"below {world.size}")


def check_shared(directory: Path, what: str, world: World) -> None:
    """Refuses, on all ranks, a run directory that another rank does not see as rank 0 does, which holds the lock `what`
    there: nothing that ranks make together would come together.

    Raises:
        UserError: naming the first of those ranks, and its machine.
    """
    if world.size == 1:
        return

    def note() -> str:
        with suppress(OSError):
            sync(directory / f"{what}.lock")  # it stays open: a network share may show it to nobody else before
        return noted_at(directory / what)

    held = parallel.from_main(world, note)

    def look() -> None:
        end = time.monotonic() + SEEN_S
        while noted_at(directory / what) != held:
            if time.monotonic() > end:
                raise UserError(
                    f"{directory} is not the directory that rank 0 writes into",
                    got="another one under that name",
                    expected="a directory on a disk that all machines share",
                    fix="choose another `out`; the store of checkpoint.remote does not stand for a shared disk",
                )
            time.sleep(0.1)

    parallel.agree(world, parallel.attempt(look))


def check_inputs(settings: PretrainSettings, run: RunDir) -> None:
    """Looks at the files and callbacks that the settings name, and at the run's records, before anything is made."""
    written = (run.config, run.metrics, run.probes, run.ledger, run.checkpoints, run.tensorboard)
    require_own(run.path, [path.name for path in written], run.provenance.name)
    if settings.model.init_from and not has_begun(settings, run):  # it is read at the very start alone
        start = open_checkpoint(settings.model.init_from)
        names = SHAPE if settings.model.vocab_size else SHAPE[:-1]
        check_same_model(start, {name: getattr(settings.model, name) for name in names})
        start.verify()
        if settings.optimizer.keep_moments and not set(MOMENTS) <= start.meta["tensors"].keys():
            raise MissingError(
                f"{start.path} holds no moments",
                expected="the checkpoint of a training",
                fix="set optimizer.keep_moments=false: Adam begins anew then",
            )
    if settings.train.exclude:
        read_exclusions(settings.train.exclude)
    for name in settings.callbacks.extra:
        load_callback(name)
    if settings.callbacks.metrics.wandb and find_spec("wandb") is None:
        raise MissingError("Weights & Biases is not installed", fix="pip install 'headwater[wandb]'")
    for path in (run.probes, *run.ledger.glob("steps-*.parquet")):
        if path.exists():
            require_parquet(path)
    file = tokenizer_file(settings, run)
    if file is not None:
        check_vocabulary(settings, TextTokenizer.from_file(file, settings.corpus.tokenizer.bos))
    elif not settings.corpus.prebuilt and settings.model.vocab_size:
        check_rows(settings.model.vocab_size, settings.corpus.tokenizer.vocab_size)  # of the one that will be trained


def has_begun(settings: PretrainSettings, run: RunDir) -> bool:
    """Whether there are checkpoints to go on from, in the run or in its store."""
    if steps_in(run.checkpoints) or not settings.checkpoint.remote:
        return bool(steps_in(run.checkpoints))
    remote = RemoteCheckpoints(Store(settings.checkpoint.remote))
    return bool(attempted(remote.steps, lambda _: None))  # who looks for one next says that it cannot be reached


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


def tokenizer_file(settings: PretrainSettings, run: RunDir) -> Path | None:
    """The tokenizer.json that the run will use, where it is on this machine already."""
    corpus = settings.corpus
    places = [run.tokenizer]
    if corpus.prebuilt:
        places += [] if "://" in corpus.prebuilt else [Path(corpus.prebuilt) / "tokenizer.json"]
    elif corpus.tokenizer.path:
        places.append(Path(corpus.tokenizer.path))
    return next((place for place in places if place.is_file()), None)


def check_vocabulary(settings: PretrainSettings, tokenizer: TextTokenizer) -> None:
    """Refuses an embedding with fewer rows than the tokenizer has tokens, or one that cannot be shared out: a
    tensor-parallel embedding gives zeros for a token beyond its end, and says nothing.

    Raises:
        UserError: naming both sizes.
    """
    # Not `vocab_size`, which is rounded up: a model may end with the vocabulary.
    tokens = max(tokenizer.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    rows, tensor = settings.model.vocab_size or tokenizer.vocab_size, settings.parallel.tensor
    check_rows(rows, tokens)
    if rows % tensor:
        raise UserError(
            f"a vocabulary of {rows} cannot be shared out over parallel.tensor = {tensor} ranks",
            expected=f"a multiple of {tensor}",
            fix=f"set model.vocab_size={-(-rows // tensor) * tensor}, or change parallel.tensor",
        )


def check_rows(rows: int, tokens: int) -> None:
    """Refuses an embedding of fewer rows than a tokenizer has tokens."""
    if rows < tokens:
        raise UserError(
            "the model's vocabulary is smaller than the tokenizer's",
            got=f"model.vocab_size = {rows}",
            expected=f"at least {tokens}, the tokenizer's",
            fix="set model.vocab_size=0, which takes the tokenizer's size, or use a smaller tokenizer",
        )
