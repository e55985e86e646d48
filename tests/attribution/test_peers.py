"""Our metrics give what the classes of quanda and dattri give, on the same scores; our counts are infini-gram's.

They are installed without their dependencies (tests/peers.txt), so that of each only the files it needs are read.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from headwater.attribution.evaluation.baselines.ngram import CorpusWords
from headwater.attribution.evaluation.lds import linear_datamodeling_scores
from headwater.attribution.evaluation.metrics import hit, reciprocal_rank
from headwater.attribution.evaluation.tail_patch import TailPatch, tail_patch
from headwater.attribution.models.base import Example
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.train import parallel
from headwater.train.artifacts import RunDir
from headwater.train.checkpoint import Checkpoint, model_settings
from headwater.train.compat import declare_torchvision_operators
from headwater.train.huggingface.export import export_llama
from headwater.train.huggingface.names import to_llama
from headwater.train.stream.passages import open_passages

from .written import WrittenPassages


def file_of(package: str, module: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of an installed package; the packages that it lies in are not run."""
    root, parts = Path(str(distribution(package).locate_file(""))), module.split(".")
    for depth in range(1, len(parts)):
        name = ".".join(parts[:depth])
        empty = types.ModuleType(name)
        empty.__path__ = [str(root.joinpath(*parts[:depth]))]
        monkeypatch.setitem(sys.modules, name, empty)
    for name in ("quanda.utils", "datasets"):  # what quanda's metrics import and these do not use
        if package == "quanda":
            stand_in = types.ModuleType(name)
            stand_in.__path__ = [str(root.joinpath(*name.split(".")))]  # type: ignore[attr-defined]
            stand_in.Dataset = object  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.delitem(sys.modules, module, raising=False)
    return importlib.import_module(module)


def problem(queries: int = 23, passages: int = 61) -> tuple[np.ndarray, np.ndarray]:
    """Scores without ties, and one to five golds a query."""
    rng = np.random.default_rng(3)
    scores_QN = rng.normal(size=(queries, passages))
    gold_QN = np.zeros((queries, passages), dtype=bool)
    for row in gold_QN:
        row[rng.choice(passages, rng.integers(1, 6), replace=False)] = True
    return scores_QN, gold_QN


def gold_ranks(scores_QN: np.ndarray, gold_QN: np.ndarray) -> list[list[int]]:
    ranks_QN = np.argsort(np.argsort(-scores_QN, axis=1), axis=1)
    return [sorted(ranks[gold].tolist()) for ranks, gold in zip(ranks_QN, gold_QN, strict=True)]


def quandas(metric: Any, scores_QN: np.ndarray, gold_QN: np.ndarray, **options: Any) -> float:
    made = metric(torch.nn.Linear(1, 1), [0], **options)
    made.update(torch.from_numpy(scores_QN), torch.from_numpy(gold_QN))
    return float(made.compute()["score"])


def test_reciprocal_ranks_are_quandas(monkeypatch: pytest.MonkeyPatch):
    metric = file_of("quanda", "quanda.metrics.downstream_eval.mrr", monkeypatch).MRRMetric
    scores_QN, gold_QN = problem()
    ours = reciprocal_rank(gold_ranks(scores_QN, gold_QN)).mean()
    assert ours == pytest.approx(quandas(metric, scores_QN, gold_QN), abs=1e-6)
    assert ours != pytest.approx(quandas(metric, -scores_QN, gold_QN), abs=1e-3)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_what_quanda_calls_recall_is_our_hit(k: int, monkeypatch: pytest.MonkeyPatch):
    metric = file_of("quanda", "quanda.metrics.downstream_eval.recall_at_k", monkeypatch).RecallAtKMetric
    scores_QN, gold_QN = problem()
    assert hit(gold_ranks(scores_QN, gold_QN), k).mean() == pytest.approx(
        quandas(metric, scores_QN, gold_QN, k=k), abs=1e-6
    )


def test_linear_datamodeling_scores_are_dattris(monkeypatch: pytest.MonkeyPatch):
    lds = file_of("dattri", "dattri.metric.metrics", monkeypatch).lds
    rng, (scores_QN, _) = np.random.default_rng(5), problem()
    inside_MN = np.stack([rng.permutation(61) < 30 for _ in range(17)])
    outputs_MQ = inside_MN @ scores_QN.T + rng.normal(0, 4, (17, 23))
    chosen = torch.from_numpy(np.stack([np.flatnonzero(row) for row in inside_MN]))
    theirs, _ = lds(torch.from_numpy(scores_QN.T), (torch.from_numpy(outputs_MQ), chosen))
    ours_Q = linear_datamodeling_scores(scores_QN, inside_MN, outputs_MQ)
    np.testing.assert_allclose(ours_Q, theirs.numpy(), atol=1e-6)
    assert 0.1 < ours_Q.mean() < 0.9


def test_runs_of_words_are_counted_as_infini_gram_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Its suffix array over our numbers of words. What is no run of ours is in a longer one with as many places."""
    engine = pytest.importorskip("infini_gram.engine", reason="it has no wheel for this machine")
    indexing = importlib.import_module("infini_gram.indexing")
    draw = np.random.default_rng(1)
    texts = [" ".join(f"w{n}" for n in draw.integers(0, 9, size)) for size in draw.integers(0, 30, 61)]
    words = CorpusWords(WrittenPassages([f"d{n}#0" for n in range(61)], texts))
    passages = np.split(words.words_T, words.starts_N[1:])
    # Its documents have their mark in front, ours END behind.
    documents = [b"\xff\xff" + passage[:-1].astype("<u2").tobytes() for passage in passages]
    (tmp_path / "tokenized.0").write_bytes(b"".join(documents))
    sizes = np.array([len(each) for each in documents], dtype=np.uint64)
    (np.cumsum(sizes, dtype=np.uint64) - sizes).tofile(tmp_path / "offset.0")
    monkeypatch.chdir(tmp_path)  # it changes to a directory of its own
    where = {"save_dir": str(tmp_path), "temp_dir": str(tmp_path)}
    indexing.build_sa(SimpleNamespace(worker_id=0, shards=1, workers=1, cpus=1, mem=1, token_width=2, **where))
    theirs = engine.InfiniGramEngine(index_dir=str(tmp_path), eos_token_id=65534, vocab_size=65535)
    asked_M = words.numbered(f"{texts[8]} {texts[3]} {texts[30]}")
    runs = {(run.start, run.stop): len(places) for run, places in words.runs(asked_M)}
    for first in range(len(asked_M)):
        for stop in range(first + 1, len(asked_M) + 1):
            count = theirs.find(input_ids=asked_M[first:stop].tolist())["cnt"]
            around = [n for (a, b), n in runs.items() if a <= first and stop <= b]
            assert count == max(around, default=0)
            assert runs.get((first, stop), count) == count
    assert len(runs) > 50


class SavedStep(torch.optim.Adam):
    """Adam from saved second moments, without a first, on clipped gradients: the step that our tail-patch makes."""

    def __init__(self, parameters: list[Any], lr: float, named: dict[str, Any], clip: float, **adam: Any):
        super().__init__(parameters, lr=lr, **adam)
        self.clip = clip
        for parameter, (moment, updates) in zip(parameters, named.values(), strict=True):
            self.state[parameter] = {
                "step": torch.tensor(float(updates)),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": moment.clone(),
            }

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], self.clip)
        return super().step(closure)


def moments_of(checkpoint: Checkpoint, llama: torch.nn.Module) -> dict[str, tuple[torch.Tensor, int]]:
    """The second moment of each of its parameters, in their order, and after how many updates."""
    moments: Any = SimpleNamespace(names=checkpoint.names, tensor=lambda _, name: checkpoint.tensor("exp_avg_sq", name))
    found = dict(to_llama(moments, model_settings(checkpoint)))
    return {name: (found[name], checkpoint.meta["updates"]) for name, _ in llama.named_parameters()}


def as_batch(prompts: list[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Prompts padded at the end, and their targets; -100 where there is none."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.int64)
    targets = torch.full_like(ids, -100)
    for row, prompt in enumerate(prompts):
        tokens = torch.from_numpy(prompt.tokens)
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        targets[row, prompt.target_start : len(tokens)] = tokens[prompt.target_start :]
    return {"input_ids": ids, "attention_mask": mask}, targets


@pytest.mark.parametrize("step", ["ours", "theirs"])
def test_tail_patch_is_quandas(step: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On an exported run: the rise of the whole target's probability, a product over its tokens, meaned over passages.

    The class takes the exponential of log-probabilities, which are held against ours too: to 1e-6 of what they are, a
    rounding or two of float32. Theirs is AdamW's first step: ours from moments of nothing, unclipped.
    """
    declare_torchvision_operators()
    from transformers import LlamaForCausalLM

    metric = file_of("quanda", "quanda.metrics.downstream_eval.tail_patch", monkeypatch).TailPatchMetric
    checkpoint = export_llama(tiny_run, tmp_path / "llama")
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "llama", local_files_only=True).eval()
    passages = open_passages(RunDir.at(tiny_run))
    tokens = {number: passages.tokens(number).astype(np.int64) for number in (3, 41, 7, 200, 5)}
    prompts = [Example(tokens[5][:12], 11), Example(tokens[200][:31], 29), Example(tokens[3][:7], 6)]
    lists = [[3, 41], [41, 7], [200, 3]]

    patch = TailPatch(HeadwaterModel(checkpoint, parallel.start(threads=1)), lr=1e-3)
    adam: dict[str, Any] = {"betas": (0.0, patch.optimizer["beta2"]), "eps": patch.optimizer["eps"]}
    options = {
        "optimizer_class": SavedStep,
        "optimizer_kwargs": {"named": moments_of(checkpoint, llama), "clip": patch.optimizer["clip"], **adam},
    }
    if step == "theirs":
        patch.second.zero_()
        patch.step, patch.optimizer = 1, {"clip": 0.0, "beta2": 0.999, "eps": 1e-8}
        options = {"optimizer_kwargs": {"weight_decay": 0.0}}
    try:
        examples = {number: Example(each) for number, each in tokens.items()}
        found = tail_patch(patch, prompts, {"same": lists, "other": [lists[1], lists[2], lists[0]]}, examples)
    finally:
        parallel.stop()

    train = {n: {"input_ids": torch.from_numpy(each), "labels": torch.from_numpy(each)} for n, each in tokens.items()}
    made = metric(llama, train, k=2, learning_rate=1e-3, tokenizer_name=str(tmp_path / "llama"), **options)
    said: list[float] = []
    measure = made._compute_log_prob
    made._compute_log_prob = lambda *given: said.extend((got := measure(*given)).tolist()) or got
    scores_QN = torch.zeros(3, 201)
    for row, numbers in zip(scores_QN, lists, strict=True):
        row[numbers] = 1.0
    made.update(scores_QN, *as_batch(prompts))
    rise_Q = made._per_sample_scores().numpy()
    before_Q = np.array(said[:3])
    log_rise_Q = np.reshape(said[3:], (3, 2)).mean(axis=1) - before_Q
    near_Q = 1e-6 * np.abs(before_Q)
    assert (np.abs(found.log_probability["same"] - log_rise_Q) < near_Q).all()
    assert (np.abs(found.probability["same"] - rise_Q) < near_Q * np.exp(before_Q)).all()
    assert np.abs(found.log_probability["other"] - log_rise_Q).max() > 1e-2, "other passages, other rises"
    assert np.abs(found.log_probability["same"] + log_rise_Q).max() > 1e-2, "the sign counts"
