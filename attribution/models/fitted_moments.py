"""Second moments fitted on a sample of passages, for a model that nobody kept the optimizer state of.

Adam's second moment is a running mean of squared gradients; where it is lost, the mean of the squared gradients of
some passages at the final weights stands in for it: what dattri's and bergson's normalizers are. `adam` keeps it whole,
[O, I] a layer; `adafactor` keeps the means of its rows and columns, from which its rank-1 estimate is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from headwater.attribution.models.base import Example, Site, TracedModel
from headwater.configs.errors import CorruptError, MismatchError, UserError
from headwater.train.artifacts import atomic_path, fingerprint, remove
from headwater.train.tensor_files import save_tensors

FILE = "moments.safetensors"
"""Beside an index whose correction was fitted."""


class FittedMoments:
    """Sums of squared gradients of single passages, by parameter name.

    A gradient is taken by autograd itself, one passage at a time, and let go layer by layer: more memory than the sums
    takes only the largest layer.

    Args:
        model: whose gradients; its sites say which parameters are meant.
        kind: adam or adafactor.
        loss: whose gradient is squared.
    """

    def __init__(self, model: TracedModel, kind: str, loss: str) -> None:
        self.model, self.kind, self.loss = model, kind, loss
        self.count = 0
        # An expert that no token is sent to has a moment of zero.
        self._sums = {
            (site.name, site.out_parts[0], what): torch.zeros(shape, dtype=dtype, device=model.device)
            for site in model.sites
            for what, shape, dtype in self._kept(*site.matrix(site.weight.detach()).shape)
        }

    def _kept(self, outputs: int, inputs: int) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        if self.kind == "adam":
            return [("moment", (outputs, inputs), torch.float32)]
        return [("rows", (outputs,), torch.float64), ("columns", (inputs,), torch.float64)]

    def add(self, examples: Iterable[Example]) -> None:
        """Adds the gradients of some examples, each alone."""
        by_weight: dict[int, list[Site]] = {}
        for site in self.model.sites:
            by_weight.setdefault(id(site.weight), []).append(site)
        weights = [sites[0].weight for sites in by_weight.values()]

        def take(weight: nn.Parameter) -> None:
            assert weight.grad is not None
            for site in by_weight[id(weight)]:
                self._square(site, site.matrix(weight.grad))
            weight.grad = None

        handles = []
        try:
            for weight in weights:
                handles.append(weight.requires_grad_(True).register_post_accumulate_grad_hook(take))
            for example in examples:
                self.model.backward([example], self.loss)
                self.count += 1
        finally:
            for handle in handles:
                handle.remove()
            for weight in weights:
                weight.requires_grad_(False)
                weight.grad = None

    def _square(self, site: Site, gradient_OI: Tensor) -> None:
        square_OI, place = gradient_OI.detach().float().square(), (site.name, site.out_parts[0])
        if self.kind == "adam":
            self._sums[*place, "moment"] += square_OI
        else:
            self._sums[*place, "rows"] += square_OI.double().sum(dim=1)
            self._sums[*place, "columns"] += square_OI.double().sum(dim=0)

    def tensors(self) -> dict[str, Tensor]:
        """The mean of squares over the passages, float32: `moment.NAME` [O, I], or its means over inputs, `rows.NAME`
        [O], and over outputs, `columns.NAME` [I].

        Raises:
            UserError: no passage was seen, or a gradient is not finite.
        """
        if not self.count:
            raise UserError("moments cannot be fitted without a passage", fix="give the corpus passages with a loss")
        found: dict[str, Tensor] = {}
        parts: dict[tuple[str, str], list[tuple[tuple[int, int], Tensor]]] = {}
        for (name, part, what), value in self._sums.items():
            parts.setdefault((what, name), []).append((part, value))
        shapes = self.model.all_shapes
        for (what, name), pieces in parts.items():
            ordered = [value for _, value in sorted(pieces, key=lambda each: each[0])]
            whole = sum(ordered[1:], ordered[0]) if what == "columns" else torch.cat(ordered)
            outputs, inputs = shapes[name]
            width = {"moment": 1, "rows": inputs, "columns": outputs}[what]
            found[f"{what}.{name}"] = (whole / (self.count * width)).float().cpu().contiguous()
        wrong = [name for name, value in found.items() if not bool(torch.isfinite(value).all())]
        if wrong:
            raise UserError(
                "fitted moments are not finite", got=wrong[0], fix="trace a model whose gradients are finite"
            )
        return found


def fit_moments(
    path: Path, model: TracedModel, examples: Iterable[Example], kind: str, loss: str, made_from: Mapping[str, Any]
) -> None:
    """Writes the moments of a sample of passages, unless they are there.

    Args:
        path: the file.
        examples: the sample, read once and only where it is needed.
        kind, loss: as of `FittedMoments`.
        made_from: what else they depend on (the sample, the corpus); a file of something else is made again.
    """
    mark = fingerprint({"kind": kind, "loss": loss, "model": model.fingerprint, **made_from})
    if path.exists():
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made_from") == mark:
                return
        remove(path)
    moments = FittedMoments(model, kind, loss)
    moments.add(examples)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        save_tensors(part, moments.tensors(), {"made_from": mark})


def read_fitted(path: Path, name: str, shape: tuple[int, int]) -> Tensor:
    """A layer's fitted second moment, float32 [O, I]; of one that is kept as its means, their rank-1 estimate.

    Raises:
        CorruptError: it cannot be read.
        MismatchError: it holds nothing of this layer.
    """
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            if f"moment.{name}" in names:
                return file.get_tensor(f"moment.{name}")
            if f"rows.{name}" in names:
                rows_O, columns_I = file.get_tensor(f"rows.{name}"), file.get_tensor(f"columns.{name}")
                return rows_O[:, None] * (columns_I / rows_O.mean().clamp_min(1e-30))
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path} cannot be read as fitted moments", got=error, fix="make the index again") from None
    raise MismatchError(f"{path} has no second moment of {name}", expected=f"one of shape {list(shape)}")


def is_fitted(path: Path) -> bool:
    """Whether a file of moments is one that was fitted."""
    return path.name == FILE
