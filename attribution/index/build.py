"""Makes an index: gradient rows of every passage of a corpus, whitened, coded, in shards.

    headwater index index/run model.run=runs/demo
    torchrun --nproc-per-node 2 -m headwater.attribution.index index/run model.run=runs/demo

Shards are dealt out over data-parallel replicas; a killed build goes on, with any number of ranks, and ends alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from headwater.attribution.curvature.files import load_whitening
from headwater.attribution.curvature.sums import SUMS
from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.index.budget import fit_budget
from headwater.attribution.index.writer import IndexWriter, default_shard_rows
from headwater.attribution.models.base import EPS, Example, TracedModel
from headwater.attribution.models.fitted_moments import FILE as MOMENTS
from headwater.attribution.models.fitted_moments import fit_moments
from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.checks import require_finite
from headwater.attribution.rows.collector import GradientCollector, collect_passages
from headwater.attribution.settings import IndexSettings
from headwater.train import parallel
from headwater.train.artifacts import RunDir, fingerprint, fingerprint_file
from headwater.train.locks import sole_writer
from headwater.train.numerics import keep_freed_memory, use_onednn
from headwater.train.parallel import World, from_main, on_main
from headwater.train.places import note_place
from headwater.train.progress import track
from headwater.train.stream.passages import PassageSet, open_passages

_KEPT_BYTES = 1 << 30
"""Raw rows of the curvature's sample that a rank keeps for the shards: they need not be made twice."""


def build_index(settings: IndexSettings) -> Path:
    """Makes the index, or goes on with it; returns its directory.

    Raises:
        UserError: missing, mismatched or non-finite inputs.
    """
    world = parallel.start(tensor=settings.parallel.tensor, pipeline=settings.parallel.pipeline)
    try:
        keep_freed_memory()
        if settings.model.precision == "fp32":
            use_onednn()
        model = open_model(settings.model, world)
        out = Path(settings.out) if settings.out else RunDir.at(settings.model.run).index(settings.name)
        with sole_writer(out, "build", lambda action: on_main(world, action)):
            builder = Builder(settings, model, out, world)  # first: a model whose rows are not its gradients is refused
            builder.run(passages_of(settings, model, out, world))
    finally:
        parallel.stop()
    return out


def passages_of(settings: IndexSettings, model: TracedModel, out: Path, world: World) -> PassageSet:
    """The run's passages, or those of the documents that the settings name, cut with the model's own tokenizer."""
    if not settings.corpus.path:
        return open_passages(RunDir.at(settings.model.run))
    from headwater.attribution.index.documents import passages_of_documents

    return passages_of_documents(settings, model, out, world)


class Builder:
    """One build on this rank."""

    passages: PassageSet

    def __init__(self, settings: IndexSettings, model: TracedModel, out: Path, world: World) -> None:
        self.settings, self.model, self.out, self.world = settings, model, out, world
        self.projection = settings.projection
        if settings.budget:
            codec, head = settings.codecs[0], model.head_shape
            self.projection = fit_budget(self.projection, model.all_shapes, codec, settings.budget, head)
        # Fitted moments come with the passages; that the rows are the model's gradients is shown before these are cut.
        correction = "none" if settings.model.moments == "fit" else settings.correction
        self.collector = GradientCollector(model, self.projection, correction, settings.loss)
        self.layout = self.collector.layout
        self._kept: dict[int, Tensor] = {}

    def run(self, passages: PassageSet) -> None:
        """Makes the rows of the passages, or those that are not made yet."""
        self.passages = passages
        if self.settings.model.moments == "fit":
            self._fit_moments()
        if self.world.is_main:
            headless = self.projection.head and self.model.head_shape is None
            without = "; none of the output head, whose logits are more than a product" if headless else ""
            left_out = f"{without}; never called: {', '.join(self.model.left_out)}" if self.model.left_out else ""
            print(f"rows cover {self.collector.coverage:.0%} of the parameters{left_out}", file=sys.stderr)
        whitening = self._whitening()
        writer = IndexWriter(
            self.out,
            layout=self.layout,
            passages=len(self.passages),
            whitening=whitening,
            codecs=self.settings.codecs,
            meta=self._meta(),
            shard_rows=self._shard_rows,
        )
        on_main(self.world, writer.begin)
        # Asked once: a rank that looked later would miss what others have written meanwhile, and deal otherwise.
        pending = from_main(self.world, writer.pending)
        for number in self._progress(pending[self.world.data_rank :: self.world.data]):
            start, stop = writer.span(number)
            rows_ND = self.rows(np.arange(start, stop))
            if self._writes:
                writer.write(number, rows_ND)
        dist.barrier()  # the first rank may be done before the others
        on_main(self.world, lambda: writer.finish(self.passages.ids(0, len(self.passages))))

    def _fit_moments(self) -> None:
        """The moments of the correction from the corpus's own gradients, taken by the first rank."""
        model, settings, path = self.model, self.settings, self.out / MOMENTS
        assert isinstance(model, HuggingFaceModel)
        draw = np.random.default_rng(settings.curvature.seed).permutation(len(self.passages))
        sample = np.sort(draw[: settings.model.moments_sample]).tolist()
        made_from = {"corpus": self.passages.fingerprint, "sample": fingerprint(sample)}
        examples = (Example.of_passage(self.passages, number) for number in self._progress(sample, "moments"))
        taught = (each for each in examples if each.weights is None or each.loss_weights.any())
        on_main(
            self.world,
            lambda: fit_moments(path, model, taught, settings.correction, settings.loss, made_from),
        )
        model.use_moments(path)
        self.collector.correct(settings.correction)

    @property
    def _shard_rows(self) -> int:
        return self.settings.shard_rows or default_shard_rows(self.layout.dims)

    @property
    def _writes(self) -> bool:
        """Whether this rank is the one of its replica that writes."""
        return self.world.rank == self._replica_first

    @property
    def _replica_first(self) -> int:
        return min(dist.get_process_group_ranks(parallel.replica_group()))

    def _meta(self) -> dict[str, Any]:
        state = self.model.places.get("optimizer_state")
        read = state if self.settings.correction != "none" else None
        return {
            **({"optimizer_state": fingerprint_file(read)} if read is not None else {}),
            **({"eps": self.model.eps} if self.settings.correction != "none" and self.model.eps != EPS else {}),
            "loss": self.settings.loss,
            "correction": self.settings.correction,
            "projection": self.projection.saved(),
            "sampled": asdict(self.settings.curvature),
            "model": self.model.description,
            "places": {name: note_place(place, self.out) for name, place in self.model.places.items()},
            "model_fingerprint": self.model.fingerprint,
            "coverage": round(self.collector.coverage, 4),
            "layers_left_out": list(self.model.left_out),
            "step": self.model.description.get("step"),
            "corpus": self.passages.fingerprint,
            "tokenizer": self.passages.tokenizer_fingerprint,
        }

    def rows(self, numbers: np.ndarray) -> Tensor:
        """Raw rows of passages: float32 [n, D]."""
        missing = [int(number) for number in numbers if int(number) not in self._kept]
        made = {}
        if missing:
            rows_ND = collect_passages(self.collector, self.passages, missing, self.settings.batch_tokens)
            made = dict(zip(missing, rows_ND, strict=True))
        found = torch.stack([made[n] if n in made else self._kept.pop(n) for n in map(int, numbers)])
        require_finite(found, name=lambda place: self.passages.ids(int(numbers[place]), int(numbers[place]) + 1)[0])
        return found

    def _whitening(self) -> Whitening:
        curvature, saved = self.settings.curvature, self.out / "curvature.safetensors"
        if curvature.kind == "none":
            return Whitening.none(self.layout)
        if (self.out / "index.json").exists() and saved.exists():
            return load_whitening(saved, self.layout)
        sample = np.arange(len(self.passages))
        if 0 < curvature.rows < len(sample):
            draw = np.random.default_rng(curvature.seed).permutation(len(sample))[: curvature.rows]
            sample = np.sort(draw)
        sums = SUMS[curvature.kind](self.layout)
        width = self._shard_rows
        # The ranks take whole shards, so that the rows they keep are those they will write.
        mine = np.split(sample, np.searchsorted(sample, np.arange(width, len(self.passages), width)))
        for part in self._progress(mine[self.world.data_rank :: self.world.data], "curvature"):
            if not len(part):
                continue
            rows_ND = self.rows(part)
            sums.add(rows_ND)
            if (len(self._kept) + len(part)) * self.layout.dims * 4 <= _KEPT_BYTES:
                self._kept.update(zip(map(int, part), rows_ND, strict=True))
        if self.world.data > 1:
            sums.all_reduce(parallel.data_group())
        return sums.whitening(curvature.damped)

    def _progress(self, items: Iterable[Any], what: str = "index") -> Iterable[Any]:
        return track(items, what) if self.world.is_main else items
