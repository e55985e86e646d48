"""Makes an index: gradient rows of every passage of a corpus, whitened, coded, in shards.

    headwater index index/run model.run=runs/demo
    torchrun --nproc-per-node 2 -m headwater.attribution.index index/run model.run=runs/demo

Windows of passages are dealt out over data-parallel replicas; a killed build goes on, with any number of ranks, and
ends alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
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
from headwater.attribution.index.precision import Choice, quicker_precision
from headwater.attribution.index.windows import Windows
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.models.base import EPS, Example, TracedModel
from headwater.attribution.models.fitted_moments import FILE as MOMENTS
from headwater.attribution.models.fitted_moments import fit_moments
from headwater.attribution.models.huggingface import HuggingFaceModel
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.ahead import Behind, ahead
from headwater.attribution.rows.checks import require_finite
from headwater.attribution.rows.collector import GradientCollector, collect_read
from headwater.attribution.rows.dealing import dealt, tokens_of
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
        out = Path(settings.out) if settings.out else RunDir.at(settings.model.run).index(settings.name)
        choice = Choice(settings.model.precision, {})
        if choice.precision == "auto":
            choice = quicker_precision(settings, out, world)
            settings = replace(settings, model=replace(settings.model, precision=choice.precision))
        if settings.model.precision == "fp32":
            use_onednn()
        model = open_model(settings.model, world)
        with sole_writer(out, "build", lambda action: on_main(world, action)):
            builder = Builder(settings, model, out, world)  # first: a model whose rows are not its gradients is refused
            passages = passages_of(settings, model, out, world)
            on_main(world, lambda: choice.note(out))
            builder.run(passages)
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
            shard_rows=self.settings.shard_rows or None,
        )
        on_main(self.world, writer.begin)
        # Asked once: a rank that looked later would miss what others have written meanwhile, and deal otherwise.
        pending = from_main(self.world, writer.pending)
        mine = self._mine(pending, writer.span)
        with Behind() as behind:
            for number, rows_ND in self._collected(mine, lambda number: np.arange(*writer.span(number)), "index"):
                if self._writes:
                    behind.run(writer.write, number, rows_ND)
        dist.barrier(group=parallel.patient_group())  # the first rank may be done long before the others
        on_main(self.world, lambda: writer.finish(self.passages.id_batches()))

    def _fit_moments(self) -> None:
        """The moments of the correction from the corpus's own gradients, taken by the first rank."""
        model, settings, path = self.model, self.settings, self.out / MOMENTS
        assert isinstance(model, HuggingFaceModel)
        count = len(self.passages)
        sample = within(drawn(count, settings.model.moments_sample, settings.curvature.seed), 0, count).tolist()
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

    def _mine(self, parts: Sequence[int], span: Callable[[int], tuple[int, int]]) -> list[int]:
        """Those of some parts of the corpus that this replica collects: of about as many tokens as the others'."""
        if self.world.data == 1:
            return list(parts)

        def shares() -> list[list[int]]:
            return dealt(tokens_of(self.passages, map(span, parts)), self.world.data)

        return [parts[place] for place in from_main(self.world, shares)[self.world.data_rank]]

    def _collected(
        self, parts: Sequence[int], members_of: Callable[[int], np.ndarray], what: str
    ) -> Iterator[tuple[int, Tensor]]:
        """Parts of the corpus with the raw rows of some of their passages, float32 [n, D]; those of the next part are
        read meanwhile."""

        def read(part: int) -> tuple[np.ndarray, dict[int, Example]]:
            members = members_of(part)
            missing = [int(number) for number in members if int(number) not in self._kept]
            return members, {number: Example.of_passage(self.passages, number) for number in missing}

        for part, (members, examples) in ahead(self._progress(parts, what), read):
            if not len(members):
                continue
            made: dict[int, Tensor] = {}
            if examples:
                rows_ND = collect_read(self.collector, list(examples.values()), self.settings.batch_tokens)
                made = dict(zip(examples, rows_ND, strict=True))
            found = torch.stack([made[n] if n in made else self._kept.pop(n) for n in map(int, members)])
            require_finite(found, name=partial(self._name, members))
            yield part, found

    def _name(self, members: np.ndarray, place: int) -> str:
        return self.passages.ids(int(members[place]), int(members[place]) + 1)[0]

    def _whitening(self) -> Whitening:
        curvature, saved = self.settings.curvature, self.out / "curvature.safetensors"
        if curvature.kind == "none":
            return Whitening.none(self.layout)
        if (self.out / "index.json").exists() and saved.exists():
            return load_whitening(saved, self.layout)
        sums = SUMS[curvature.kind](self.layout)
        sample = drawn(len(self.passages), curvature.rows, curvature.seed)
        windows = Windows.of(len(self.passages), self.layout, self.settings.codecs, self.settings.shard_rows or None)

        def members_of(window: int) -> np.ndarray:
            return within(sample, *windows.span(window))

        # The ranks take whole windows, so that the rows they keep are those they will write.
        mine = self._mine(range(len(windows)), windows.span)
        for window, rows_ND in self._collected(mine, members_of, "curvature"):
            part = members_of(window)
            sums.add(rows_ND)
            if (len(self._kept) + len(part)) * self.layout.dims * 4 <= _KEPT_BYTES:
                self._kept.update(zip(map(int, part), rows_ND, strict=True))
        if self.world.data > 1:
            sums.all_reduce(parallel.data_group())
        return sums.whitening(curvature.damped, self.world.rank, self.world.size)

    def _progress(self, items: Iterable[Any], what: str = "index") -> Iterable[Any]:
        return track(items, what) if self.world.is_main else items


def drawn(passages: int, rows: int, seed: int) -> np.ndarray | None:
    """The passages that the curvature is made from, ascending, int64 [rows]; None: all. Memory goes with `rows`."""
    if not 0 < rows < passages:
        return None
    return np.sort(np.random.default_rng(seed).choice(passages, rows, replace=False, shuffle=False))


def within(sample: np.ndarray | None, start: int, stop: int) -> np.ndarray:
    """Those of a sample, ascending, that are passages [start, stop)."""
    if sample is None:
        return np.arange(start, stop)
    return sample[slice(*np.searchsorted(sample, [start, stop]))]
