"""Scores of a block of stored rows against queries: what the scan does to each block.

Everything that depends on the queries alone is done once, in float64 or float32, before the first block: whitening,
M^{-1}, the query's norm. A block then costs one product with the queries and, for the task's curvature, one with U.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from headwater.attribution.curvature.task import TaskCurvature, paper_lambda
from headwater.attribution.index.codecs.base import Codec, Fields
from headwater.attribution.index.reader import Index
from headwater.attribution.rows.checks import require_finite, require_width
from headwater.attribution.rows.norms import unit_rows
from headwater.attribution.search.basis import Basis, shared_basis
from headwater.attribution.search.products import products
from headwater.attribution.settings import CURVATURES
from headwater.configs.errors import UserError
from headwater.kernels.coded import COLUMNS, FEW, CodedParts, CodedVectors
from headwater.kernels.cpu_products import LANES, pack, product

CPU = torch.device("cpu")
DENSE = 32
"""Pairs are multiplied one by one where fewer than one in so many is wanted: a matrix product is as much faster."""
BASIS_BYTES = 1 << 22
"""Bytes of products with the directions that are held at a time."""
PAIR_BYTES = 1 << 22
"""Bytes of rows and queries that are laid side by side at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How a score is made.

    Attributes:
        curvature: `task` mixes the queries' curvature into the corpus's; `train` takes the corpus's alone; `none`
            takes the whitening back, so that an index serves plain gradient products too.
        task_weight: lambda, the weight of the task's curvature, in [0, 1), or `paper` for its rule.
        rank: directions per module of the task's curvature in the norms of passages; None for all.
        normalize: unit norm of query and passage (cosine); else the plain inner product.
    """

    curvature: str = "task"
    task_weight: float | str = 0.75
    rank: int | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.curvature not in CURVATURES:
            raise UserError("unknown curvature", got=self.curvature, expected=", ".join(CURVATURES))
        if isinstance(self.task_weight, str) and self.task_weight != "paper":
            raise UserError(
                "task_weight is neither a number nor the paper's rule", got=self.task_weight, expected="[0, 1) or paper"
            )
        if self.rank is not None and self.rank < 0:
            raise UserError(
                "a negative rank of the task's curvature", got=self.rank, expected="0 or more, or none for all"
            )


@dataclass(slots=True)
class PreparedQueries:
    """Queries of one index, ready to be multiplied with whitened unit rows.

    Attributes:
        queries_QD: M^{-1} q~ (or what stands for it), over its norm if scores are normalised; float32.
        directions: per module sqrt(c) U^T, float32 [r_m, d]; empty without the task's curvature.
        scale: M^{-1}'s factor in a passage's squared norm, 1 / (1 - lambda).
        floor: least squared norm of a unit row under M^{-1}: rounding may not take it below.
        lambda_: as it was used.
    """

    scoring: Scoring
    queries_QD: Tensor
    directions: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    floor: float = 0.0
    lambda_: float = 0.0


def prepare_queries(index: Index, raw_QD: Tensor, scoring: Scoring, task_QD: Tensor | None = None) -> PreparedQueries:
    """Does to raw query rows what scores need.

    Args:
        index: what they will be compared with.
        raw_QD: query rows as the gradients came, float [Q, D].
        scoring: how.
        task_QD: raw rows of the queries that stand for the task, if not these.

    Raises:
        MismatchError: another width than the index's rows.
        NonFiniteRowsError: NaN or infinity in a query.
    """
    require_width(raw_QD, index.layout, "query rows")
    require_finite(raw_QD, what="query rows")
    whitening = index.whitening
    rows_QD = unit_rows(raw_QD) if scoring.normalize else raw_QD.float()
    if scoring.curvature == "none":
        # q . z = (W^{-1} q) . (W z), and the norms of raw rows are stored.
        return PreparedQueries(scoring, whitening.unapply(rows_QD))
    white_QD = whitening.apply(rows_QD)
    if scoring.curvature == "train":
        return PreparedQueries(scoring, unit_rows(white_QD) if scoring.normalize else white_QD)
    task_QD = raw_QD if task_QD is None else task_QD
    weight = scoring.task_weight
    lambda_ = paper_lambda(whitening, task_QD) if isinstance(weight, str) else weight
    task = TaskCurvature.from_queries(whitening, task_QD, lambda_, scaled=not isinstance(weight, str))
    solved_QD = task.solve(white_QD)
    if scoring.normalize:
        square_Q1 = (solved_QD.double() * white_QD.double()).sum(dim=1, keepdim=True)
        solved_QD = (solved_QD / square_Q1.sqrt().clamp_min(1e-300)).float()
    largest = max((float(c_r[0]) for c_r in task.weights.values() if len(c_r)), default=0.0)
    directions = task.scaled_directions(scoring.rank) if scoring.normalize else {}
    return PreparedQueries(scoring, solved_QD, directions, 1 / (1 - lambda_), 0.5 * (1 - largest), lambda_)


class BlockScorer:
    """Scores blocks of one index, stored in one codec.

    Args:
        prepared: the queries.
        codec: what the blocks are stored in.
        integer: multiply rows that are stored as integers as such, not as float32; on a processor alone.
        device: where the blocks are, and their scores will be.
    """

    def __init__(
        self, prepared: PreparedQueries, codec: Codec, *, integer: bool = True, device: torch.device = CPU
    ) -> None:
        self.prepared, self.codec = prepared, codec
        self._queries_QD = codec.rotate(prepared.queries_QD).contiguous().to(device)
        self._directions = [part_rd.to(device) for part_rd in self._rotated(prepared.directions)]
        self._coded: CodedVectors | None = None
        self._coded_parts: CodedParts | None = None
        self._packed: list[Tensor | None] = []
        self._basis: Basis | None = None
        if device.type != "cpu":
            return  # the products of integers and of packed vectors are compiled for processors
        coded = integer and codec.form is not None and codec.form.is_exact
        if len(self._queries_QD) > FEW and self._basis_is_less_work():
            self._basis = shared_basis(codec.layout, self._queries_QD, self._directions, COLUMNS if coded else LANES)
        if not coded:
            if self._basis is not None:
                padded = (pad(part_rd.T, (0, -len(part_rd) % LANES)) for part_rd in self._basis.vectors)
                self._packed = [pack(part_dr, torch.float32) if part_dr.shape[1] else None for part_dr in padded]
            return
        assert codec.form is not None
        if self._basis is not None:
            width = self._basis.coefficients_QW.shape[1]
            self._coded_parts = CodedParts(codec.form, self._basis.vectors, self._basis.starts, width, codec.planes)
            return
        queries = [self._queries_QD[:, span.slice] for span in codec.layout]
        self._coded = CodedVectors(codec.form, queries, self._directions, codec.planes)

    def _basis_is_less_work(self) -> bool:
        """Than products with the queries, and with the directions, of which one byte a number is enough."""
        along = sum(part_rd.numel() for part_rd in self._directions)
        planes = max(self.codec.planes, 1)
        return bool(along) and (planes - 1) * along <= planes * self._queries_QD.numel()

    def _rotated(self, directions: dict[str, Tensor]) -> list[Tensor]:
        """Per module its directions in the codec's coordinates, float32 [r_m, d]."""
        out = []
        for span in self.codec.layout:
            part_rd = directions.get(span.name, torch.empty(0, span.dims))
            wide_rD = torch.zeros(len(part_rd), self.codec.layout.dims)
            wide_rD[:, span.slice] = part_rd
            out.append(self.codec.rotate(wide_rD)[:, span.slice].contiguous())
        return out

    def scores(self, fields: Fields) -> Tensor:
        """Scores of a block's passages (rows) with the queries (columns), float32 [n, Q]."""
        if self._basis is not None:
            products_NQ, along_N = self._by_basis(fields, self._basis)
        elif self._coded is not None:
            products_NQ, along_N = self._coded.products(fields["code"], fields["scale"])
        else:
            rows_ND = self.codec.block(fields, torch.float32)
            products_NQ, along_N = products(rows_ND, self._queries_QD), self._along(rows_ND)
        return products_NQ.mul_(self._factor(along_N, fields)[:, None])

    def _by_basis(self, fields: Fields, basis: Basis) -> tuple[Tensor, Tensor]:
        """Products with the queries, float32 [n, Q], and squared lengths along the directions, float32 [n]."""
        width, count = basis.coefficients_QW.shape[1], len(fields["norm"])
        some = max(BASIS_BYTES // (4 * width), 16)
        found = []
        for start in range(0, count, some):
            stop = min(start + some, count)
            part = {name: value[start:stop] for name, value in fields.items()}
            if self._coded_parts is not None:
                parts_NW = self._coded_parts.products(part["code"], part["scale"])
            else:
                rows_ND, parts_NW = self.codec.block(part, torch.float32), torch.zeros(stop - start, width)
                for span, packed, first in zip(self.codec.layout, self._packed, basis.starts, strict=True):
                    if packed is not None:
                        parts_NW[:, first : first + packed.shape[1]] = product(rows_ND[:, span.slice], packed)
            found.append((products(parts_NW, basis.coefficients_QW), parts_NW.norm(dim=1).square_()))
        return torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])

    def pair_scores(self, fields: Fields, place_P: Tensor, query_P: Tensor) -> Tensor:
        """Scores of some pairs alone, float32 [P]: of the passages at these places with these queries."""
        rows_ND = self.codec.block(fields, torch.float32)
        factor_N = self._factor(self._along(rows_ND), fields)
        asked, column_P = query_P.unique(return_inverse=True)
        if len(place_P) * DENSE >= len(rows_ND) * len(asked):
            return (products(rows_ND, self._queries_QD[asked]) * factor_N[:, None])[place_P, column_P]
        some = max(PAIR_BYTES // (8 * rows_ND.shape[1]), 1)
        parts = zip(place_P.split(some), query_P.split(some), strict=True)
        product_P = torch.cat([(rows_ND[place] * self._queries_QD[query]).sum(dim=1) for place, query in parts])
        return product_P * factor_N[place_P]

    def factors(self, fields: Fields) -> Tensor:
        """What each passage's inner products with the queries are multiplied with, float32 [n]."""
        return self._factor(self._along(self.codec.block(fields, torch.float32)), fields)

    def bounds(self, fields: Fields) -> Tensor:
        """Products of the norms of passages and queries, float32 [n, Q]: no score is larger."""
        return self.factors(fields)[:, None] * self._queries_QD.norm(dim=1)

    def _along(self, rows_ND: Tensor) -> Tensor:
        """Squared length along the directions, float32 [n]."""
        along_N = rows_ND.new_zeros(len(rows_ND))
        for span, part_rd in zip(self.codec.layout, self._directions, strict=True):
            if len(part_rd):
                along_N += products(rows_ND[:, span.slice], part_rd).square_().sum(dim=1)
        return along_N

    def _factor(self, along_N: Tensor, fields: Fields) -> Tensor:
        """What a passage's inner products are multiplied with, float32 [n]."""
        scoring, norm_N = self.prepared.scoring, fields["norm"]
        if not scoring.normalize:
            return norm_N
        if scoring.curvature == "none":
            return norm_N / fields["raw_norm"].clamp_min(torch.finfo(torch.float32).tiny)
        return (1 - along_N).clamp_min_(self.prepared.floor).mul_(self.prepared.scale).rsqrt_()
