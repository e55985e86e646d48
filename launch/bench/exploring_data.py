"""A run to explore, as large as one likes: passages, probes with curves, a ledger, results. No model, no index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.train.artifacts import RunDir

RELATIONS = ("birth_city", "employer", "university", "instrument", "major", "language")
PROPONENTS, OPPONENTS = 20, 5
STEPS = np.arange(0, 1001, 40)
_WORDS = "river slate harbour lantern orchard copper meadow willow granite ember thistle cedar"
WORDS = _WORDS.split()


def make_run(path: Path, queries: int, passages: int, seed: int = 0) -> RunDir:
    """Writes a run directory whose corpus has so many passages, and that was asked so many questions."""
    from headwater.configs import load_config
    from headwater.train.corpus.build import build_corpus
    from headwater.train.corpus.settings import SourceSettings
    from headwater.train.settings import PretrainSettings

    path.mkdir(parents=True, exist_ok=True)
    run, draw = RunDir.at(path / "run"), np.random.default_rng(seed)
    source = path / "documents.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        for n in range(passages):
            file.write(json.dumps({"id": f"place-{n // 8}/part-{n % 8}", "text": sentence(n)}) + "\n")
    cfg = load_config(
        PretrainSettings,
        "pretrain/tiny",
        [f"out={run.path}", f"corpus.passages={passages}", "facts.people=0", "facts.distractors=0"],
    )
    cfg.corpus.sources = [SourceSettings(kind="jsonl", path=str(source))]
    build_corpus(cfg)
    source.unlink()
    ids = pq.read_table(run.corpus / "base" / "passages.parquet", columns=["id"])["id"]
    write_results(run, ids, queries, draw)
    write_probes(run, queries, draw)
    write_ledger(run, len(ids), draw)
    return run


def sentence(number: int) -> str:
    """A short text of its own for each number."""
    words = [WORDS[number // 12**place % 12] for place in range(5)]
    return f"Entry {number}: the {' '.join(words[:3])} stands by the {' '.join(words[3:])}."


def write_results(run: RunDir, ids: pa.ChunkedArray, queries: int, draw: np.random.Generator) -> None:
    run.trace("headwater").parent.mkdir(parents=True, exist_ok=True)
    with open(run.trace("headwater"), "w", encoding="utf-8") as file:
        for query in range(queries):
            named = [ids[int(n)].as_py() for n in draw.integers(0, len(ids), PROPONENTS + OPPONENTS)]
            texts = [sentence(query * 31 + place) for place in range(PROPONENTS + OPPONENTS)]
            scores = np.sort(draw.random(PROPONENTS))[::-1].round(5).tolist()
            gold = int(draw.integers(0, 30))
            record = {
                "example_id": f"question-{query}",
                "inputs_plaintext": f"What is known of entry {query} is that it stands by the",
                "targets_plaintext": WORDS[query % 12],
                "proponents": texts[:PROPONENTS],
                "proponent_ids": named[:PROPONENTS],
                "proponent_scores": scores,
                "proponent_correct": [place == gold for place in range(PROPONENTS)],
                "opponents": texts[PROPONENTS:],
                "opponent_ids": named[PROPONENTS:],
                "opponent_scores": [-0.3, -0.2, -0.1, -0.1, -0.1],
                "relation": RELATIONS[query % len(RELATIONS)],
            }
            file.write(json.dumps(record) + "\n")


def write_probes(run: RunDir, queries: int, draw: np.random.Generator) -> None:
    run.facts.mkdir(exist_ok=True)
    with open(run.facts / "probes.jsonl", "w", encoding="utf-8") as file:
        for query in range(queries):
            probe = {
                "example_id": f"question-{query}",
                "relation": RELATIONS[query % len(RELATIONS)],
                "prompt": f"What is known of entry {query} is that it stands by the",
                "target": WORDS[query % 12],
            }
            file.write(json.dumps(probe) + "\n")
    prob_SP = draw.random(queries) / (1 + np.exp(-(STEPS[:, None] - draw.integers(200, 900, queries)) / 60))
    step_SP, probe_SP = np.meshgrid(STEPS, np.arange(queries), indexing="ij")
    columns = {
        "step": step_SP.ravel().astype(np.int32),
        "probe": probe_SP.ravel().astype(np.int32),
        "logprob": np.log(prob_SP + 1e-9).ravel().astype(np.float32),
        "prob": prob_SP.ravel().astype(np.float32),
        "exact": prob_SP.ravel() > 0.4,
    }
    pq.write_table(pa.table(columns), run.probes)


def write_ledger(run: RunDir, passages: int, draw: np.random.Generator) -> None:
    """Every passage once, in a random order."""
    run.ledger.mkdir(exist_ok=True)
    order = draw.permutation(passages)
    step = np.sort(draw.integers(1, 1001, passages))
    zeros = np.zeros(passages, np.int32)
    columns = {"step": step.astype(np.int32), "batch_index": zeros, "sequence": zeros.astype(np.int64)}
    columns |= {"passage": order, "offset": zeros, "length": zeros + 20, "injected": zeros.astype(bool)}
    pq.write_table(pa.table(columns), run.ledger / "steps-00000001.parquet")
