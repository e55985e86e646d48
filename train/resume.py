"""Going on with a run: what its checkpoint was trained with against what is asked for now, key by key.

Every setting is compared unless `FREE` names it or the section that it is in, so a new one is compared until somebody
decides otherwise. A difference is refused; `resume.allow` lets it through on purpose, and it is noted in the run's
provenance and in every checkpoint made after it.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from headwater.configs.errors import MismatchError
from headwater.train import parallel
from headwater.train.artifacts import RunDir, require_match
from headwater.train.checkpoint import Checkpoint, newest, open_checkpoint
from headwater.train.parallel import World
from headwater.train.remote import Store
from headwater.train.remote_checkpoints import RemoteCheckpoints, newest_anywhere
from headwater.train.settings import ModelSettings, PretrainSettings
from headwater.train.stream.skipping import batch_of, read_ranges, up_to
from headwater.train.stream.stream import TrainingStream

SHAPE = (
    *("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn_hidden"),
    *("qkv_bias", "qk_norm", "tie_embeddings", "vocab_size"),
)
"""Settings of a model that weights to start from must have too; the last is 0 until the tokenizer is known."""

FREE = (
    "out",  # a run may be moved
    "corpus", "facts", "train.exclude",  # compared by what they say, in the stream's fingerprint
    "parallel", "zero", "train.micro_batch", "train.recompute", "train.threads",  # layouts give the same updates
    "train.hard_stop", "train.max_skips",  # when to stop
    "train.gc_every", "profile", "callbacks.stragglers",  # they look on
    "checkpoint", "callbacks.metrics", "callbacks.probes", "callbacks.validation", "callbacks.extra",  # they look on
    "callbacks.capture.curvature", "callbacks.capture.damping", "callbacks.capture.codecs",  # read when all is captured
    "model.init_from", "model.init_std", "optimizer.keep_moments",  # read at the very start alone
    "resume",
)  # fmt: skip
"""Settings, and sections, that may differ without a word."""

FIXED = (*(f"model.{name}" for name in SHAPE), "seed", "train.order_seed", "train.global_batch")
"""Settings that cannot be changed on purpose either: the weights would not fit, or the stream would be another."""


CAPTURE = "callbacks.capture"


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a run goes on from a checkpoint.

    changed: settings that differ from the checkpoint's, because `resume.allow` names them: [saved, asked] by key.
    """

    checkpoint: Checkpoint
    changed: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def note(self) -> dict[str, Any]:
        """What provenance says of it."""
        return {"step": self.checkpoint.step, "weights": self.checkpoint.fingerprint, "changed": self.changed}

    @property
    def changes(self) -> list[dict[str, Any]]:
        """Every change of settings since the run's first step, as checkpoints keep them."""
        changed = [{"step": self.checkpoint.step, **self.changed}] if self.changed else []
        return [*self.checkpoint.meta.get("changes", []), *changed]


def checkpoint_meta(
    settings: PretrainSettings, stream: TrainingStream, resumption: Resumption | None
) -> dict[str, Any]:
    """What every checkpoint of a run says of it."""
    before = resumption.checkpoint.meta if resumption is not None else {}
    start = before.get("start") if resumption is not None else start_of(settings)
    changes = resumption.changes if resumption is not None else []
    return {
        **({"start": start} if start else {}),
        **({"changes": changes} if changes else {}),
        "model": dataclasses.asdict(settings.model),
        "optimizer": dataclasses.asdict(settings.optimizer),
        "seed": settings.seed,
        "steps": settings.train.steps,
        "precision": settings.train.precision,
        "settings": compared(settings),
        "stream": stream.fingerprint,
        "tokenizer": stream.passages.tokenizer_fingerprint,
    }


def start_of(settings: PretrainSettings) -> dict[str, Any] | None:
    """The checkpoint whose weights a run begins with, as its own checkpoints and provenance name it."""
    if not settings.model.init_from:
        return None
    checkpoint = open_checkpoint(settings.model.init_from)
    names = {"path": str(checkpoint.path), "step": checkpoint.step, "weights": checkpoint.fingerprint}
    return {**names, "moments": settings.optimizer.keep_moments}


def compared(settings: PretrainSettings) -> dict[str, Any]:
    """The settings that a run must be gone on with, by dotted key."""
    return {key: value for key, value in flat(dataclasses.asdict(settings)) if not is_among(key, FREE)}


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested sections under dotted keys."""
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        found += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def is_among(key: str, names: tuple[str, ...] | list[str]) -> bool:
    """Whether a key is one of the names, or lies in a section that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def saved_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, by dotted key; older ones note fewer."""
    meta = checkpoint.meta
    if "settings" in meta:
        # What a version before this one did not know it did as the default says.
        return {**compared(PretrainSettings()), **meta["settings"]}
    known = [(f"{part}.{name}", value) for part in ("model", "optimizer") for name, value in meta.get(part, {}).items()]
    named = {"seed": "seed", "train.steps": "steps", "train.precision": "precision"}
    known += [(key, meta[name]) for key, name in named.items() if name in meta]
    return {key: value for key, value in known if not is_among(key, FREE)}


def check_same_run(checkpoint: Checkpoint, settings: PretrainSettings, stream: TrainingStream) -> Resumption:
    """Compares the settings that a checkpoint was trained with with those of the run that would go on from it.

    Raises:
        MismatchError: they differ in keys that `resume.allow` does not name, or the stream is another.
    """
    check_same_model(checkpoint, {name: getattr(settings.model, name) for name in SHAPE})
    saved, asked = saved_settings(checkpoint), compared(settings)
    differing = {key: [saved[key], value] for key, value in asked.items() if key in saved and saved[key] != value}
    if not (saved.get(f"{CAPTURE}.enabled") and settings.callbacks.capture.enabled):
        # Nothing has been captured yet, or nothing is from here on: there is nothing to mix.
        differing = {key: pair for key, pair in differing.items() if not is_among(key, (CAPTURE,))}
    allowed = [key for key in differing if is_among(key, settings.resume.allow) and not is_among(key, FIXED)]
    refused = [key for key in differing if key not in allowed]
    if refused:
        refuse(checkpoint, {key: differing[key] for key in refused})
    skipped = read_ranges(saved.get("train.skip", []))
    check_skips(checkpoint, skipped, stream.skip)
    require_match(
        f"{checkpoint.path} was trained on another stream",
        stream.fingerprint_with(skipped),
        str(checkpoint.meta.get("stream")),
        "restore the corpus, the schedule and what train.exclude leaves out, or start in a new run directory",
    )
    return Resumption(checkpoint, {key: differing[key] for key in allowed})


def check_skips(checkpoint: Checkpoint, saved: list[range], asked: list[range]) -> None:
    """Refuses to leave out, afterwards, what the checkpoint has been trained on."""
    batch = batch_of(checkpoint.step, saved)
    if up_to(batch, saved) != up_to(batch, asked):
        raise MismatchError(
            f"train.skip changes batches that {checkpoint.path} has been trained on",
            got=asked,
            expected=f"nothing new before batch {batch}, which is read next",
            fix="skip later ones, or move this checkpoint away to go on from an earlier one",
        )


def refuse(checkpoint: Checkpoint, differing: dict[str, list[Any]]) -> None:
    """Says which settings differ, and how to mend that."""
    free = [key for key in differing if not is_among(key, FIXED)]
    fix = "restore these settings, or start in a new run directory"
    if free == list(differing):
        fix = f"restore these settings, or change them on purpose: resume.allow=[{','.join(free)}]"
    raise MismatchError(
        f"{checkpoint.path} was trained with other settings",
        got="; ".join(f"{key} = {asked}" for key, (_, asked) in differing.items()),
        expected="; ".join(f"{key} = {saved}" for key, (saved, _) in differing.items()),
        fix=fix,
    )


def check_same_model(checkpoint: Checkpoint, wanted: dict[str, Any]) -> None:
    """Refuses a checkpoint whose model has other settings than those wanted."""
    saved = checkpoint.meta.get("model", {})
    if saved:  # by an earlier version maybe, whose models had no more than the defaults say
        saved = {**dataclasses.asdict(ModelSettings()), **saved}
    differing = {k: (saved.get(k), v) for k, v in wanted.items() if saved.get(k) != v}
    if differing:
        raise MismatchError(
            f"{checkpoint.path} holds another model",
            got="; ".join(f"model.{k} = {new}" for k, (_, new) in differing.items()),
            expected="; ".join(f"model.{k} = {old}" for k, (old, _) in differing.items()),
            fix="restore these settings, or start in a new run directory",
        )


def find_resumption(run: RunDir, world: World, settings: PretrainSettings, stream: TrainingStream) -> Resumption | None:
    """The newest whole checkpoint, if it is this run's; rank 0 looks for it and tells the others."""

    def warn(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def look() -> tuple[str, dict[str, list[Any]]] | None:
        every_byte, address = settings.resume.every_byte, settings.checkpoint.remote
        if address:
            remote = RemoteCheckpoints(Store(address))
            same_run = partial(check_same_run, settings=settings, stream=stream)
            checkpoint = newest_anywhere(run.checkpoints, remote, same_run, warn, every_byte=every_byte)
        else:
            checkpoint = newest(run.checkpoints, warn, every_byte=every_byte)
        if checkpoint is None:
            return None
        return str(checkpoint.path), check_same_run(checkpoint, settings, stream).changed

    found = parallel.from_main(world, look)
    return Resumption(open_checkpoint(Path(found[0])), found[1]) if found else None
