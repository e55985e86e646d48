"""The curvature of a task, applied at scan time to rows that were whitened with the corpus's curvature.

TrackStar mixes R = (1 - lambda) R_t + lambda R_q. In whitened coordinates that is M = (1 - lambda) I + lambda S with
S = R_t^{-1/2} R_q R_t^{-1/2} = U diag(s) U^T, whose rank is at most the number of queries, so that

    M^{-1} = (I - U diag(c) U^T) / (1 - lambda),   c = lambda s / ((1 - lambda) + lambda s)

and one index serves every task. Damping belongs to R_t.

Of the S of Q queries in d dimensions at most Q eigenvalues are not zero, and as their sum is about d they stand some
d / Q times too high, the higher the wider the module: where wide and narrow modules share a row, the wide ones'
directions are pressed to nothing. So a lambda that is given as a number has one meaning in every module: S is divided
by w = sum s^2 / sum s, the mean of its eigenvalues weighted by themselves, which is TrackStar's R with a lambda_m of
each module's own, lambda_m / (1 - lambda_m) = lambda / ((1 - lambda) w). With the paper's rule for lambda S stays as it
is.

Legend: Q queries, D dims, d dims of a module, r directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.rows.checks import require_width
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.rows.norms import unit_rows
from headwater.configs.errors import UserError

LAMBDA_COMPONENT = 1000 / 65536
"""The paper balances the two curvatures at this place among the sorted eigenvalues."""


@dataclass(slots=True)
class TaskCurvature:
    """U and c per module, the strongest direction first.

    Attributes:
        layout: the row layout.
        lambda_: weight of the queries' curvature, in [0, 1).
        directions: per module U^T, float32 [r_m, d].
        weights: per module c, float32 [r_m], descending, each in [0, 1).
        eigenvalues: per module s, float64 [r_m], as they are mixed.
    """

    layout: RowLayout
    lambda_: float
    directions: dict[str, Tensor]
    weights: dict[str, Tensor]
    eigenvalues: dict[str, Tensor]

    @classmethod
    def from_queries(
        cls, whitening: Whitening, queries_QD: Tensor, lambda_: float, *, scaled: bool = True
    ) -> TaskCurvature:
        """From raw query rows, float [Q, D]; they are brought to unit norm here.

        Args:
            whitening: the corpus's.
            queries_QD: the rows.
            lambda_: the task's weight.
            scaled: divide each module's S by its w; otherwise it is TrackStar's to the letter.

        Raises:
            UserError: lambda is not in [0, 1).
        """
        layout = whitening.layout
        require_width(queries_QD, layout, "query rows")
        if not 0 <= lambda_ < 1:
            raise UserError(
                "lambda must lie in [0, 1)", got=lambda_, expected="0 for none of the task's curvature, .25 or more"
            )
        white_QD = whitening.apply(unit_rows(queries_QD))
        directions, weights, eigenvalues = {}, {}, {}
        for span in layout:
            s_r, u_rd = autocorrelation_directions(white_QD[:, span.slice])
            if scaled and len(s_r):
                s_r = s_r * (s_r.sum() / s_r.square().sum())
            c_r = lambda_ * s_r / ((1 - lambda_) + lambda_ * s_r)
            directions[span.name], weights[span.name], eigenvalues[span.name] = u_rd.float(), c_r.float(), s_r
        return cls(layout, lambda_, directions, weights, eigenvalues)

    def solve(self, rows_ND: Tensor) -> Tensor:
        """M^{-1} applied to whitened rows with every direction, float32 [n, D]."""
        out_ND = rows_ND.float().clone()
        for span in self.layout:
            u_rd, c_r = self.directions[span.name], self.weights[span.name]
            part_Nd = out_ND[:, span.slice]
            part_Nd -= ((part_Nd @ u_rd.T) * c_r) @ u_rd
        return out_ND.div_(1 - self.lambda_)

    def scaled_directions(self, rank: int | None) -> dict[str, Tensor]:
        """Per module sqrt(c) U^T, float32 [<= rank, d]: z^T M^{-1} z = (|z|^2 - |scaled z|^2) / (1 - lambda)."""
        return {
            span.name: self.directions[span.name][:rank] * self.weights[span.name][:rank, None].sqrt()
            for span in self.layout
        }


def autocorrelation_directions(rows_Qd: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues float64 [r], descending, and eigenvectors float64 [r, d] of the mean of g g^T over rows g [Q, d]."""
    a_Qd = rows_Qd.double() / len(rows_Qd) ** 0.5
    if len(a_Qd) < a_Qd.shape[1]:
        s_r, v_Qr = torch.linalg.eigh(a_Qd @ a_Qd.T)
        keep = s_r > 1e-12 * s_r[-1].clamp_min(1e-300)
        s_r, v_Qr = s_r[keep], v_Qr[:, keep]
        u_rd = (v_Qr.T @ a_Qd) / s_r.sqrt()[:, None]
    else:
        s_r, u_dr = torch.linalg.eigh(a_Qd.T @ a_Qd)
        keep = s_r > 1e-12 * s_r[-1].clamp_min(1e-300)
        s_r, u_rd = s_r[keep], u_dr.T[keep]
    return s_r.flip(0), u_rd.flip(0)


def paper_lambda(whitening: Whitening, queries_QD: Tensor, *, limit: float = 0.99) -> float:
    """The lambda at which both curvatures weigh alike at the paper's component of their pooled eigenvalues.

    The eigenvalues of each R are pooled over modules and sorted; at component k = D * 1000/65536 it solves
    lambda s_q[k] = (1 - lambda) s_t[k] (arXiv 2410.17413).

    Args:
        whitening: with the eigenvalues of R_t.
        queries_QD: raw query rows, float [Q, D].
        limit: the largest value returned; few queries have no k-th eigenvalue, and lambda = 1 has no inverse.

    Raises:
        UserError: the index was made without curvature.
    """
    train_values = whitening.eigenvalues()
    if not train_values:
        raise UserError(
            "the paper's rule for lambda needs the corpus's curvature",
            got="an index made without curvature",
            fix="give lambda as a number, or make the index with curvature",
        )
    unit_QD = unit_rows(queries_QD)
    train = torch.cat(list(train_values.values())).sort(descending=True).values
    query = torch.cat([autocorrelation_directions(unit_QD[:, span.slice])[0] for span in whitening.layout])
    query = query.sort(descending=True).values
    k = round(LAMBDA_COMPONENT * whitening.layout.dims)
    s_train = float(train[min(k, len(train) - 1)])
    s_query = float(query[k]) if k < len(query) else 0.0
    if s_train + s_query <= 0:
        return limit
    return min(s_train / (s_train + s_query), limit)
