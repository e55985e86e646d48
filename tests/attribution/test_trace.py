"""From a run to an index, from an index to traced queries, and the errors in between."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headwater.attribution import Attributor, open_index, trace
from headwater.attribution.evaluation.tail_patch import TailPatch, tail_patch
from headwater.attribution.index.build import build_index
from headwater.attribution.index.manifest import made_from
from headwater.attribution.index.windows import bytes_per_passage
from headwater.attribution.models.base import Example
from headwater.attribution.models.headwater import HeadwaterModel
from headwater.attribution.models.opening import open_model
from headwater.attribution.rows.collector import GradientCollector, collect
from headwater.attribution.rows.layout import RowLayout
from headwater.attribution.settings import (
    CurvatureSettings,
    IndexSettings,
    ProjectionSettings,
    TracedModelSettings,
    TraceSettings,
)
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.attribution.tracing.run import run_trace
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
from headwater.train import parallel
from headwater.train.artifacts import RunDir, fingerprint, read_json, write_json
from headwater.train.checkpoint import open_checkpoint
from headwater.train.stream.passages import open_passages

from ..jobs import Job, wait_for


def index_settings(run: Path, name: str, **changes: object) -> IndexSettings:
    settings = IndexSettings(
        name=name,
        model=TracedModelSettings(run=str(run)),
        correction="adafactor",
        projection=ProjectionSettings(dims=6),
        codecs=["fp32"],
        shard_rows=128,
    )
    for key, value in changes.items():
        setattr(settings, key, value)
    return settings


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with an index of its last checkpoint."""
    copy = tmp_path_factory.mktemp("traced") / "run"
    shutil.copytree(tiny_run, copy)
    build_index(index_settings(copy, "headwater"))
    return copy


@pytest.fixture(scope="module")
def traced(run: Path) -> list[dict[str, object]]:
    settings = TraceSettings(
        index=str(run / "index/headwater"), queries=str(run / "facts/probes.jsonl"), out=str(run / "traces/t.jsonl")
    )
    return run_trace(settings)


def test_every_passage_has_one_row(run: Path) -> None:
    index, passages = open_index(run / "index/headwater"), open_passages(RunDir.at(run))
    assert index.complete
    assert index.passage_ids == passages.ids(0, len(passages))
    assert len(set(index.passage_ids)) == len(passages) > 400
    injected = [name for name in index.passage_ids if name.startswith("person/")]
    assert len(injected) == passages.corpora[1].passages


def test_rows_are_the_whitened_gradients(run: Path) -> None:
    """Row by row: gradients made alone, at the same checkpoint, through the stored whitening."""
    index, passages = open_index(run / "index/headwater"), open_passages(RunDir.at(run))
    world = parallel.start(threads=1)
    model = open_model(TracedModelSettings(run=str(run)), world)
    collector = GradientCollector(model, ProjectionSettings(dims=6), "adafactor", "log_odds")
    numbers = [0, 127, 128, len(passages) - 1]
    raw = collect(collector, [Example(passages.tokens(n).astype(np.int64)) for n in numbers], 1)
    parallel.stop()
    expected = index.whitening.apply(raw)
    got = torch.cat([index.rows(n, n + 1) for n in numbers])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_results_have_the_published_fields(run: Path, traced: list[dict[str, object]]) -> None:
    written = [json.loads(line) for line in (run / "traces/t.jsonl").read_text().splitlines()]
    assert written == traced
    probes = [json.loads(line) for line in (run / "facts/probes.jsonl").read_text().splitlines()]
    assert [r["example_id"] for r in traced] == [p["example_id"] for p in probes]
    fields = [
        "example_id",
        "query_set",
        "inputs_plaintext",
        "targets_plaintext",
        "proponents",
        "proponent_ids",
        "proponent_scores",
    ]
    for record in traced:
        assert all(
            name in record
            for name in [*fields, "proponent_scores", "opponents", "opponent_ids", "opponent_scores", "fact_id"]
        )
        scores = record["proponent_scores"]
        assert isinstance(scores, list)
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 20
        assert max(scores) <= 1.0 + 1e-5


def test_seen_steps_are_the_ledgers(run: Path, traced: list[dict[str, object]]) -> None:
    ledger = pq.read_table(sorted((run / "ledger").glob("*.parquet"))[0]).to_pylist()
    passages = open_passages(RunDir.at(run))
    for record in traced[:3]:
        names, steps = record["proponent_ids"], record["proponent_seen_steps"]
        assert isinstance(names, list)
        assert isinstance(steps, list)
        for name, seen in zip(names, steps, strict=True):
            number = passages.number_of(name)
            assert seen == sorted({row["step"] for row in ledger if row["passage"] == number})


def test_one_question_from_python(run: Path) -> None:
    found = trace(run / "index/headwater", [("The capital is", "Paris")], top_k=3)
    assert len(found[0]["proponents"]) == 3
    contrast = trace(run / "index/headwater", [Query("c", "The capital is", "Paris", against="Rome")], top_k=3)
    assert contrast[0]["proponent_scores"] != found[0]["proponent_scores"]


@pytest.mark.slow
def test_killed_build_goes_on_to_the_same_bytes(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    settings, directory = index_settings(copy, "headwater"), copy / "index/headwater"
    job = Job(build_index, settings, log=tmp_path / "log")
    wait_for(lambda: any(directory.glob("rows-*.json")) or not job.running)
    job.signal(signal.SIGKILL)
    job.wait()
    with pytest.warns(UserWarning, match="incomplete"):
        assert not open_index(directory).complete
    shards = sorted(path.stem for path in directory.glob("rows-*.json"))
    made = {path: path.stat().st_mtime_ns for name in shards for path in directory.glob(f"{name}.*.safetensors")}
    build_index(settings)
    assert all(path.stat().st_mtime_ns == time for path, time in made.items()), "made again"
    before = {path.name: path.read_bytes() for path in (run / "index/headwater").glob("rows-*")}
    after = {path.name: path.read_bytes() for path in directory.glob("rows-*")}
    assert 0 < len(made) < len(before)
    assert after == before


def test_another_checkpoint_is_refused(run: Path) -> None:
    manifest_path = run / "index/headwater/index.json"
    manifest = read_json(manifest_path)
    changed = {**manifest, "model": {**manifest["model"], "step": 6}}
    write_json(manifest_path, {**changed, "fingerprint": fingerprint(made_from(changed))})
    try:
        with pytest.raises(MismatchError, match="other weights"):
            trace(run / "index/headwater", [("a", "b")])
    finally:
        write_json(manifest_path, manifest)


def test_another_setting_in_the_same_place_is_refused(run: Path) -> None:
    with pytest.raises(MismatchError, match="made from something else"):
        build_index(index_settings(run, "headwater", loss="cross_entropy"))


def test_truncated_shard_is_named(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(run / "index/headwater", copy)
    shard = next(copy.glob("rows-00001*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptError, match="rows-00001"):
        trace(copy, [("a", "b")])


def test_missing_inputs_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no checkpoint"):
        build_index(index_settings(tmp_path, "headwater"))
    with pytest.raises(MissingError):
        trace(tmp_path / "none", [("a", "b")])
    with pytest.raises(MissingError, match="no queries"):
        run_trace(TraceSettings(index=str(run / "index/headwater")))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("{", "not a query"), ('{"prompt": "x"}', "not a query"), ('{"prompt": "x", "target": " "}', "not a query")],
)
def test_bad_queries_are_named_by_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"prompt": "a", "target": "b"}\n' + line + "\n")
    with pytest.raises(CorruptError, match=f"line 2 is {complaint}"):
        read_queries(path)


def test_published_queries_are_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"fact_id": "f1", "prompt0": "The capital of X is", "entity1": "Y"}) + "\n")
    assert read_queries(path) == [Query("f1", "The capital of X is", "Y")]


@pytest.fixture(scope="module")
def patched(run: Path) -> Iterator[TailPatch]:
    world = parallel.start(threads=1)
    yield TailPatch(HeadwaterModel(open_checkpoint(run / "checkpoints/step-00000012"), world), lr=3e-3)
    parallel.stop()


def test_tail_patch_is_adams_step_without_momentum(run: Path, patched: TailPatch) -> None:
    """Against torch's own Adam with beta1 = 0 and the checkpoint's second moment, on a fresh model."""
    passages = open_passages(RunDir.at(run))
    passage = Example(passages.tokens(3).astype(np.int64))
    prompt = Example(passages.tokens(5).astype(np.int64)[:12], target_start=9)
    rises = tail_patch(patched, [prompt], {"m": [[3]], "none": [[]]}, {3: passage})
    assert rises.probability["none"].tolist() == rises.log_probability["none"].tolist() == [0.0]

    assert patched.model.world is not None
    fresh = HeadwaterModel(patched.model.checkpoint, patched.model.world)
    reference = TailPatch(fresh)  # only for its probabilities; its weights are updated by torch below
    before = float(reference.log_probabilities([prompt])[0])
    named = dict(fresh.gpt.named_parameters())
    meta = fresh.checkpoint.meta["optimizer"]
    optimizer = torch.optim.Adam(named.values(), lr=3e-3, betas=(0.0, meta["beta2"]), eps=meta["eps"])
    for name, parameter in named.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(fresh.checkpoint.meta["updates"])),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": fresh.checkpoint.tensor("exp_avg_sq", name),
        }
    from headwater.attribution.models.headwater import pack

    batch, _ = pack([passage])
    (fresh.gpt.run(batch)[0] / (len(passage.tokens) - 1)).backward()
    torch.nn.utils.clip_grad_norm_(named.values(), meta["clip"])
    optimizer.step()
    after = float(reference.log_probabilities([prompt])[0])
    assert after != before
    assert rises.log_probability["m"][0] == pytest.approx(after - before, rel=1e-3)
    assert rises.probability["m"][0] == pytest.approx(np.exp(after) - np.exp(before), rel=1e-3)


def test_curvature_from_a_sample(run: Path) -> None:
    settings = index_settings(run, "sampled", curvature=CurvatureSettings(sample=50))
    build_index(settings)
    whole, sampled = open_index(run / "index/headwater"), open_index(run / "index/sampled")
    assert sampled.whitening.count == 50
    assert whole.whitening.count == len(whole.passage_ids)


def test_each_kind_of_curvature_whitens_the_same_rows(run: Path) -> None:
    """Rows of three indexes, each taken back through its own whitening, are the same raw gradients."""
    raw = []
    for kind in ("kronecker", "full", "none"):
        build_index(index_settings(run, kind, curvature=CurvatureSettings(kind=kind)))
        index = open_index(run / "index" / kind)
        assert index.manifest["curvature"]["kind"] == index.whitening.kind == kind
        raw.append(index.whitening.unapply(index.rows(0, 40)))
    for other in raw[:2]:
        torch.testing.assert_close(other, raw[2], rtol=1e-3, atol=1e-3 * float(raw[2].abs().max()))


def test_a_budget_takes_the_most_dimensions_that_fit(run: Path) -> None:
    build_index(index_settings(run, "budget", codecs=["sign", "fp32"], budget=500))
    index = open_index(run / "index/budget")
    stored = {codec: index.fields(codec, 0, 1) for codec in index.codecs}
    size = sum(value.nbytes for value in stored["sign"].values())
    dims = index.manifest["projection"]["dims"]
    assert 450 < size <= 500
    wider = RowLayout((span.name, dims + 1, dims + 1) for span in index.layout)
    assert bytes_per_passage(wider, "sign") > 500
    with pytest.raises(UserError, match="too small"):
        build_index(index_settings(run, "nothing", codecs=["sign"], budget=20))


def test_an_index_of_a_run_with_another_epsilon_is_asked_with_it(tiny_run: Path, tmp_path: Path) -> None:
    """Rows of a checkpoint that notes a large epsilon are divided by it, in the index and afterwards."""
    raw = []
    for eps in (1e-8, 1e-2):
        run = tmp_path / f"{eps}"
        shutil.copytree(tiny_run, run)
        note = run / "checkpoints/step-00000012/checkpoint.json"
        meta = read_json(note)
        write_json(note, {**meta, "optimizer": {**meta["optimizer"], "eps": eps}})
        build_index(index_settings(run, "x", correction="adam", curvature=CurvatureSettings(kind="none")))
        index = open_index(run / "index/x")
        assert index.manifest.get("eps", 1e-8) == eps
        with Attributor.open(index.path) as attributor:
            made = attributor.rows([Example(attributor.passages.tokens(3).astype(np.int64))])
        torch.testing.assert_close(made, index.rows(3, 4), rtol=1e-3, atol=1e-4 * float(made.abs().max()))
        raw.append(made)
    assert float(raw[1].norm()) < 0.3 * float(raw[0].norm())
