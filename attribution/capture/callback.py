"""Capture: gradient rows of every passage that is trained on, from the backward pass that happens anyway.

    headwater pretrain pretrain/demo callbacks.capture.enabled=true
    headwater trace trace/default index=runs/demo/index/captured --prompt "..." --target "..."

The rows are those of the training loss, the cross entropy: the log-odds loss weights each token's gradient at the head
by 1 / (1 - p), which a sum over tokens taken below the head cannot make up for, so it would need a backward pass of its
own. The scale that training puts on the loss is undone: a row equals the one computed afterwards at the same weights
and moments. Those of the output head (`callbacks.capture.head`) are made as the loss is, before that scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from headwater.attribution.capture.build import NOTE, build_captured
from headwater.attribution.capture.exchange import to_owners
from headwater.attribution.capture.held import FirstUpdate
from headwater.attribution.capture.sums import MeanRows
from headwater.attribution.capture.visits import VisitLog
from headwater.attribution.capture.whole import whole_moment, whole_sequence, whole_shapes
from headwater.attribution.models.base import EPS, Site
from headwater.attribution.models.headwater import HEAD_NAME, is_block_linear, megatron_head, megatron_sites
from headwater.attribution.rows.checks import require_finite
from headwater.attribution.rows.collector import module_dims
from headwater.attribution.rows.correction import part_of, whole_correction
from headwater.attribution.rows.hooks import Target, Watcher
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.settings import ProjectionSettings, default_damping
from headwater.configs.errors import MismatchError
from headwater.kernels import Correction, Factored, Full
from headwater.train import parallel
from headwater.train.artifacts import RunDir, read_json, write_json
from headwater.train.callbacks.base import Callback, Training
from headwater.train.engine import Engine, StepResult
from headwater.train.model import ParameterPart, head_part, parameter_parts
from headwater.train.parallel import World
from headwater.train.settings import CaptureSettings, PretrainSettings
from headwater.train.stream.stream import TrainingSequence
from headwater.train.tensor_files import load_tensors, save_tensors


def from_settings(settings: PretrainSettings, run: RunDir, world: World) -> Capture:
    """What a pretraining run calls to make the callback."""
    return Capture(run, settings.callbacks.capture)


class Capture(Callback):
    """Takes the rows of this rank's passages at every update, and makes the index when training is done.

    A visit whose update was skipped is left out, and so is one before the first update, which has no moments yet
    (unless the correction is none).

    Args:
        run: the run's directory.
        settings: mode, correction, dimensions.
    """

    name = "capture"

    def __init__(self, run: RunDir, settings: CaptureSettings) -> None:
        self.run, self.settings = run, settings
        self.projection = ProjectionSettings(dims=settings.proj, head=settings.head)
        self.left_out = 0
        self.corrections: dict[str, Correction] = {}
        self._resumed: Path | None = None
        self._finished = False
        self._handles: list[Any] = []
        self._targets: list[Target] = []
        self._places: list[list[int]] = []
        self._passes: dict[str, int] = {}
        self._running = -1
        self._first: FirstUpdate | None = None
        self._agreed = False

    def start(self, trainer: Training, step: int) -> None:
        self.trainer, self.world = trainer, trainer.world
        self._watch()
        first_of_replica = dist.get_rank(parallel.replica_group()) == 0
        # One rank of each replica keeps the rows of every n-th shard, whoever meets their passages.
        self.share = (self.world.data_rank, self.world.data) if first_of_replica else None
        self.means = MeanRows(self.run.path / "capture", len(trainer.stream.passages), self.layout.dims, self.share)
        keeps_visits = self.settings.mode == "visits" and self.share is not None
        self.visits = VisitLog(self.run.path / "capture", self.share) if keeps_visits and self.share else None
        if self.visits is not None:
            self.visits.start(step)
        if self._resumed is not None:
            self._restore(self._resumed)
        if self.settings.correction == "none":
            self.watcher.correct(self._correction_of)
        self.attach()

    def _watch(self) -> None:
        """Says what a row holds, and sets up what fills it."""
        gpt, model = self.trainer.engine.model, self.trainer.settings.model
        parts = [part for part in parameter_parts(gpt) if is_block_linear(part.name)]
        self.parts: dict[str, ParameterPart] = {part.name.removesuffix(".weight"): part for part in parts}
        shapes = whole_shapes(self.parts, self.world)
        widths = module_dims(shapes, self.projection, (HEAD_NAME, (model.vocab_size, model.hidden)))
        self.layout = RowLayout((name, *width) for name, width in widths.items())
        self.blocks = sum(span.dims for span in self.layout if span.name != HEAD_NAME)
        head = head_part(gpt) if self.settings.head else None
        if head is not None:
            self.parts[HEAD_NAME] = head
        self.watcher = Watcher(
            megatron_sites(gpt, self.world),
            self.layout,
            self.projection.seed,
            self.world.device,
            whole_sequence if self.trainer.settings.parallel.sequence else None,
            megatron_head(head) if head is not None else None,
        )

    def attach(self) -> None:
        """Hangs the hooks on the layers, and looks on at the head's loss."""
        gpt = self.trainer.engine.model
        self._handles = self.watcher.attach(self._target_of, predicting=lambda: gpt.places_K)
        self._handles.append(gpt.register_forward_pre_hook(self._begun))

    def _begun(self, *_: Any) -> None:
        """A micro-batch without a token to predict has no chunk by which it could be counted, so passes are."""
        self._running += torch.is_grad_enabled()

    def detach(self) -> None:
        """Takes the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _target_of(self, site: Site) -> Target | None:
        """The rows of the micro-batch that a layer is running: in a pipeline too its n-th pass is the n-th's."""
        if not self._targets:
            return None
        if site is self.watcher.head:
            return self._targets[self._running]
        number = self._passes.get(site.name, 0)
        self._passes[site.name] = number + 1
        return self._targets[number]

    def before_step(self, trainer: Training, step: int, sequences: list[TrainingSequence]) -> None:
        self._targets, self._places, self._passes, self._running = [], [], {}, -1
        if self.settings.correction != "none":
            if trainer.engine.updates and ((step - 1) % self.settings.refresh == 0 or not self.corrections):
                self._refresh(trainer.engine)
            if not self.corrections:
                return
        size = trainer.settings.train.micro_batch
        for first in range(0, len(sequences), size):
            bounds, places = segments_of(sequences[first : first + size])
            rows_BD = torch.zeros(len(bounds) - 1, self.layout.dims, device=self.world.device)
            self._targets.append(Target(rows_BD, bounds))
            self._places.append(places)
        if not self._agreed and self._first is None:
            gpt, summed = trainer.engine.model, trainer.engine.sums_gradients
            alone = not (gpt.tied and gpt.pre_process)  # or the embedding's gradient is in the weight's, too
            self._first = FirstUpdate(self.watcher, self._correction_of, self.watcher.head if alone else None, summed)

    def _correction_of(self, site: Site) -> Correction | None:
        """What the rows of the part of a layer that is here are corrected with."""
        return part_of(self.corrections[site.name], site) if site.name in self.corrections else None

    def _refresh(self, engine: Engine) -> None:
        beta2 = engine.settings.optimizer.beta2
        unbiased = 1 - beta2**engine.updates
        self.corrections = {}
        for name, part in self.parts.items():
            moment = whole_moment(engine, part, self.world)
            shape = (part.shape[0], part.shape[1])
            made = whole_correction(
                self.settings.correction, moment / unbiased, name, shape, engine.settings.optimizer.eps
            )
            assert made is not None
            self.corrections[name] = made
        self.watcher.correct(self._correction_of)

    def after_step(self, trainer: Training, step: int, sequences: list[TrainingSequence], result: StepResult) -> None:
        passages = np.concatenate([each.passages for each in sequences]).astype(np.int64)
        # The loss was divided by the tokens of the global batch, and multiplied by the replicas that are averaged over.
        undone = max(result.tokens, 1) / self.world.data
        if self._first is not None:
            self._first.require(self._targets, 1 / undone)
            self._first, self._agreed = None, True
        if not self._targets or result.skipped:
            self.left_out += len(passages)
            self._targets = []
            if self.visits is not None:
                self.visits.add(step, [], torch.empty(0), 0.0)
            return
        parts = [target.rows_BD[places] for target, places in zip(self._targets, self._places, strict=True)]
        self._targets = []
        rows_ND = torch.cat(parts)
        rows_ND[:, : self.blocks] *= undone
        if self.world.tensor * self.world.pipeline > 1:
            group = parallel.replica_group()
            dist.reduce(rows_ND, dist.get_process_group_ranks(group)[0], group=group)
        if self.share is None:
            return
        ids = trainer.stream.passages.ids
        require_finite(
            rows_ND,
            what=f"rows captured at step {step}",
            name=lambda place: ids(int(passages[place]), int(passages[place]) + 1)[0],
        )
        if self.world.data > 1:
            owners = passages // self.means.width % self.world.data
            passages, rows_ND = to_owners(passages, rows_ND, owners, parallel.data_group())
        rows_ND, lr = rows_ND.cpu(), trainer.lr(step)
        self.means.add(passages.tolist(), rows_ND, lr)
        if self.visits is not None:
            self.visits.add(step, passages.tolist(), rows_ND, lr)

    def flush(self, trainer: Training, step: int) -> None:
        self._finished = step == trainer.last_step
        if self._finished and self.visits is not None:
            self.visits.write(step)

    def save(self, directory: Path) -> None:
        self.means.save(directory)
        if self.visits is not None:
            self.visits.save(directory)
        if parallel.tensor_rank() == 0 and self.world.data_rank == 0 and self.corrections:
            stage = parallel.pipeline_rank()
            tensors = {
                f"{name}/{part}": getattr(made, part).contiguous().cpu()
                for name, made in self.corrections.items()
                for part in made.__dataclass_fields__
            }
            save_tensors(directory / f"capture-correction-{stage}.safetensors", tensors)
        if self.world.is_main:
            write_json(directory / NOTE, self._note())

    def _note(self) -> dict[str, Any]:
        settings, eps = self.settings, self.trainer.settings.optimizer.eps
        return {
            "layout": self.layout.to_json(),
            "curvature": settings.curvature,
            "damping": settings.damping or default_damping(settings.curvature),
            "codecs": list(settings.codecs),
            "loss": "cross_entropy",
            "correction": settings.correction,
            **({"eps": eps} if settings.correction != "none" and eps != EPS else {}),
            "projection": self.projection.saved(),
            "model": {"kind": "headwater", "precision": self.trainer.settings.train.precision},
            "kind of mean": "unit rows",
            "captured": {"weights": "lr", "mode": settings.mode, "refresh": settings.refresh},
        }

    def load(self, directory: Path) -> None:
        self._resumed = directory

    def _restore(self, directory: Path) -> None:
        if not (directory / NOTE).exists():
            return  # capture was turned on in the middle of a run: it begins here
        before, now = read_json(directory / NOTE), self._note()
        for key in ("layout", "correction", "projection", "kind of mean"):
            if before.get(key) != now[key]:
                raise MismatchError(
                    f"the run was captured with another {key}",
                    got=now[key],
                    expected=before.get(key),
                    fix="restore the settings under callbacks.capture, or start in a new run directory",
                )
        self.means.load(directory)
        if self.visits is not None:
            self.visits.load(directory, self.means.width)
        for file in sorted(directory.glob("capture-correction-*.safetensors")):
            tensors = load_tensors(file, fix="restore the checkpoint, or go on from another one")
            for name in {key.split("/")[0] for key in tensors} & self.parts.keys():
                kind = Full if self.settings.correction == "adam" else Factored
                parts = [tensors[f"{name}/{part}"].to(self.world.device) for part in kind.__dataclass_fields__]
                self.corrections[name] = kind(*parts)
        if self.corrections:
            self.watcher.correct(self._correction_of)

    def state_dict(self) -> dict[str, Any]:
        return {"left_out": self.left_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left_out = state.get("left_out", 0)

    def close(self) -> None:
        self.detach()
        if self._finished and self.run.checkpoint(self.trainer.last_step).exists():
            parallel.on_main(self.world, lambda: build_captured(self.run, self.trainer.last_step))
            self.means.discard()


def segments_of(sequences: list[TrainingSequence]) -> tuple[list[int], list[int]]:
    """Where the segments of a micro-batch begin and end, padding included, and which of them are passages."""
    lengths: list[int] = []
    places: list[int] = []
    for each in sequences:
        places += range(len(lengths), len(lengths) + len(each.lengths))
        lengths += each.lengths.tolist()
        rest = len(each.tokens) - int(each.lengths.sum())
        if rest:
            lengths.append(rest)
    return [0, *np.cumsum(lengths).tolist()], places
