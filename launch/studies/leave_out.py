"""Leaving out what is named: facts are drawn, lists of passages written, and the drops of trainings without them read.

MODEL/leave_out/facts.json     the facts that were drawn: probe, example_id, prob
MODEL/leave_out/ARM.txt        the passages that a training leaves out (train.exclude)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import RESAMPLES, interval, paired, resampled_means
from headwater.attribution.evaluation.ranking import Ranking, read_rankings
from headwater.attribution.tracing.queries import Query
from headwater.train.artifacts import RunDir, read_json, write_bytes, write_json


def lists_of(run: RunDir) -> Path:
    """The directory of what is left out."""
    return run.path / "leave_out"


def probed(run: RunDir, step: int | None = None, what: str = "prob", file: Path | None = None) -> np.ndarray:
    """What the probes measured after a step, the last one if not given: float64 [probes].

    Args:
        what: `prob` of the whole target, its mean `logprob`, or `exact`.
        file: of another callback that asks like the run's probes.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(file or run.probes)
    steps = table["step"].to_numpy()
    at = steps == (steps.max() if step is None else step)
    order = np.argsort(table["probe"].to_numpy()[at], kind="stable")
    return table[what].to_numpy(zero_copy_only=False)[at][order].astype(np.float64)


def draw_facts(probability_Q: np.ndarray, known: float, count: int, seed: int) -> list[int]:
    """Numbers of `count` probes, drawn by the seed among those whose target is at least as probable as `known`; where
    these are too few, the most probable ones."""
    over = np.flatnonzero(probability_Q >= known)
    if len(over) < count:
        return sorted(np.argsort(-probability_Q, kind="stable")[:count].tolist())
    return sorted(np.random.default_rng(seed).permutation(over)[:count].tolist())


def random_passages(run: RunDir, queries: Sequence[Query], count: int, seed: int) -> list[str]:
    """Planted passages that state none of the queries' facts: what leaving out as many of their kind does by itself."""
    from headwater.train.stream.passages import open_passages

    gold = {name for query in queries for name in query.gold}
    passages = open_passages(run)
    planted = [name for corpus in passages.corpora[1:] for name in corpus.ids(0, corpus.passages)]
    others = [name for name in planted if name not in gold]
    drawn = np.random.default_rng(seed).permutation(len(others))[:count]
    return [others[i] for i in drawn]


def named_by(
    evaluation: Path, run: RunDir, arms: Sequence[str], asked: Sequence[Query], top: int, seed: int
) -> dict[str, list[list[str]]]:
    """What each arm names for the facts that were drawn.

    Args:
        evaluation: the directory of the methods' rankings.
        arms: `gold`, `random`, `nothing`, or a method with a ranking.
        top: passages that a method names for each fact, and as many times the facts at random.
    """
    named: dict[str, list[list[str]]] = {}
    for arm in arms:
        if arm == "gold":
            named[arm] = [list(query.gold) for query in asked]
        elif arm == "nothing":
            named[arm] = []
        elif arm == "random":
            named[arm] = [random_passages(run, asked, top * len(asked), seed)]
        else:
            ranked = {each.example_id: each.ranking for each in read_rankings(evaluation / f"{arm}.jsonl")}
            named[arm] = [list(ranked[query.example_id][:top]) for query in asked]
    return named


def write_lists(
    run: RunDir,
    queries: Sequence[Query],
    probability_Q: np.ndarray,
    chosen: Sequence[int],
    named: Mapping[str, Sequence[Sequence[str]]],
) -> None:
    """Writes what is left out; facts.json last.

    Args:
        queries: all probes, with their probability.
        chosen: those that were drawn.
        named: of each arm, lists of passages whose union is left out.
    """
    for arm, lists in named.items():
        write_list(run, arm, lists)
    facts = [{"probe": i, "example_id": queries[i].example_id, "prob": float(probability_Q[i])} for i in chosen]
    write_json(lists_of(run) / "facts.json", facts)


def write_list(run: RunDir, arm: str, lists: Sequence[Sequence[str]]) -> None:
    """Writes what one arm leaves out: the union of some lists of passages."""
    removed = sorted({name for each in lists for name in each})
    write_bytes(lists_of(run) / f"{arm}.txt", "".join(f"{name}\n" for name in removed).encode())


def read_drops(
    model: RunDir, without: Mapping[str, RunDir], step: int | None = None, answers: str = ""
) -> dict[str, dict[str, Any]]:
    """Of each arm: how many passages were left out, each fact's probability before, and its drop: float64 [facts].

    Args:
        without: the training of each arm.
        step: after which they are compared; the last one if not given.
        answers: the file of a run directory that holds them, of another callback that asks like the run's probes.
    """
    places = [fact["probe"] for fact in read_json(lists_of(model) / "facts.json")]

    def asked(run: RunDir) -> np.ndarray:
        return probed(run, step, file=run.path / answers if answers else None)[places]

    before_F = asked(model)
    arms = {}
    for arm, run in without.items():
        after_F = asked(run)
        passages = len((lists_of(model) / f"{arm}.txt").read_text().splitlines())
        arms[arm] = {"passages": passages, "drop": before_F - after_F, "before": before_F}
    return arms


def pool(asked: Mapping[int, tuple[dict[str, list[Ranking]], dict[str, np.ndarray] | None]]) -> tuple[Any, Any]:
    """All seeds' queries as one set."""
    rankings: dict[str, list[Ranking]] = {}
    patched: dict[str, list[np.ndarray]] = {}
    for seed, (ranked, rises) in asked.items():
        for name, each in ranked.items():
            rankings.setdefault(name, []).extend(replace(r, example_id=f"{seed}/{r.example_id}") for r in each)
        for name, values in (rises or {}).items():
            patched.setdefault(name, []).append(values)
    return rankings, {name: np.concatenate(parts) for name, parts in patched.items()} or None


def joined(parts: Sequence[Mapping[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The drops of several models as those of one."""
    return {
        arm: {
            "passages": sum(part[arm]["passages"] for part in parts),
            "drop": np.concatenate([part[arm]["drop"] for part in parts]),
            "before": np.concatenate([part[arm]["before"] for part in parts]),
        }
        for arm in parts[0]
    }


def leave_out_table(arms: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Per arm: passages left out, facts, their mean probability before, its drop, the drop as a share of gold's, and
    what it is above the random arm's, fact by fact; intervals over facts drawn with replacement."""
    table = {}
    for arm, row in arms.items():
        entry: dict[str, Any] = {
            "passages": row["passages"],
            "facts": len(row["drop"]),
            "before": float(row["before"].mean()),
            "drop": interval(row["drop"]),
        }
        if "gold" in arms:
            entry["share_of_gold"] = share(row["drop"], arms["gold"]["drop"])
        if "random" in arms:
            entry["above_random"] = paired(row["drop"], arms["random"]["drop"]).difference
        table[arm] = entry
    return table


def share(drop_F: np.ndarray, gold_F: np.ndarray) -> list[float]:
    """[ratio of the means, low, high]; both means of a draw are over the same facts."""
    over_R = resampled_means(gold_F, RESAMPLES, 0)
    under = np.where(np.abs(over_R) < 1e-9, np.nan, over_R)
    low, high = np.nanquantile(resampled_means(drop_F, RESAMPLES, 0) / under, [0.025, 0.975])
    whole = float(gold_F.mean())
    return [float(drop_F.mean()) / whole if whole else float("nan"), float(low), float(high)]
