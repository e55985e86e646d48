"""TrackStar's formula in float64, with R^{-1/2} on both sides, and a small index to hold against it."""

import numpy as np

from headwater.attribution.curvature.sums import SUMS
from headwater.attribution.curvature.whitening import Whitening
from headwater.attribution.index.reader import open_index
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.rows.layout import RowLayout

from .synthetic_rows import make_rows

LAYOUT = RowLayout([("layers.0.qkv", 6, 7), ("layers.0.fc1", 9, 5), ("layers.1.fc2", 4, 8)])
DAMPING, LAMBDA, N = 0.1, 0.75, 333


def build(path, rows_ND, *, shard_rows=None, codecs=("fp32",), kind="full", layout=LAYOUT, corpus="corpus"):
    whitening = Whitening.none(layout)
    if kind != "none":
        sums = SUMS[kind](layout)
        sums.add(rows_ND)
        whitening = sums.whitening(DAMPING)
    writer = IndexWriter(
        path,
        layout=layout,
        passages=len(rows_ND),
        whitening=whitening,
        codecs=codecs,
        meta={"corpus": corpus},
        shard_rows=shard_rows,
    )
    writer.begin()
    for number in writer.pending():
        start, stop = writer.span(number)
        writer.write(number, rows_ND[start:stop])
    writer.finish([f"p{i}#0" for i in range(len(rows_ND))])
    return open_index(path)


def dense_curvature(part_Nd, span, kind):
    """R_t + damping, [d, d], of unit rows' parts."""
    if kind == "full":
        r_t = part_Nd.T @ part_Nd / len(part_Nd)
        return r_t + DAMPING * np.trace(r_t) / span.dims * np.eye(span.dims)
    g_NOI = part_Nd.reshape(-1, span.k_out, span.k_in)
    a_OO, b_II = (
        np.einsum("noi,npi->op", g_NOI, g_NOI) / len(g_NOI),
        np.einsum("noi,noj->ij", g_NOI, g_NOI) / len(g_NOI),
    )
    trace = np.trace(a_OO)
    a_OO += DAMPING * trace / span.k_out * np.eye(span.k_out)
    b_II += DAMPING * trace / span.k_in * np.eye(span.k_in)
    return np.kron(a_OO, b_II) / trace


def dense_scores(
    rows_ND, queries_QD, *, kind="full", lambda_=LAMBDA, normalize=True, task_QD=None, layout=LAYOUT, scaled=True
):
    """G = R^{-1/2} g with R = (1 - lambda) (R_t + eps I) + lambda R_q / w per module; unit norm over all modules.

    w = tr S^2 / tr S with S = (R_t + eps I)^{-1} R_q, or 1 for TrackStar's own formula.
    """
    raw = rows_ND.numpy().astype(np.float64)
    queries = queries_QD.numpy().astype(np.float64)
    task = queries if task_QD is None else task_QD.numpy().astype(np.float64)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    task = task / np.linalg.norm(task, axis=1, keepdims=True)
    white_rows, white_queries = np.empty_like(raw), np.empty_like(queries)
    for span in layout:
        r_t = dense_curvature(unit[:, span.slice], span, kind)
        r_q = task[:, span.slice].T @ task[:, span.slice] / len(task)
        if scaled:
            s = np.linalg.solve(r_t, r_q)
            r_q = r_q * np.trace(s) / np.trace(s @ s)
        values, vectors = np.linalg.eigh((1 - lambda_) * r_t + lambda_ * r_q)
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        white_rows[:, span.slice] = raw[:, span.slice] @ root
        white_queries[:, span.slice] = queries[:, span.slice] @ root
    if normalize:
        white_rows /= np.linalg.norm(white_rows, axis=1, keepdims=True)
        white_queries /= np.linalg.norm(white_queries, axis=1, keepdims=True)
    return white_queries @ white_rows.T


def queries_of(count):
    return make_rows(LAYOUT, count, rows_seed=99)
