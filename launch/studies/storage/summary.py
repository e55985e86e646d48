"""From the parts of a storage study to its summary. A function of the parts alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from headwater.configs import load_config
from headwater.launch.studies.claim import as_kept
from headwater.launch.studies.storage.claims import lora, mixing, origin, probes, rewriting, size, ways
from headwater.launch.studies.storage.data import CELEBRITY, Population, rewritten_name
from headwater.launch.studies.storage.measured import METHODS, RIGHT, SHUFFLED, Measured, gather
from headwater.launch.studies.storage.parts import StoragePart
from headwater.launch.studies.storage.settings import StorageSettings
from headwater.launch.studies.storage.shares import summarise
from headwater.train.artifacts import RunDir, read_json
from headwater.train.facts.biographies import ATTRIBUTES
from headwater.train.settings import PretrainSettings

ROOMS = (ways, lora, probes, size, mixing, rewriting, origin)
"""The claims, in the order of the table."""


def analyse(settings: StorageSettings, parts: Sequence[StoragePart]) -> dict[str, Any]:
    """The summary: accuracy by variant and method, probes, provenance, majority baselines, claims."""
    measured = gather(settings, parts)
    populations = list(measured.populations.values())
    reported = [part for part in parts if not part.point]
    summary: dict[str, Any] = {
        "study": "storage",
        "settings": asdict(settings),
        "model": describe(parts[0].path),
        "people": {"all": settings.population.people, "asked": len(populations[0].asked)},
        "attributes": list(ATTRIBUTES),
        "majority": majority(populations),
        "accuracy": accuracies(measured),
        "recall": recalls([part for part in reported if not part.window]),
        "q_probes": q_probes(reported),
        "curves": curves(reported),
        "provenance": provenance(reported),
        "measures": {
            "ways": ways.measure(measured),
            "lora": lora.measure(measured),
            "probes": probes.measure(measured),
            "size": size.measure(measured),
            "mixing": mixing.measure(measured),
            "rewriting": rewriting.measure(measured),
        },
        "seconds": seconds(parts),
    }
    return summary | {"claims": judge(summary)}


def judge(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Each claim with its status, what was measured, its negative control, and how the study differs from the paper."""
    general = differences(summary)
    return [as_kept(claim, general) for room in ROOMS for claim in room.judge(summary)]


def differences(summary: dict[str, Any]) -> str:
    """How every claim's setting differs from the paper's."""
    model, population = summary["model"], summary["settings"]["population"]
    parts = [
        f"{population['people']:,} people instead of 100,000",
        f"Llama shape of {model['layers']} layers x {model['hidden']} instead of GPT-2",
        f"{model['tokens'] / 1e6:.3g}M tokens of pretraining instead of {80_000 * 96 * 512 / 1e9:.2g}B",
        "passages in a window do not see each other",
        f"{len(summary['settings']['seeds'])} seed(s) of the main comparison, one of the others, instead of one",
    ]
    published = {"cities": 200, "universities": 300, "majors": 100, "employers": 263, "years": 200}
    smaller = [f"{population[name]} {name}" for name, size in published.items() if population[name] != size]
    if smaller:
        parts.append("values: " + ", ".join(smaller))
    return "; ".join(parts)


def accuracies(measured: Measured) -> dict[str, Any]:
    """By variant and method: [value, low, high] of the answers about asked people, and of these held against another
    person's; about taught ones, by attribute and by seed."""
    chosen = measured.settings
    made: dict[str, Any] = {}
    order = [*chosen.variants, *chosen.mixed, CELEBRITY, *(rewritten_name(share) for share in chosen.rewritten)]
    for variant, method in itertools.product(dict.fromkeys(order), METHODS):
        found = measured.answers.get((variant, method))
        if not found:
            continue
        right = np.concatenate([each.right_N for each in found.values()])
        attribute = np.concatenate([each.attribute_N for each in found.values()])
        made.setdefault(variant, {})[method] = {
            "asked": measured.accuracy(variant, method, RIGHT),
            SHUFFLED: measured.accuracy(variant, method, SHUFFLED),
            "taught": float(np.mean([each.taught for each in found.values()])),
            "by_attribute": {name: float(right[attribute == name].mean()) for name in ATTRIBUTES},
            "by_seed": {str(seed): float(each.right_N.mean()) for seed, each in sorted(found.items())},
        }
    return made


def has(part: StoragePart, name: str) -> bool:
    return name in part.tasks and part.result(name).exists()


def task(part: StoragePart, name: str) -> dict[str, Any]:
    return {key: value for key, value in read_json(part.result(name)).items() if key != "right"}


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
