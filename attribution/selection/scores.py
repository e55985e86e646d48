"""One score a passage for a whole task, and one a document. No texts and no list of ids are held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.distributed import distributed
from headwater.attribution.search.options import ScanOptions, Source
from headwater.train.stream.passages import PassageSet

IDS_AT_ONCE = 65536
"""Passages whose ids are held at a time."""


def task_scores(sources: Sequence[Source], options: ScanOptions, how: str) -> np.ndarray:
    """The score of every passage for the queries together: float32 [N].

    Args:
        how: `mean` of the queries' scores, or `max`.
    """
    work = Scan(sources, options)
    scores_N = torch.zeros(work.passages)
    for start, stop, scores_NQ in work.blocks():
        scores_N[start:stop] = scores_NQ.mean(dim=1) if how == "mean" else scores_NQ.amax(dim=1)
    if distributed():
        torch.distributed.all_reduce(scores_N)  # every passage is one rank's
    return scores_N.numpy()


def sources_of(passages: PassageSet) -> tuple[list[str], np.ndarray]:
    """Names of the sources, and which one each passage comes from: int32 [N]. What is injected is a source too."""
    names: list[str] = []
    places = []
    for corpus in passages.corpora:
        spans = corpus.sources
        starts = np.array([span.first_sequence for span in spans], dtype=np.int64)
        order = np.argsort(starts)
        found = order[np.searchsorted(starts[order], corpus.sequence_of, side="right") - 1]
        places.append(found + len(names))
        names += [span.name for span in spans]
    return names, np.concatenate(places).astype(np.int32)


@dataclass(slots=True)
class Documents:
    """Passages by document.

    Attributes:
        first_U: a passage of each document, int64.
        of_N: the document of each passage, int64.
    """

    first_U: np.ndarray
    of_N: np.ndarray

    def scores(self, scores_N: np.ndarray, how: str) -> np.ndarray:
        """The score of each document, over its passages: float32 [U]; `max` or `mean`."""
        if how == "mean":
            sums_U = np.bincount(self.of_N, weights=scores_N, minlength=len(self.first_U))
            return (sums_U / np.bincount(self.of_N, minlength=len(self.first_U))).astype(np.float32)
        highest_U = np.full(len(self.first_U), -np.inf, dtype=np.float32)
        np.maximum.at(highest_U, self.of_N, scores_N)
        return highest_U


def documents_of(passages: PassageSet) -> Documents:
    """Which passages belong to one document: those whose ids differ in the number after `#` alone."""
    keys_N = np.empty(len(passages), dtype=np.uint64)
    for start in range(0, len(passages), IDS_AT_ONCE):
        stop = min(start + IDS_AT_ONCE, len(passages))
        names = passages.ids(start, stop)
        keys_N[start:stop] = [xxhash.xxh3_64_intdigest(document_name(name)) for name in names]
    _, first_U, of_N = np.unique(keys_N, return_index=True, return_inverse=True)
    return Documents(first_U, of_N)


def document_name(passage_id: str) -> str:
    """`a` of `a#3`."""
    return passage_id.rpartition("#")[0] or passage_id


def chosen(scores_U: np.ndarray, groups_U: np.ndarray | None = None, *, top: int = 0, share: float = 0.0) -> np.ndarray:
    """The places of the highest scores, highest first: int64. Of equal scores the lower place stands first.

    Args:
        groups_U: take `top` or `share` of each of these groups.
        top: how many.
        share: or which share, of a group at least one.
    """
    groups_U = np.zeros(len(scores_U), dtype=np.int32) if groups_U is None else groups_U
    order = np.argsort(-scores_U, kind="stable")
    kept = []
    for group in np.unique(groups_U):
        members = order[groups_U[order] == group]
        kept.append(members[: top or max(1, round(share * len(members)))])
    found = np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
    return found[np.lexsort((found, -scores_U[found]))]
