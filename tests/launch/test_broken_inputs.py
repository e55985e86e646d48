"""What is broken gets one clear error, exit status 2 and no traceback; every file stays as it was, none is added."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from headwater.train.artifacts import fingerprint_file

from .whole import headwater, tree

GO_ON = ["pretrain", "config.yaml", "out=run", "train.hard_stop=6"]
NEW = ["pretrain", "config.yaml", "out=new/run"]
BUILD = ["corpus", "config.yaml", "out=new/run"]


def refused(here: Path, arguments: list[str], named: list[str]) -> None:
    before = tree(here)
    status, said = headwater(*arguments)
    assert status == 2, said
    assert len(re.findall(r"^error: |Invalid value for", said, re.MULTILINE)) == 1, said
    assert "Traceback" not in said
    for fragment in named:
        assert fragment in said, said
    # What was expected, or what to do about it.
    assert re.search(r"expected|fix:|did you mean|Input should be", said), said
    after = tree(here)
    assert {path for path in {*before, *after} if before.get(path) != after.get(path)} == set()


def test_what_is_not_broken_goes_on(here: Path):
    """The comparison notices what a run writes."""
    before = tree(here)
    assert headwater(*GO_ON)[0] == 0
    after = tree(here)
    assert set(after) - set(before)
    assert after["run/metrics.jsonl"] != before["run/metrics.jsonl"]
    assert headwater("import", "hf", "again")[0] == 0
    assert headwater("corpus", "inspect", "run")[0] == 0


CONFIGURATIONS = {
    "unknown key": ("train.stpes=3", ["train.stpes", "did you mean train.steps?"]),
    "unknown section": ("paralel.tensor=2", ["paralel", "did you mean parallel"]),
    "wrong type": ("train.steps=many", ["train.steps = 'many'", "int"]),
    "section for a value": ("train=3", ["train = 3"]),
    "out of range": ("train.steps=0", ["train.steps = 0", "1"]),
    "not a number": ("optimizer.lr=nan", ["optimizer.lr"]),
    "bad choice": ("optimizer.schedule=cosin", ["optimizer.schedule = 'cosin'", "did you mean cosine?"]),
    "no value": ("train.steps", ["train.steps", "key=value"]),
    "heads and tensor": ("parallel.tensor=4", ["parallel.tensor = 4", "a divisor of model.kv_heads (2)"]),
    "width and heads": ("model.hidden=30", ["model.hidden = 30", "a multiple of heads (4)"]),
    "layers and stages": ("parallel.pipeline=3", ["parallel.pipeline = 3", "a divisor of model.layers (2)"]),
    "ZeRO and stages": ("parallel.pipeline=2 zero.stage=2", ["zero.stage = 2", "0 or 1 when parallel.pipeline"]),
    "ZeRO and bf16": ("train.precision=bf16 zero.stage=0", ["zero.stage = 0", "with bf16"]),
    "sequence without tensor": ("parallel.sequence=true", ["parallel.sequence = True", "parallel.tensor above 1"]),
    "world and tensor": ("parallel.tensor=2", ["1 process cannot be shared out", "a multiple of 2", "--nproc 2"]),
    "batch and micro-batch": ("train.micro_batch=3", ["train.global_batch = 4", "a multiple of micro_batch (3)"]),
    "passage and sequence": ("corpus.max_tokens=97", ["corpus.max_tokens = 97", "at most seq_len = 96"]),
    "vocabulary": ("corpus.tokenizer.vocab_size=400", ["corpus.tokenizer.vocab_size = 400", "try 448"]),
    "stop before the start": ("train.hard_stop=0", ["train.hard_stop = 0"]),
    "checkpoint before the start": ("checkpoint.steps=[3,-1]", ["checkpoint.steps.1 = -1"]),
    "schedule beyond the end": ("facts.schedule.start=6", ["facts.schedule.start = 6", "train.steps = 6"]),
    "schedule that ends first": ("facts.schedule.start=4 facts.schedule.stop=3", ["facts.schedule.stop = 3"]),
    "source without path": ('corpus.sources=[{"kind":"text"}]', ["corpus.sources.0.path", "text files"]),
    "two mistakes": ("train.steps=0 model.layers=x", ["2 problems", "train.steps", "model.layers"]),
    "unknown callback": ("callbacks.extra=[nowhere:thing]", ["callback nowhere:thing", "module:function"]),
    "no such start": ("model.init_from=nowhere", ["nowhere is not a checkpoint"]),
    "no list to exclude": ("train.exclude=nowhere.txt", ["nowhere.txt", "correct train.exclude"]),
    "run in a file": ("out=config.yaml/run", ["config.yaml is a file", "another `out`"]),
    "run is a file": ("out=texts.jsonl", ["texts.jsonl is a file", "another `out`"]),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_overrides(name: str, here: Path):
    overrides, named = CONFIGURATIONS[name]
    refused(here, [*NEW, *overrides.split()], named)


FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "indented wrongly": ("train:\n  steps: 3\n lr: 2\n", ["bad.yaml, line 3", "not valid YAML"]),
    "key twice": ("seed: 1\nseed: 2\n", ["bad.yaml, line 2", "duplicate key", "keep one"]),
    "not a mapping": ("- seed\n", ["bad.yaml is not a configuration", "`key: value` lines"]),
    "not text": (b"seed: \xff\xfe", ["bad.yaml is not a text file", "UTF-8"]),
    "its own base": ("base: bad.yaml\n", ["is its own base", "circle"]),
    "base is missing": ("base: nowhere.yaml\n", ["nowhere.yaml", "check the path"]),
    "section for a list": ("corpus: {sources: {kind: jsonl}}\n", ["corpus.sources", "list"]),
}


@pytest.mark.parametrize("name", FILES)
def test_configuration_files(name: str, here: Path):
    content, named = FILES[name]
    (here / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(here, ["pretrain", "bad.yaml", "out=new"], named)


def test_a_missing_configuration_file(here: Path):
    refused(here, ["pretrain", "pretrain/tinny", "out=new"], ["pretrain/tinny", "did you mean pretrain/tiny?"])


LINE = '{"id": "a", "text": "a river of stone and cloud"}\n'
SOURCES: dict[str, tuple[str, str | bytes, list[str]]] = {
    "line is not JSON": ("a.jsonl", LINE + '{"text": "cut', ["a.jsonl:2 is not JSON", "remove the line"]),
    "line is a list": ("a.jsonl", LINE + '["text"]\n', ["a.jsonl:2 is not a JSON object", "{...}"]),
    "no text field": ("a.jsonl", '{"content": "x"}\n', ["a.jsonl:1 has no text under 'text'", "content", "text_field"]),
    "text is a number": ("a.jsonl", LINE + '{"text": 7}\n', ["a.jsonl:2 has no text", "int"]),
    "not UTF-8": ("a.jsonl", LINE.encode() + b'{"text": "\xff"}\n', ["a.jsonl is not UTF-8", "convert it"]),
    "nothing in it": ("a.jsonl", "", ["the corpus has no text", "0 documents", "check path, kind and text_field"]),
    "only blanks": ("a.jsonl", '{"text": " "}\n', ["the corpus has no text"]),
    "one id twice": ("a.jsonl", LINE * 2, ["two documents have the id 'a'", "id_field"]),
    "cut gzip": ("a.jsonl.gz", gzip.compress(LINE.encode() * 99)[:-12], ["a.jsonl.gz cannot be read"]),
    "not gzip": ("a.jsonl.gz", LINE, ["a.jsonl.gz cannot be read beyond line 0", "restore the file"]),
    "not zstd": ("a.jsonl.zst", LINE, ["a.jsonl.zst cannot be read beyond line 0", "restore the file"]),
    "not Parquet": ("a.parquet", LINE, ["a.parquet is not readable Parquet", "restore the file"]),
    "text file not UTF-8": ("a.txt", b"\xff\xfe\x00", ["a.txt is not UTF-8 text", "convert it"]),
}
KINDS = {".jsonl": "jsonl", ".gz": "jsonl", ".zst": "jsonl", ".parquet": "parquet", ".txt": "text"}


@pytest.mark.parametrize("name", SOURCES)
def test_sources(name: str, here: Path):
    file, content, named = SOURCES[name]
    (here / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    source = f"corpus.sources=[{{kind: {KINDS[Path(file).suffix]}, path: {file}}}]"
    refused(here, [*BUILD, source, "facts.people=0"], named)


def test_other_sources(here: Path):
    def build(kind: str, path: str, *named: str) -> None:
        refused(here, [*BUILD, f"corpus.sources=[{{kind: {kind}, path: {path}}}]"], list(named))

    build("jsonl", "nowhere.jsonl", "corpus source 'nowhere.jsonl' (jsonl) has no files", "correct the source's path")
    (here / "folder").mkdir()
    build("parquet", "folder", "corpus source 'folder' (parquet) has no files", "ending in .parquet")
    build("huggingface", "folder", "no files", ".arrow")
    (here / "folder" / "a.arrow").write_text("no Arrow")
    build("huggingface", "folder", "no state.json")
    (here / "folder" / "state.json").write_text("{}")
    build("huggingface", "folder", "state.json is not the state of a saved dataset", "_data_files")
    (here / "folder" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}, {"filename": "b.arrow"}]}')
    build("huggingface", "folder", "a.arrow is not an Arrow stream")
    pq.write_table(pa.table({"body": ["x"]}), here / "a.parquet")
    build("parquet", "a.parquet", "a.parquet has no column 'text'", "the columns ['body']", "text_field")


def test_tokenizers(here: Path):
    bad = here / "bad.json"
    refused(here, [*BUILD, "corpus.tokenizer.path=nowhere.json"], ["tokenizer nowhere.json is missing"])
    bad.write_text('{"model": {}}')
    refused(here, [*BUILD, "corpus.tokenizer.path=bad.json"], ["bad.json is not a tokenizer.json", "restore it"])
    shutil.copy(here / "run" / "tokenizer.json", bad)
    refused(here, [*BUILD, "corpus.tokenizer.path=bad.json", "corpus.tokenizer.bos=<go>"], ["<go>", "tokenizer.bos"])
    # Its merges were learnt from other words, so the invented passages are longer than a passage may be.
    facts = ["corpus.max_tokens=24", "facts.passages=2", "corpus.tokenizer.path=bad.json"]
    refused(here, [*BUILD, *facts], ["invented passage", "at most corpus.max_tokens = 24", "raise corpus.max_tokens"])
    (here / "run" / "tokenizer.json").write_text("{}")
    refused(here, GO_ON, ["run/tokenizer.json is not a tokenizer.json"])


def test_corpora_built_before(here: Path):
    refused(here, [*BUILD, "corpus.prebuilt=nowhere"], ["nowhere is not a corpus", "correct corpus.prebuilt"])
    other = [*BUILD, "corpus.prebuilt=run/corpus/base", "corpus.seq_len=128"]
    refused(here, other, ["another seq_len", "set corpus.seq_len=96"])
    refused(here, [*GO_ON, "corpus.max_tokens=90"], ["another configuration (max_tokens)", "80", "90"])
    refused(here, [*GO_ON, "facts.people=3"], ["another configuration (facts"])
    (here / "texts.jsonl").write_text(LINE)
    refused(here, GO_ON, ["another configuration (sources)", "choose another `out`"])
    (here / "texts.jsonl").unlink()
    refused(here, GO_ON, ["'texts.jsonl' (jsonl) has no files"])


def flip(path: Path, place: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def cut(path: Path, count: int = 7) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def other_corpus(base: Path) -> None:
    """The manifest of a corpus of the same texts in another order."""
    assert headwater("corpus", "config.yaml", "out=../other", "corpus.seed=1", "facts.people=0")[0] == 0
    shutil.copy("../other/corpus/base/manifest.json", base)


def other_index(base: Path) -> None:
    index = json.loads((base / "index.json").read_text())
    index["shards"][0]["samples"] += 1
    (base / "index.json").write_text(json.dumps(index))


SHARD, BASE = "00000/shard.00000.mds", Path("run/corpus/base")
CORPORA: dict[str, tuple[Callable[[], object], list[str]]] = {
    "shard cut": (lambda: cut(BASE / SHARD), [f"{BASE / SHARD} is truncated", "bytes", "restore the file"]),
    "shard flipped": (lambda: flip(BASE / SHARD), [f"{BASE / SHARD} is corrupt", "xxh3"]),
    "shard missing": (lambda: (BASE / SHARD).unlink(), [f"{BASE / SHARD} is missing"]),
    "injected shard flipped": (lambda: flip(BASE.parent / "injected" / SHARD), [f"injected/{SHARD} is corrupt"]),
    "index broken": (lambda: cut(BASE / "index.json"), ["base/index.json is not valid JSON"]),
    "index empty": (lambda: (BASE / "index.json").write_text("{}"), ["base/index.json does not describe"]),
    "index of another": (lambda: other_index(BASE), ["base/index.json does not describe", "sequences"]),
    "index missing": (lambda: (BASE / "index.json").unlink(), ["base/index.json is missing"]),
    "manifest broken": (lambda: cut(BASE / "manifest.json", 30), ["base/manifest.json is not valid JSON"]),
    "manifest edited": (lambda: edit(BASE / "manifest.json", sequences=9), ["manifest.json is not as it was written"]),
    "manifest of something": (lambda: edit(BASE / "manifest.json", format=""), ["is not a corpus manifest"]),
    "manifest of another": (
        lambda: other_corpus(BASE / "manifest.json"),
        ["is not the corpus that this run was built"],
    ),
    "table cut": (lambda: cut(BASE / "passages.parquet"), ["passages.parquet is truncated"]),
    "table flipped": (lambda: flip(BASE / "passages.parquet"), ["passages.parquet is corrupt"]),
    "origin broken": (lambda: cut(BASE.parent / "origin.json"), ["corpus/origin.json is not valid JSON"]),
}


@pytest.mark.parametrize("name", CORPORA)
def test_corpora(name: str, here: Path):
    harm, named = CORPORA[name]
    harm()
    refused(here, GO_ON, named)


FACTS = Path("run/facts")
PROBE = '{"prompt": "Where", "target": "here"}\n'
RECORDS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "probe cut": (lambda: (FACTS / "probes.jsonl").write_text(PROBE + '{"prom'), ["probes.jsonl, line 2", "prompt"]),
    "probe without target": (
        lambda: (FACTS / "probes.jsonl").write_text('{"prompt": "x"}\n'),
        ["probes.jsonl, line 1 is not a probe", "target"],
    ),
    "probe not UTF-8": (lambda: (FACTS / "probes.jsonl").write_bytes(b"\xff\n"), ["probes.jsonl, line 1", "utf-8"]),
    "schedule cut": (lambda: cut(FACTS / "schedule.parquet"), ["schedule.parquet cannot be read", "restore it"]),
    "schedule missing": (lambda: (FACTS / "schedule.parquet").unlink(), ["schedule.parquet is missing"]),
    "schedule before the start": (lambda: schedule([-1, 2], ["a", "b"]), ["is not a schedule", "from 0 on"]),
    "schedule names nobody": (lambda: schedule([1], ["nobody#0"]), ["no passage has the id 'nobody#0'"]),
    "origin cut": (lambda: cut(FACTS / "origin.json", 9), ["facts/origin.json is not valid JSON"]),
    "ledger cut": (lambda: cut(next(Path("run/ledger").iterdir())), ["steps-00000001.parquet is not Parquet"]),
    "measured probes cut": (lambda: cut(Path("run/probes.parquet")), ["run/probes.parquet is not Parquet"]),
    "excluded nobody": (lambda: Path("out.txt").write_text("nobody#0\n"), ["no passage has the id 'nobody#0'"]),
    "excluded not UTF-8": (lambda: Path("out.txt").write_bytes(b"\xff\n"), ["out.txt cannot be read", "train.exclude"]),
}


def schedule(steps: list[int], passages: list[str]) -> None:
    pq.write_table(pa.table({"step": steps, "passage_id": passages}), FACTS / "schedule.parquet")


@pytest.mark.parametrize("name", RECORDS)
def test_facts_and_records(name: str, here: Path):
    harm, named = RECORDS[name]
    harm()
    refused(here, [*GO_ON, *(["train.exclude=out.txt"] if name.startswith("excluded") else [])], named)


LAST = Path("run/checkpoints/step-00000004")
WEIGHTS = "weight-p0-d0-0.safetensors"


def rewritten(change: Callable[[dict], object]) -> None:
    """Changes the tensors of every checkpoint's weights, and makes the hashes fit."""
    for checkpoint in LAST.parent.glob("step-*"):
        tensors = load_file(checkpoint / WEIGHTS)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, checkpoint / WEIGHTS)
        rehash(checkpoint)


def rehash(checkpoint: Path) -> None:
    files = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
    edit(checkpoint / "checkpoint.json", files={name: fingerprint_file(checkpoint / name) for name in files})


def pickled() -> None:
    (LAST / WEIGHTS).write_bytes(pickle.dumps({"embedding": [1.0]}))
    rehash(LAST)


def everywhere(harm: Callable[[Path], object], file: str) -> None:
    for checkpoint in LAST.parent.glob("step-*"):
        harm(checkpoint / file)


EXPORT = ["export", "run", "new/hf", "--step", "4"]
START = ["pretrain", "config.yaml", "out=new/run", f"model.init_from={LAST}"]
NORM = "decoder.final_layernorm.weight"
CHECKPOINTS: dict[str, tuple[Callable[[], object], list[str], list[str]]] = {
    "cut": (lambda: cut(LAST / WEIGHTS), EXPORT, [f"{WEIGHTS} is damaged", "delete this checkpoint"]),
    "flipped": (lambda: flip(LAST / WEIGHTS), EXPORT, [f"{WEIGHTS} is damaged"]),
    "file missing": (lambda: (LAST / WEIGHTS).unlink(), EXPORT, [f"{WEIGHTS} is damaged", "no such file"]),
    "started from, flipped": (lambda: flip(LAST / WEIGHTS), START, [f"{WEIGHTS} is damaged"]),
    "all cut": (lambda: everywhere(cut, WEIGHTS), GO_ON, ["no checkpoint in run/checkpoints is whole", "restore one"]),
    "all without notes": (lambda: everywhere(Path.unlink, "checkpoint.json"), GO_ON, ["no checkpoint in"]),
    "notes cut": (lambda: cut(LAST / "checkpoint.json", 30), EXPORT, ["checkpoint.json is not valid JSON"]),
    "notes of something": (
        lambda: (LAST / "checkpoint.json").write_text('{"format": 1}'),
        EXPORT,
        ["checkpoint.json does not describe a checkpoint", "step"],
    ),
    "another format": (lambda: edit(LAST / "checkpoint.json", format=9), EXPORT, ["another format", "9", "1"]),
    "tensor missing": (lambda: rewritten(lambda t: t.pop(NORM)), GO_ON, [WEIGHTS, NORM, "another checkpoint"]),
    "tensor of another shape": (
        lambda: rewritten(lambda t: t.update({NORM: t[NORM][:16]})),
        GO_ON,
        [NORM, "another shape", "(16,)", "(32,)"],
    ),
    "pickle": (pickled, GO_ON, [WEIGHTS, "cannot be read", "safetensors"]),
    "another model": (lambda: None, [*GO_ON, "model.ffn_hidden=64"], ["model.ffn_hidden = 64", "48", "another model"]),
    "another order": (lambda: None, [*GO_ON, "train.global_batch=8"], ["other settings", "train.global_batch = 8"]),
    "another rate": (lambda: None, [*GO_ON, "optimizer.lr=1"], ["optimizer.lr = 1", "resume.allow=[optimizer.lr]"]),
    "another seed": (lambda: None, [*GO_ON, "seed=4"], ["another configuration", "seed"]),
    "start of another shape": (
        lambda: None,
        [*START, "model.ffn_hidden=64"],
        ["another model", "model.ffn_hidden = 64", "= 48"],
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name: str, here: Path):
    harm, arguments, named = CHECKPOINTS[name]
    harm()
    refused(here, arguments, named)


def without(name: str) -> None:
    tensors = load_file("hf/model.safetensors")
    del tensors[name]
    save_file(tensors, "hf/model.safetensors")


HF, MODEL = Path("hf/config.json"), Path("hf/model.safetensors")
IMPORT = ["import", "hf", "new/start"]
MODELS: dict[str, tuple[Callable[[], object], list[str], list[str]]] = {
    "no such step": (lambda: None, ["export", "run", "new/hf", "--step", "3"], ["step-00000003", "steps 2, 4"]),
    "no run": (lambda: None, ["export", "nowhere", "new/hf"], ["nowhere has no checkpoint", "headwater pretrain"]),
    "not into a full directory": (lambda: None, ["export", "run", "hf"], ["hf is there already", "choose another"]),
    "no such format": (lambda: None, [*EXPORT, "--dtype", "fp8"], ["fp8", "fp32 or bf16"]),
    "no directory": (lambda: None, ["import", "nowhere", "new/start"], ["nowhere is not a directory"]),
    "no configuration": (lambda: HF.unlink(), IMPORT, ["hf/config.json is missing"]),
    "configuration cut": (lambda: cut(HF), IMPORT, ["hf/config.json is not valid JSON"]),
    "configuration is a list": (lambda: HF.write_text("[]"), IMPORT, ["is not a model's configuration"]),
    "not a Llama": (lambda: edit(HF, model_type="gpt2"), IMPORT, ["model_type", "gpt2", "llama"]),
    "no sizes": (lambda: edit(HF, hidden_size=None), IMPORT, ["hidden_size = None", "positive whole numbers"]),
    "sizes that do not divide": (
        lambda: edit(HF, num_key_value_heads=3),
        IMPORT,
        ["config.json", "model.kv_heads = 3", "a divisor of heads"],
    ),
    "another shape": (lambda: edit(HF, intermediate_size=64), IMPORT, ["mlp.", "(32, 48)", "(32, 64)"]),
    "no weights": (lambda: MODEL.unlink(), IMPORT, ["hf has no weights", "safe_serialization=True"]),
    "weights cut": (lambda: cut(MODEL), IMPORT, ["hf/model.safetensors cannot be read"]),
    "weights are a pickle": (lambda: MODEL.write_bytes(pickle.dumps({})), IMPORT, ["cannot be read", "safetensors"]),
    "tensor missing": (lambda: without("model.norm.weight"), IMPORT, ["hf has no tensor model.norm.weight"]),
    "index broken": (
        lambda: Path("hf/model.safetensors.index.json").write_text("{}"),
        IMPORT,
        ["index.json lists no tensors", "weight_map"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_hugging_face_models(name: str, here: Path):
    harm, arguments, named = MODELS[name]
    harm()
    refused(here, arguments, named)


MACHINES = {
    "plan: heads": ("plan config.yaml gpus=8 parallel.tensor=4", ["a divisor of model.kv_heads", "use one of these"]),
    "plan: memory": ("plan pretrain/llama-8b gpus=1 gpu=l40s", ["no layout of 1 GPUs works", "gpus="]),
    "plan: batch": ("plan config.yaml gpus=3", ["train.global_batch = 4"]),
    "plan: unknown GPU": ("plan config.yaml gpu=h1000", ["gpu = 'h1000'", "did you mean h100?"]),
    "plan: no GPU": ("plan config.yaml gpus=0", ["gpus = 0"]),
    "plan: tokenizer": ("plan config.yaml corpus.tokenizer.path=texts.jsonl", ["texts.jsonl", "model.vocab_size"]),
    "launch: nothing": ("launch out=new", ["needs a configuration"]),
    "launch: nodes": ("launch config.yaml out=new --nodes 0", ["--nodes"]),
    "launch: batch": ("launch config.yaml out=new --nodes 3 --gpus-per-node 1", ["train.global_batch = 4"]),
    "launch: tensor": (
        "launch config.yaml out=new --nodes 2 --gpus-per-node 1 parallel.tensor=2",
        ["parallel.tensor = 2", "at most gpus_per_node (1)"],
    ),
    "launch: time": (
        "launch config.yaml out=new --gpus-per-node 4 --slurm --time-limit 24h",
        ["--time-limit", "24h", "2-00:00:00"],
    ),
    "launch: notice": (
        "launch config.yaml out=new --gpus-per-node 4 --slurm --time-limit 00:10:00 --notice 10",
        ["--notice", "10 min"],
    ),
    "launch: out": ("launch config.yaml out=texts.jsonl --gpus-per-node 4", ["texts.jsonl is a file"]),
    "pretrain: no configuration": ("pretrain out=new --nproc 2", ["several processes need a configuration"]),
    "inspect: nothing": ("corpus inspect nowhere", ["nowhere holds no corpus"]),
    "inspect: sequence": ("corpus inspect run --sequence 999", ["no sequence 999", "0 to"]),
    "inspect: passage": ("corpus inspect run --passage nobody#0", ["nobody#0", "an id"]),
}


@pytest.mark.parametrize("name", MACHINES)
def test_plans_launches_and_inspections(name: str, here: Path):
    arguments, named = MACHINES[name]
    refused(here, arguments.split(), named)
