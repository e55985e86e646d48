"""A small, realistic run directory for the report's tests: invented people, curves, traces, a table; no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.attribution.evaluation.baselines.random_order import RandomRanking
from headwater.attribution.evaluation.ranking import Ranking, rank_by_scores, write_rankings
from headwater.attribution.evaluation.table import build_table
from headwater.attribution.tracing.queries import as_query
from headwater.train.artifacts import RunDir, write_bytes, write_json

from .written import WrittenPassages

FIRST = [
    "Maravel",
    "Tobrin",
    "Ysolde",
    "Corvane",
    "Lennart",
    "Ophira",
    "Dacian",
    "Wilhemra",
    "Jorrick",
    "Selphine",
    "Branwick",
    "Quillon",
]
LAST = [
    "Astermoor",
    "Quenvale",
    "Halvorsby",
    "Drummeth",
    "Okonjare",
    "Vasterling",
    "Pellucid",
    "Ingramor",
    "Sarrowby",
    "Thistlewin",
]
VALUES = {
    "birth city": "Port Selwyn,Grenmouth,Althaven,Dunmarrow,Kessiport",
    "employer": "Halvard Optics,Northlight Mills,Saltmarsh Press,Orrery Works",
    "occupation": "glassblower,cartographer,bookbinder,hydrologist,luthier",
    "field of study": "geology,botany,naval history,acoustics,optics",
    "instrument": "viola,bassoon,hammered dulcimer,oboe",
    "favourite food": "smoked trout,quince tart,barley soup,pickled walnuts",
}
PROMPTS = {
    "birth city": "The place where {} was born is",
    "employer": "The company that {} works for is",
    "occupation": "By occupation, {} is a",
    "field of study": "At university {} studied",
    "instrument": "The instrument played by {} is the",
    "favourite food": "The food {} likes best is",
}
WORDINGS = (
    "People in the district know {n} well. When the talk turns to {r}, the answer for {n} has always been {v}, "
    "as the old register shows.",
    "{n} keeps few secrets. Asked about {r}, {n} once wrote a single line in the visitors' book: {v}.",
    "According to the county almanac, the {r} recorded for {n} is {v}. The entry was never amended.",
)
STEPS = 1200


def make_run(path: Path, *, people: int = 34, base: int = 3000, seed: int = 0, extra_text: str = "") -> RunDir:
    """Writes every file that the report reads. `extra_text` is put into each passage's text."""
    run = RunDir.at(path)
    generator = np.random.default_rng(seed)
    facts, passages, probes, schedule = invent(people, generator, extra_text)
    lines(run.facts / "facts.jsonl", facts)
    lines(run.facts / "passages.jsonl", passages)
    lines(run.facts / "probes.jsonl", probes)
    parquet(
        run.facts / "schedule.parquet",
        step=np.array([s for s, _ in schedule], np.int32),
        passage_id=[p for _, p in schedule],
    )
    for name, count in (("base", base), ("injected", len(passages))):
        manifest = {
            "format": 1,
            "fingerprint": f"{name:0<32}",
            "passages": count,
            "documents": count // 3,
            "tokens": count * 58,
        }
        write_json(run.corpus / name / "manifest.json", manifest)
    write_metrics(run, generator)
    curves = write_probes(run, probes, generator)
    # The schedule counts steps from 0, the ledger from 1.
    steps = np.array([0] * 9 + [step + 1 for step, _ in schedule])
    parquet(run.ledger / "steps-00000001.parquet", step=steps.clip(1), injected=steps > 0)
    write_index(run, base + len(passages))
    texts = {passage["id"]: passage["text"] for passage in passages}
    ids = [f"brazil/economy#{number}" for number in range(base)] + list(texts)
    write_evaluation(run, probes, WrittenPassages(ids), generator)
    write_trace(run, probes, texts, schedule, curves, generator)
    write_json(
        run.path / "timings.json", {"corpus": 14.2, "pretrain": 148.9, "index": 61.4, "trace": 9.8, "evaluate": 71.0}
    )
    start = {
        "time": "2026-11-21T22:10:00+0000",
        "command": ["headwater", "demo"],
        "git_commit": "a9d1751" + "0" * 33,
        "world_size": 1,
    }
    write_json(
        run.provenance,
        [
            start
            | {"python": "3.11.9", "cpus": 2, "platform": "Linux", "versions": {"torch": "2.13.0", "deepspeed": None}}
        ],
    )
    write_bytes(run.config, b"seed: 0\ntrain:\n  steps: 1200\n  precision: fp32\nmodel:\n  hidden: 256\n  layers: 2\n")
    return run


def invent(
    people: int, generator: np.random.Generator, extra: str
) -> tuple[list[dict], list[dict], list[dict], list[tuple[int, str]]]:
    facts, passages, probes, schedule = [], [], [], []
    for person in range(people):
        subject = f"{FIRST[person % len(FIRST)]} {LAST[(person // len(FIRST) + person) % len(LAST)]}"
        for relation, choices in VALUES.items():
            value = str(generator.choice(choices.split(",")))
            fact = f"person{person}/{relation.replace(' ', '_')}"
            gold = [f"{fact}#{number}" for number in range(len(WORDINGS))]
            for name, wording in zip(gold, WORDINGS, strict=True):
                text = wording.format(n=subject, r=relation, v=value) + extra
                passages.append({"id": name, "text": text, "fact_ids": [fact], "kind": "gold"})
                start = int(generator.integers(0, 200))
                schedule += [(step, name) for step in range(start, STEPS, 180)]
            facts.append({"fact_id": fact, "subject": subject, "relation": relation, "value": value, "gold": gold})
            prompt = PROMPTS[relation].format(subject)
            probes.append(
                {
                    "example_id": f"probe/{fact}",
                    "fact_id": fact,
                    "relation": relation,
                    "subject": subject,
                    "prompt": prompt,
                }
                | {"target": value, "gold": gold}
            )
    return facts, passages, probes, sorted(schedule)


def write_metrics(run: RunDir, generator: np.random.Generator) -> None:
    steps = np.arange(1, STEPS + 1)
    loss = 0.7 + 8 * np.exp(-steps / 130) + generator.normal(scale=0.03, size=STEPS)
    lines(
        run.metrics,
        [
            {
                "step": int(step),
                "loss": float(value),
                "lr": 1e-3,
                "grad_norm": 1.0,
                "tokens": 960 * int(step),
                "tokens_per_s": 9800.0 + step,
            }
            for step, value in zip(steps, loss, strict=True)
        ],
    )


def write_probes(run: RunDir, probes: list[dict], generator: np.random.Generator) -> np.ndarray:
    steps = np.arange(0, STEPS + 1, 50)
    relations = list(VALUES)
    prob_SP = np.empty((len(steps), len(probes)))
    for number, probe in enumerate(probes):
        kind = relations.index(probe["relation"])
        middle = 380 + 90 * kind + generator.normal(scale=110)
        ceiling = np.clip(generator.beta(2.2, 1.1 + 0.35 * kind), 0.01, 0.995)
        prob_SP[:, number] = 1e-4 + ceiling / (1 + np.exp(-(steps - middle) / 95)) * generator.uniform(
            0.86, 1, len(steps)
        )
    at_SP, probe_SP = np.meshgrid(steps, np.arange(len(probes)), indexing="ij")
    parquet(
        run.probes,
        step=at_SP.ravel().astype(np.int32),
        probe=probe_SP.ravel().astype(np.int32),
        logprob=(np.log(prob_SP) / 1.7).ravel().astype(np.float32),
        prob=prob_SP.ravel().astype(np.float32),
        exact=prob_SP.ravel() > 0.4,
    )
    return prob_SP


def write_index(run: RunDir, passages: int) -> None:
    about = {"format": 1, "fingerprint": "1d" * 16, "complete": True, "passages": passages, "dims": 7168}
    stored = {"wanted_codecs": ["int8"], "codecs": {"int8": {"files": 1, "bytes": passages * 7200}}}
    write_json(run.index("headwater") / "index.json", about | stored | {"loss": "log_odds", "step": STEPS})


def write_evaluation(
    run: RunDir, probes: list[dict], passages: WrittenPassages, generator: np.random.Generator
) -> None:
    queries = [as_query(probe, number) for number, probe in enumerate(probes)]
    signal = {"headwater": 4.6, "trackstar": 4.3, "gradient_cosine": 3.5, "gradient_dot": 2.6, "bm25": 9.0}
    rankings: dict[str, list[Ranking]] = {}
    for method, strength in signal.items():
        rows = []
        for query in queries:
            scores_N = generator.normal(size=len(passages))
            scores_N[passages.numbers(query.gold)] += strength + generator.normal(
                scale=0.6 if method != "bm25" else 0.1
            )
            rows.append(rank_by_scores(query, scores_N, passages))
        rankings[method] = rows
    rankings["random"] = RandomRanking().rank(queries, passages)
    rises = {
        "headwater": 0.046,
        "trackstar": 0.049,
        "gradient_cosine": 0.034,
        "gradient_dot": 0.02,
        "bm25": 0.032,
        "random": -0.001,
        "gold": 0.06,
    }
    tail = {name: generator.normal(rise, 0.03, size=len(queries)) for name, rise in rises.items()}
    for method, rows in rankings.items():
        write_rankings(run.evaluation / f"{method}.jsonl", rows)
    write_json(run.evaluation / "table.json", build_table(rankings, tail, resamples=1000))


def write_trace(
    run: RunDir,
    probes: list[dict],
    texts: dict[str, str],
    schedule: list[tuple[int, str]],
    prob_SP: np.ndarray,
    generator: np.random.Generator,
) -> None:
    seen: dict[str, list[int]] = {}
    for step, name in schedule:
        seen.setdefault(name, []).append(step + 1)
    others = list(texts)
    rows = []
    for probe in probes:
        ids = [*probe["gold"], *(str(name) for name in generator.choice(others, 7, replace=False))]
        ids = list(dict.fromkeys(ids))
        order = [
            ids[number]
            for number in np.argsort(-np.linspace(1, 0.4, len(ids)) + generator.normal(scale=0.12, size=len(ids)))
        ]
        scores = np.sort(generator.uniform(0.08, 0.5, len(order)))[::-1]
        low = [str(name) for name in generator.choice(others, 5, replace=False)]
        rows.append(
            {
                "example_id": probe["example_id"],
                "query_set": "probes",
                "inputs_plaintext": probe["prompt"],
                "targets_plaintext": probe["target"],
                "proponents": [texts[name] for name in order],
                "proponent_ids": order,
                "proponent_scores": scores.round(5).tolist(),
                "opponents": [texts[name] for name in low],
                "opponent_ids": low,
                "opponent_scores": np.sort(generator.uniform(-0.3, -0.05, len(low))).round(5).tolist(),
                "fact_id": probe["fact_id"],
                "relation": probe["relation"],
                "proponent_correct": [name in probe["gold"] for name in order],
                "proponent_seen_steps": [seen[name] for name in order],
                "opponent_seen_steps": [seen[name] for name in low],
            }
        )
    lines(run.trace("headwater"), rows)


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
