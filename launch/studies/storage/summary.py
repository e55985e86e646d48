"""From the parts of a storage study to its summary. A function of the parts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.bootstrap import cluster_bootstrap
from headwater.configs import load_config
from headwater.launch.studies.storage.claims import judge
from headwater.launch.studies.storage.data import CELEBRITY, Population
from headwater.launch.studies.storage.parts import StoragePart
from headwater.launch.studies.storage.settings import StorageSettings
from headwater.launch.studies.storage.shares import summarise
from headwater.train.artifacts import RunDir, read_json
from headwater.train.facts.biographies import ATTRIBUTES
from headwater.train.settings import PretrainSettings

METHODS = ("mixed", "full", "lora")
"""How a model comes to answer: questions from the start, fine-tuning of all weights, LoRA."""


def analyse(settings: StorageSettings, parts: Sequence[StoragePart]) -> dict[str, Any]:
    """The summary: accuracy by variant and method, probes, provenance, majority baselines, claims."""
    populations = {seed: Population(settings.population, seed) for seed in settings.seeds}
    answers = gather(parts)
    accuracy = {
        name: {
            method: measured(found, populations, settings.resamples)
            for method in METHODS
            if (found := answers.get((name, method)))
        }
        for name in dict.fromkeys([*settings.variants, *settings.mixed, *([CELEBRITY] * settings.celebrity)])
    }
    summary: dict[str, Any] = {
        "study": "storage",
        "settings": asdict(settings),
        "model": describe(parts[0].path),
        "people": {"all": settings.population.people, "asked": len(populations[settings.seeds[0]].asked)},
        "attributes": list(ATTRIBUTES),
        "majority": majority(list(populations.values())),
        "accuracy": {name: rows for name, rows in accuracy.items() if rows},
        "recall": recalls(parts),
        "q_probes": q_probes(parts),
        "p_probes": {part.variant: task(part, "p_probe") for part in reversed(parts) if has(part, "p_probe")},
        "curves": curves(parts),
        "provenance": provenance(parts),
        "comparisons": comparisons(answers, populations, settings),
        "seconds": seconds(parts),
    }
    summary["claims"] = judge(summary)
    return summary


def has(part: StoragePart, name: str) -> bool:
    return name in part.tasks and part.result(name).exists()


def task(part: StoragePart, name: str) -> dict[str, Any]:
    return {key: value for key, value in read_json(part.result(name)).items() if key != "right"}


def gather(parts: Sequence[StoragePart]) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """Answers by (variant, method), then by seed."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for part in parts:
        for name, method in (("asked", "mixed"), ("full", "full"), ("lora", "lora")):
            if has(part, name):
                found.setdefault((part.variant, method), {})[part.seed] = read_json(part.result(name))
    return found


def owners_of(found: dict[int, dict[str, Any]], populations: dict[int, Population]) -> np.ndarray:
    """The person of each answer, numbered over seeds."""
    most = next(iter(populations.values())).settings.people
    return np.concatenate([seed * most + np.array(each["person"]) for seed, each in sorted(found.items())])


def rights_of(found: dict[int, dict[str, Any]]) -> np.ndarray:
    return np.concatenate([np.array(each["right"], dtype=float) for _, each in sorted(found.items())])


def measured(found: dict[int, dict[str, Any]], populations: dict[int, Population], resamples: int) -> dict[str, Any]:
    """Accuracy about asked people [value, low, high] (over people), about taught ones, by attribute and by seed."""
    right, owner = rights_of(found), owners_of(found, populations)
    attribute = np.concatenate([np.array(each["attribute"]) for _, each in sorted(found.items())])
    return {
        "asked": cluster_bootstrap(owner, lambda n: float(right[n].mean()), resamples=resamples),
        "taught": float(np.mean([each["taught"] for each in found.values()])),
        "by_attribute": {name: float(right[attribute == name].mean()) for name in ATTRIBUTES},
        "by_seed": {str(seed): each["asked"] for seed, each in sorted(found.items())},
    }


def majority(populations: Sequence[Population]) -> dict[str, Any]:
    """Accuracy about asked people of whoever always gives the taught people's commonest value."""
    rows = []
    for population in populations:
        taught, asked = ([population.people[n].values for n in half] for half in (population.taught, population.asked))
        row = []
        for name in ATTRIBUTES:
            values = [each[name] for each in taught]
            common = max(sorted(set(values)), key=values.count)
            row.append(float(np.mean([each[name] == common for each in asked])))
        rows.append(row)
    mean = np.mean(rows, axis=0)
    return {"mean": float(mean.mean()), "by_attribute": dict(zip(ATTRIBUTES, mean.tolist(), strict=True))}


def recalls(parts: Sequence[StoragePart]) -> dict[str, Any]:
    """What the models know of the biographies themselves: mean over seeds, by protocol and variant."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for part in parts:
        if has(part, "told"):
            found.setdefault(part.protocol, {}).setdefault(part.variant, []).append(read_json(part.result("told")))
    return {
        protocol: {
            name: {
                key: float(np.mean([each[half][key] for each in rows for half in ("taught", "asked")]))
                for key in ("next_token", "values")
            }
            for name, rows in variants.items()
        }
        for protocol, variants in found.items()
    }


def q_probes(parts: Sequence[StoragePart]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for part in parts:
        if has(part, "q_probe"):
            made.setdefault(part.variant, []).append(task(part, "q_probe"))
    return {
        name: {
            "accuracy": np.mean([each["accuracy"] for each in rows], axis=0).tolist(),
            "mean": float(np.mean([each["accuracy"] for each in rows])),
            "majority": np.mean([each["majority"] for each in rows], axis=0).tolist(),
        }
        for name, rows in made.items()
    }


def curves(parts: Sequence[StoragePart]) -> dict[str, Any]:
    """Exact answers about asked people over the steps of mixed training, by variant; the first seed's."""
    import pyarrow.parquet as pq

    made: dict[str, Any] = {}
    for part in parts:
        path = RunDir.at(part.path).probes
        if part.protocol == "mixed" and part.variant not in made and path.exists():
            table = pq.read_table(path)
            steps, exact = table["step"].to_numpy(), table["exact"].to_numpy(zero_copy_only=False)
            made[part.variant] = {int(step): float(exact[steps == step].mean()) for step in np.unique(steps)}
    return made


def provenance(parts: Sequence[StoragePart]) -> dict[str, Any]:
    traced: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        if has(part, "trace"):
            traced.setdefault(part.variant, []).append(read_json(part.result("trace")))
    return {
        name: {key: summarise(rows, right) for key, right in (("all", None), ("right", True), ("wrong", False))}
        for name, rows in traced.items()
    }


def comparisons(
    answers: dict[tuple[str, str], dict[int, dict[str, Any]]],
    populations: dict[int, Population],
    settings: StorageSettings,
) -> dict[str, Any]:
    """Differences of accuracy about the same people, [value, low, high], over people."""

    def difference(one: str, other: str, method: str) -> list[float] | None:
        first, second = answers.get((one, method)), answers.get((other, method))
        shared = sorted(set(first or {}) & set(second or {}))
        if first is None or second is None or not shared:
            return None
        first, second = ({seed: each[seed] for seed in shared} for each in (first, second))
        gap = rights_of(first) - rights_of(second)
        owner = owners_of(first, populations)
        return cluster_bootstrap(owner, lambda n: float(gap[n].mean()), resamples=settings.resamples)

    pairs = [
        ("multi5+permute", "single"),
        ("multi2", "single"),
        ("multi5", "multi2"),
        ("multi5+permute", "multi5"),
        ("single+permute5", "single+permute1"),
        ("single+fullname", "single"),
        (CELEBRITY, "single+permute1"),
    ]
    found = {f"{one} - {other}, {method}": difference(one, other, method) for one, other in pairs for method in METHODS}
    return {name: value for name, value in found.items() if value is not None}


def seconds(parts: Sequence[StoragePart]) -> dict[str, float]:
    """Seconds of each kind of task, over all parts."""
    total: dict[str, float] = {}
    for part in parts:
        for name in part.tasks:
            if part.result(name).exists():
                total[name] = total.get(name, 0.0) + read_json(part.result(name))["seconds"]
    return {**total, "all": sum(total.values())}


def describe(path: Path) -> dict[str, Any]:
    settings = load_config(PretrainSettings, path / "config.yaml")
    shape = {name: getattr(settings.model, name) for name in ("layers", "hidden", "heads", "ffn_hidden")}
    train = settings.train
    tokens = train.steps * train.global_batch * settings.corpus.seq_len
    return {
        **shape,
        "steps": train.steps,
        "batch": train.global_batch,
        "seq_len": settings.corpus.seq_len,
        "tokens": tokens,
    }
