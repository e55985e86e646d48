"""A run's records: the ledger against stream and schedule, runs that leave passages out, runs that stop early."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from headwater.configs import ConfigError, load_config
from headwater.train.artifacts import RunDir
from headwater.train.callbacks import ledger
from headwater.train.callbacks.ledger import Ledger
from headwater.train.callbacks.ledger_files import read_ledger
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.checkpoint import KINDS, newest
from headwater.train.facts.injection import read_schedule
from headwater.train.settings import PretrainSettings
from headwater.train.stream.passages import open_passages
from headwater.train.stream.stream import open_stream

from ..jobs import status, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(fresh: Callable[[], Path], config: Path) -> RunDir:
    """Ten updates; tests only read it."""
    run = RunDir.at(fresh())
    train([config, f"out={run.path}"], log=run.path / "log")
    return run


def visits(run: RunDir) -> list[tuple[int, int, int, bool]]:
    """(step, batch index, passage, injected) of every visit, in the ledger's order."""
    table = read_ledger(run.ledger)
    return list(zip(*(table[name].to_pylist() for name in ("step", "batch_index", "passage", "injected")), strict=True))


def test_the_ledger_proves_the_schedule(run):
    """Every injection that was compiled happened, at its step; an injection of batch t is in update t + 1."""
    passages, schedule = open_passages(run), read_schedule(run.facts / "schedule.parquet")
    compiled = Counter(zip(schedule.steps.tolist(), schedule.passage_ids, strict=True))
    assert len(compiled) > 5
    noted = Counter((step - 1, passages.ids(p, p + 1)[0]) for step, _, p, injected in visits(run) if injected)
    assert noted == compiled


def test_the_ledger_is_the_stream(run):
    settings = load_config(PretrainSettings, run.config)
    stream = open_stream(run, global_batch=settings.train.global_batch, seed=settings.seed)
    expected = []
    for step in range(10):
        for index, each in enumerate(stream.sequences(step, 0, settings.train.global_batch)):
            offsets = np.cumsum(each.lengths) - each.lengths
            for i in range(len(each.passages)):
                expected.append(
                    (step + 1, index, each.number, int(each.passages[i]), int(offsets[i]), int(each.lengths[i]))
                )
    table = read_ledger(run.ledger)
    assert table.schema.equals(ledger.SCHEMA)
    columns = [table[name].to_pylist() for name in ledger.SCHEMA.names[:6]]
    assert list(zip(*columns, strict=True)) == expected
    # Tokens with loss: all but each passage's first.
    lines = read_metrics(run.metrics)
    by_step = Counter()
    for step, *_, length in expected:
        by_step[step] += length - 1
    assert [line["tokens"] for line in lines] == np.cumsum([by_step[step] for step in range(1, 11)]).tolist()


def test_ledger_files_hold_a_fixed_number_of_steps(run, fresh, config, monkeypatch):
    """Flushed in other portions, and cut back on resume, the files are the same."""
    import numpy as np

    from headwater.train.callbacks.ledger import Ledger

    monkeypatch.setattr(ledger, "STEPS_PER_FILE", 4)
    table = read_ledger(run.ledger)
    entries = np.stack([np.asarray(table[name]).astype(np.int64) for name in ledger.SCHEMA.names], axis=1)

    class World:
        is_main, size = True, 1

    class Trainer:
        world = World()

    def write(directory: Path, portions: list[int], resume_at: int | None = None) -> dict[str, bytes]:
        callback, begin = Ledger(directory), 0
        for end in [*portions, 10]:
            if resume_at is not None and begin > resume_at:
                callback.start(Trainer, resume_at)
                begin, resume_at = resume_at, None
            callback._pending = [entries[(entries[:, 0] > begin) & (entries[:, 0] <= end)]]
            callback.flush(Trainer, end)
            begin = end
        return {str(file.relative_to(directory)): file.read_bytes() for file in sorted(directory.rglob("*.parquet"))}

    base = fresh()
    once = write(base / "a", [])
    whole = ["steps-00000001.parquet", "steps-00000005.parquet"]
    assert list(once) == [*(f"by-passage/{name}" for name in whole), *whole, "steps-00000009.parquet"]
    assert write(base / "b", [3, 4, 7]) == once
    assert write(base / "c", [6, 9], resume_at=3) == once
    for file in (base / "c/by-passage").iterdir():
        file.unlink()
    Ledger(base / "c").start(Trainer, 10)
    assert sorted(path.name for path in (base / "c/by-passage").iterdir()) == whole, "made for those that came without"
    assert write(base / "d", [5], resume_at=0) == once


def test_metrics_probes_and_provenance(run):
    lines = read_metrics(run.metrics)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_s", "data_s", "memory_bytes"} <= set(line)
    assert [line["step"] for line in lines if "probe_s" in line] == [1, 6]  # after the updates 0 and 5
    probes = pq.read_table(run.probes).to_pydict()
    count = len((run.facts / "probes.jsonl").read_text().splitlines())
    assert Counter(probes["step"]) == {0: count, 5: count, 10: count}
    assert probes["probe"] == list(range(count)) * 3
    np.testing.assert_array_less(np.array(probes["logprob"]), 0)
    assert (np.array(probes["prob"]) <= np.exp(np.array(probes["logprob"])) * (1 + 1e-5)).all()
    (start,) = json.loads(run.provenance.read_text())
    assert start["world_size"] == 1
    assert set(start["versions"]) >= {"torch", "megatron-core", "deepspeed", "mosaicml-streaming"}
    assert load_config(PretrainSettings, run.config).train.steps == 10


def test_excluded_passages_are_left_out_and_nothing_else_moves(run, fresh, config, tmp_path):
    passages = open_passages(run)
    seen = visits(run)
    base = next(p for step, _, p, injected in seen if step == 3 and not injected)
    injected = next(p for step, _, p, injected in seen if injected and step > 2)
    out = {base, injected}
    (tmp_path / "exclude.txt").write_text("\n".join(passages.ids(p, p + 1)[0] for p in sorted(out)) + "\n\n")
    without = RunDir.at(fresh())
    train([config, f"out={without.path}", f"train.exclude={tmp_path / 'exclude.txt'}"], log=tmp_path / "log")
    assert visits(without) == [visit for visit in seen if visit[2] not in out]
    first = min(step for step, _, p, _ in seen if p in out)
    ours, theirs = read_metrics(without.metrics), read_metrics(run.metrics)
    for line, other in zip(ours, theirs, strict=True):
        assert line["lr"] == other["lr"]
        assert (line["loss"] == other["loss"]) is (line["step"] < first)


def test_a_seed_of_the_weights_changes_the_weights_and_nothing_else(run, fresh, config, tmp_path):
    plain, ours, others = read_metrics(run.metrics), RunDir.at(fresh()), RunDir.at(fresh())
    train([config, f"out={ours.path}", "model.seed=3"], log=tmp_path / "log")  # what the run's own seed is
    train([config, f"out={others.path}", "model.seed=4"], log=tmp_path / "log")
    assert [line["loss"] for line in read_metrics(ours.metrics)] == [line["loss"] for line in plain]
    assert visits(others) == visits(run)
    for line, other in zip(read_metrics(others.metrics), plain, strict=True):
        assert (line["lr"], line["tokens"]) == (other["lr"], other["tokens"])
        assert line["loss"] != other["loss"]
    assert status([config, f"out={others.path}"], log=tmp_path / "refused") == 2
    assert "expected: model.seed = 4" in (tmp_path / "refused").read_text()


def test_an_unknown_excluded_passage_is_named(fresh, config, tmp_path):
    (tmp_path / "exclude.txt").write_text("nobody#0\n")
    run, log = RunDir.at(fresh()), tmp_path / "log"
    assert status([config, f"out={run.path}", f"train.exclude={tmp_path / 'exclude.txt'}"], log=log) == 2
    assert "nobody#0" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not run.metrics.exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [("parallel.pipeline=4", "2 processes cannot be shared out"), ("train.exclude=nowhere.txt", "nowhere.txt")],
)
def test_several_processes_say_what_is_wrong_once(override, named, fresh, config, tmp_path):
    run, log = RunDir.at(fresh()), tmp_path / "log"
    assert status([config, f"out={run.path}", override], ranks=2, log=log) == 2
    assert log.read_text().count("error: ") == 1
    assert named in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_hard_stop_leaves_the_schedule_alone(run, fresh, config, tmp_path):
    stopped = RunDir.at(fresh())
    train([config, f"out={stopped.path}", "train.hard_stop=6", "callbacks.metrics.every=4"], log=tmp_path / "log")
    lines = read_metrics(stopped.metrics)
    kept = [line for line in read_metrics(run.metrics) if line["step"] in (4, 6)]
    assert [line["step"] for line in lines] == [4, 6]
    for key in ("loss", "lr", "grad_norm", "tokens"):
        assert [line[key] for line in lines] == [line[key] for line in kept]
    assert newest(stopped.checkpoints).step == 6
    train([config, f"out={stopped.path}"], log=tmp_path / "log")
    assert newest(stopped.checkpoints).fingerprint == newest(run.checkpoints).fingerprint
    assert read_metrics(stopped.metrics)[-1]["tokens"] == read_metrics(run.metrics)[-1]["tokens"]


def test_bf16_without_zero_is_refused_where_its_moments_would_be_lost(config):
    """DeepSpeed 7786: saved and loaded without ZeRO, the moments of bf16 are not what they were."""
    with pytest.raises(ConfigError, match=r"zero\.stage = 0: expected 1, 2 or 3 with bf16"):
        load_config(PretrainSettings, config, ["train.precision=bf16", "zero.stage=0"])


def test_bf16_trains_and_resumes_exactly(fresh, config, tmp_path):
    whole, broken = RunDir.at(fresh()), RunDir.at(fresh())
    bf16 = ["train.precision=bf16", "train.micro_batch=4"]
    train([config, f"out={whole.path}", *bf16], log=tmp_path / "log")
    for stop in ("train.hard_stop=4", "train.hard_stop=null"):
        train([config, f"out={broken.path}", *bf16, stop], log=tmp_path / "log")
    one, other = read_metrics(whole.metrics), read_metrics(broken.metrics)
    assert [line["loss"] for line in one] == [line["loss"] for line in other]
    assert one[-1]["loss"] < one[0]["loss"]
    ours, theirs = newest(broken.checkpoints), newest(whole.checkpoints)
    for kind in KINDS:
        assert all(ours.tensor(kind, name).equal(theirs.tensor(kind, name)) for name in theirs.names), kind
        assert any(theirs.tensor(kind, name).any() for name in theirs.names)


def test_a_ledger_written_before_is_read_and_gone_on_with(run, tmp_path):
    """Ledgers once called the batch index `row`."""
    table = read_ledger(run.ledger)
    before = table.rename_columns(["row" if name == "batch_index" else name for name in table.column_names])
    pq.write_table(before, tmp_path / "steps-00000001.parquet")
    assert read_ledger(tmp_path).equals(table)
    world = SimpleNamespace(is_main=True)
    Ledger(tmp_path).start(SimpleNamespace(world=world), 7)
    kept = pq.read_table(tmp_path / "steps-00000001.parquet")
    assert kept.equals(table.filter(pc.less_equal(table["step"], 7)))
    assert 0 < len(kept) < len(table)
