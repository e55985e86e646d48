"""A Hugging Face model from the command line: index, verify, trace; kill -9 on the way; and what is broken."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from headwater.attribution.index.reader import open_index
from headwater.train.artifacts import read_json

from ..jobs import REFUSED, Job, call, wait_for
from .killed_builds import SECONDS, build, command, failing

SMALL = ["corpus.max_tokens=40", "projection.dims=4", "shard_rows=48", "batch_tokens=512"]
WORDS = ["river", "stone", "harbor", "winter", "garden", "bridge", "letter", "morning", "copper", "island", "candle"]


def headwater(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process that has imported everything."""
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        status = call(command, list(arguments), directory, ranks=1, log=here / "log")
        return subprocess.CompletedProcess(arguments, status, *((here / name).read_text() for name in ("out", "err")))


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Path:
    return tiny_llama


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of 3 to 40 words."""
    generator, path = random.Random(5), tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    lines = []
    for number in range(60):
        text = " ".join(generator.choice(WORDS) for _ in range(generator.randint(3, 40)))
        lines.append(json.dumps({"id": f"d{number}", "text": text}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def built(model: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    config = "index/hf"
    arguments = ["index", config, f"model.path={model}", f"corpus.path={documents}", f"out={out}", *SMALL]
    done = headwater(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith(str(out))
    return out


@pytest.mark.slow
def test_every_document_is_in_the_index_once(built: Path, documents: Path) -> None:
    checked = headwater("index", "verify", str(built))
    assert checked.returncode == 0, checked.stderr
    assert "is whole" in checked.stdout
    index = open_index(built)
    names = [json.loads(line)["id"] for line in documents.read_text().splitlines()]
    assert {name.split("#")[0] for name in index.passage_ids} == set(names)
    assert len(set(index.passage_ids)) == len(index.passage_ids) > 60, "long documents are several passages"
    assert all(name.split("#")[1].isdecimal() for name in index.passage_ids)


@pytest.mark.slow
def test_methods_are_held_against_each_other_on_it(built: Path, documents: Path, tmp_path: Path) -> None:
    """Golds are documents; what the trace found comes back as results of another program."""
    given = [json.loads(line) for line in documents.read_text().splitlines()]
    short = [(each["id"], each["text"].rsplit(" ", 1)) for each in sorted(given, key=lambda e: len(e["text"]))[:3]]
    records = [
        {"example_id": name, "prompt": prompt, "target": target, "gold": [name]} for name, (prompt, target) in short
    ]
    queries, traced = tmp_path / "queries.jsonl", tmp_path / "traced.jsonl"
    queries.write_text("\n".join(map(json.dumps, records)))
    done = headwater("trace", f"index={built}", f"queries={queries}", f"out={traced}", "top_k=100")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "evaluation"
    done = headwater(
        *("evaluate", f"index={built}", f"queries={queries}", f"out={out}", "baselines=[tfidf,ngram,random]"),
        f"results.again={traced}",
    )
    assert done.returncode == 0, done.stderr
    methods = json.loads((out / "table.json").read_text())["methods"]
    assert set(methods) == {
        "headwater", "corpus", "gradient_cosine", "gradient_dot", "tfidf", "ngram", "random", "again",
    }  # fmt: skip
    assert methods["again"]["mrr"] == methods["headwater"]["mrr"]
    assert min(methods[name]["mrr"][0] for name in ("headwater", "tfidf", "ngram")) > methods["random"]["mrr"][0]


@pytest.mark.slow
def test_traces_from_the_command_line(built: Path, tmp_path: Path) -> None:
    trace = ["trace", "trace/default", f"index={built}", "top_k=3", "bottom_k=1"]
    one = headwater(*trace, "--prompt", "The river runs to the", "--target", "harbor", "--against", "garden")
    assert one.returncode == 0, one.stderr[-3000:]
    assert one.stdout.count("#") == 4, "three proponents and one opponent, by their ids"
    lines: list[dict[str, Any]] = [
        {"fact_id": "published", "prompt0": "The stone lies in the", "entity1": "garden", "entity0": "x"},
        {"example_id": "plain", "prompt": "The stone lies in the", "target": "garden"},
        {"example_id": "other", "prompt": "A candle in the", "target": "window"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "t.jsonl"
    many = headwater(*trace, f"queries={tmp_path / 'q.jsonl'}", f"out={out}", "tokens=true", "duplicates=collapse")
    assert many.returncode == 0, many.stderr[-3000:]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["example_id"] for record in records] == ["published", "plain", "other"]
    assert records[0]["proponent_ids"] == records[1]["proponent_ids"], "two formats of one question"
    assert records[0]["proponent_scores"] == pytest.approx(records[1]["proponent_scores"])
    assert records[2]["proponent_ids"] != records[1]["proponent_ids"]
    for record in records:
        assert len(record["proponents"]) == len(record["proponent_duplicates"]) == 3
        for score, parts in zip(record["proponent_scores"], record["proponent_token_scores"], strict=True):
            assert sum(parts) == pytest.approx(score, abs=1e-5)


@pytest.mark.slow
def test_a_query_beyond_the_context_is_one_error(built: Path, tmp_path: Path) -> None:
    trace = ["trace", "trace/default", f"index={built}", f"out={tmp_path / 't.jsonl'}"]
    (tmp_path / "q.jsonl").write_text(
        '{"example_id": "short", "prompt": "a", "target": "b"}\n'
        + json.dumps({"example_id": "endless", "prompt": "river " * 40, "target": "b"})
    )
    done = headwater(*trace, f"queries={tmp_path / 'q.jsonl'}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "query endless is longer than the model's context" in done.stderr
    assert "at most 64" in done.stderr
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.slow
def test_a_gradient_that_is_not_a_number_names_its_passage(model: Path, documents: Path, tmp_path: Path) -> None:
    """One token's embedding is NaN: the passages that hold it are named, and no other."""
    import transformers

    broken = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        broken.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("z")] = torch.nan
        broken.config.tie_word_embeddings = False
    broken.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    corpus = tmp_path / "docs.jsonl"
    corpus.write_text(documents.read_text() + json.dumps({"id": "lazy", "text": "a lazy river and a stone bridge"}))
    arguments = [f"model.path={tmp_path / 'model'}", f"corpus.path={corpus}", f"out={tmp_path / 'index'}"]
    done = headwater("index", "index/hf", *arguments, *SMALL)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "1 of the gradient rows hold NaN or infinity" in done.stderr
    assert "passages lazy#0" in done.stderr


@pytest.mark.slow
def test_killed_builds_end_with_the_same_bytes(model: Path, documents: Path, tmp_path: Path) -> None:
    """Begun again and again, on one rank and on two in turn, and killed before or after its next shard; the last build
    comes to its end while one rank is slow."""
    arguments = ["index/hf", f"model.path={model}", f"corpus.path={documents}", *SMALL]
    whole, log, moments = tmp_path / "whole", tmp_path / "log", random.Random(0)
    assert call(build, [*arguments, f"out={whole}"], 1, ranks=1, log=log) == 0, log.read_text()
    expected = files_of(whole)
    assert sum(name.startswith("rows-") for name in expected) > 3
    for ranks in (1, 2):
        out = tmp_path / f"killed-{ranks}"
        for turn in range(3 * ranks - 1):
            job = Job(build, [*arguments, f"out={out}"], ranks=1 + turn % 2, log=log)
            enough = shards_made(out) + turn % 2
            wait_for(lambda out=out, job=job, enough=enough: shards_made(out) >= enough or not job.running)
            time.sleep(moments.uniform(0, 0.9) * (SECONDS if turn % 2 else 2))
            job.signal(signal.SIGKILL)
            assert job.wait() == 0, log.read_text()  # no rank had ended by itself
            assert not (out / "index.json").exists() or not read_json(out / "index.json")["complete"]
        assert 0 < shards_made(out) < len(list(whole.glob("rows-*")))
        assert call(build, [*arguments, f"out={out}"], ranks - 1, ranks=ranks, log=log) == 0, log.read_text()
        assert files_of(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_write_says_so_once(model: Path, documents: Path, tmp_path: Path, rank: int) -> None:
    """The other's broken connection is a line, not a traceback; what is written stays, and is gone on with."""
    log, out = tmp_path / "log", tmp_path / "index"
    arguments = ["index/hf", f"model.path={model}", f"corpus.path={documents}", f"out={out}", *SMALL]
    assert call(failing, arguments, rank, ranks=2, log=log) == REFUSED
    said = log.read_text()
    assert said.count("error: ") == 1, said
    assert "No space left on device" in said
    assert "Traceback" not in said, said
    assert call(failing, arguments, 1, ranks=1, log=log) == 0, log.read_text()


def shards_made(out: Path) -> int:
    return len(list(out.glob("rows-*.json")))


def files_of(directory: Path) -> dict[str, bytes]:
    """The bytes of every file but locks."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }
