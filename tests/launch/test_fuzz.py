"""Files as the world has them, thousands of them: every reader ends well, or with one error that the user can read, and
leaves every file as it was."""

from __future__ import annotations

import os
import random
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from headwater.configs import load_config
from headwater.configs.errors import UserError
from headwater.train import parallel
from headwater.train.artifacts import RunDir
from headwater.train.settings import PretrainSettings

from ..attribution.report_run import make_run
from .harm import HARMS


@dataclass(frozen=True)
class Reader:
    """Something that reads files below a directory.

    Attributes:
        files: patterns of those that are harmed.
        read: from the directory.
        cases: how many harmed files it is given.
    """

    files: tuple[str, ...]
    read: Callable[[Path], object]
    cases: int


def read_corpus(here: Path) -> None:
    from headwater.train.stream.passages import open_passages

    passages = open_passages(RunDir.at(here / "run"))
    for corpus in passages.corpora:
        corpus.check_sizes()
        corpus.check_table()
    ids = passages.ids(0, len(passages))
    for number in (0, len(passages) // 2, len(passages) - 1):
        passages.tokens(number)
        passages.text(number)
    passages.number_of(ids[-1])
    passages.lengths_of(np.array([0, len(passages) - 1]))


def verify_corpus(here: Path) -> None:
    from headwater.train.stream.corpus import open_corpus

    open_corpus(here / "run/corpus/base").verify()


def read_stream(here: Path) -> None:
    from headwater.train.stream.stream import open_stream

    stream = open_stream(RunDir.at(here / "run"), global_batch=4, seed=3)
    stream.sequences(1, 0, 4)


def read_index(here: Path) -> None:
    from headwater.attribution.index.reader import open_index

    index = open_index(here / "run/index/headwater")
    _ = index.whitening, index.passage_ids, index.norms, index.fingerprint
    for codec in index.codecs:
        index.rows(0, index.passages, codec)
        index.gather(codec, [0, index.passages - 1])
    index.close()


def verify_index(here: Path) -> None:
    from headwater.attribution.index.verify import verify

    verify(here / "run/index/headwater")


def trace_index(here: Path) -> None:
    from headwater.attribution.tracing.attributor import Attributor

    with Attributor.open(here / "run/index/headwater", world=parallel.joined()) as attributor:
        attributor.trace([("river stone", "cloud")], top_k=3, bottom_k=1)


def read_checkpoint(here: Path) -> None:
    from headwater.attribution.models.headwater import HeadwaterModel
    from headwater.train.checkpoint import newest, open_checkpoint

    newest(RunDir.at(here / "run").checkpoints, say=lambda text: None)
    checkpoint = open_checkpoint(here / "run/checkpoints/step-00000004")
    world = parallel.joined()
    assert world is not None
    model = HeadwaterModel(checkpoint, world)
    model.second_moment(model.sites[0])


def read_the_ledger(here: Path) -> None:
    from headwater.train.callbacks.ledger_files import read_ledger

    table = read_ledger(RunDir.at(here / "run").ledger)
    np.asarray(table["passage"])


def read_report(here: Path) -> None:
    from headwater.attribution.report.inputs import read_run

    read_run(here, index="headwater", trace="headwater")


def read_probes(here: Path) -> None:
    from headwater.train.callbacks.probes import read_prompts
    from headwater.train.tokenizer import TextTokenizer

    read_prompts(here / "run/facts/probes.jsonl", TextTokenizer.from_file(here / "run/tokenizer.json"))


def read_the_queries(here: Path) -> None:
    from headwater.attribution.tracing.queries import read_queries

    read_queries(here / "run/facts/probes.jsonl")


def read_the_schedule(here: Path) -> None:
    from headwater.train.facts.injection import read_schedule

    read_schedule(here / "run/facts/schedule.parquet")


def read_tokenizer(here: Path) -> None:
    from headwater.train.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.from_file(here / "run/tokenizer.json")
    tokenizer.decode(tokenizer.encode("a river of stone").tolist())


def read_configuration(here: Path) -> None:
    load_config(PretrainSettings, here / "run/config.yaml")


def documents_of(kind: str, file: str) -> Callable[[Path], None]:
    def read(here: Path) -> None:
        from headwater.train.corpus.documents import describe_source, read_documents
        from headwater.train.corpus.settings import SourceSettings

        source = SourceSettings(kind=kind, path=str(here / "documents" / file))
        describe_source(source)
        for document in read_documents(source):
            document.text.encode()

    return read


def read_weights(here: Path) -> None:
    from headwater.attribution.models.weights import read_config, require_kind, weights_of

    require_kind(here / "hf", read_config(here / "hf"))
    weights_of(here / "hf")


def open_hugging_face(here: Path) -> None:
    from headwater.attribution.models.huggingface import HuggingFaceModel

    HuggingFaceModel(str(here / "hf"))


def read_optimizer(here: Path) -> None:
    from headwater.attribution.models.moments import read_moments

    read_moments(str(here / "moments/state.pt"), torch.nn.Linear(3, 2))


def read_the_adapter(here: Path) -> None:
    from headwater.attribution.models.adapters import base_of, read_pairs

    base_of(here / "adapter", str(here / "hf"))
    read_pairs(here / "adapter")


def read_captured(here: Path) -> None:
    from headwater.attribution.capture.sums import mean_rows
    from headwater.attribution.capture.visits import read_visits

    list(read_visits(RunDir.at(here / "captured")))
    mean_rows(here / "captured/sums", 0)


def go_on(here: Path) -> None:
    """What a training reads before its first step, but for the weights."""
    from headwater.train.corpus.build import build_corpus
    from headwater.train.preflight import check_inputs

    settings = load_config(PretrainSettings, here / "config.yaml", [f"out={here / 'run'}"])
    settings.corpus.sources[0].path = str(here / "texts.jsonl")
    check_inputs(settings, RunDir.at(here / "run"))
    build_corpus(settings)


CORPUS = ("run/corpus/*/*", "run/corpus/*/00000/*", "run/tokenizer.json")
INDEX = ("run/index/headwater/*",)
RUN = ("run/corpus/*.json", "run/corpus/base/*.json", "run/probes.parquet", "run/ledger/*", "texts.jsonl")
READERS = {
    "corpus": Reader(CORPUS, read_corpus, 400),
    "corpus, verified": Reader(("run/corpus/base/*", "run/corpus/base/00000/*"), verify_corpus, 100),
    "stream": Reader((*CORPUS, "run/facts/*"), read_stream, 200),
    "index": Reader(INDEX, read_index, 500),
    "index, verified": Reader(INDEX, verify_index, 300),
    "index, traced": Reader((*INDEX, "run/ledger/*", "run/checkpoints/*4/*.json"), trace_index, 12),
    "checkpoint": Reader(
        ("run/checkpoints/step-00000004/*", "run/checkpoints/*/checkpoint.json"), read_checkpoint, 150
    ),
    "ledger": Reader(("run/ledger/*",), read_the_ledger, 200),
    "report": Reader(("**/*.json*", "**/*.parquet", "**/config.yaml"), read_report, 200),
    "probes": Reader(("run/facts/probes.jsonl", "run/tokenizer.json"), read_probes, 200),
    "queries": Reader(("run/facts/probes.jsonl",), read_the_queries, 300),
    "schedule": Reader(("run/facts/schedule.parquet",), read_the_schedule, 200),
    "tokenizer": Reader(("run/tokenizer.json",), read_tokenizer, 200),
    "configuration": Reader(("run/config.yaml",), read_configuration, 60),
    "JSONL": Reader(("documents/a.jsonl",), documents_of("jsonl", "a.jsonl"), 300),
    "Parquet": Reader(("documents/a.parquet",), documents_of("parquet", "a.parquet"), 300),
    "text": Reader(("documents/text/*",), documents_of("text", "text"), 50),
    "saved dataset": Reader(("documents/saved/*",), documents_of("huggingface", "saved"), 200),
    "Hugging Face weights": Reader(("hf/*.json", "hf/*.safetensors"), read_weights, 300),
    "Hugging Face model": Reader(("hf/*.json", "hf/*.safetensors"), open_hugging_face, 30),
    "optimizer state": Reader(("moments/state.pt",), read_optimizer, 200),
    "adapter": Reader(("adapter/*",), read_the_adapter, 200),
    "captured rows": Reader(("captured/**/*.safetensors",), read_captured, 200),
    "a run gone on with": Reader(RUN, go_on, 80),
}
SCALE = float(os.environ.get("HEADWATER_FUZZ", "1"))
"""Times the cases that are tried by default."""


@pytest.fixture(scope="module")
def material(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One of everything that is read, which this module may harm."""
    from safetensors.torch import save_file

    here = tmp_path_factory.mktemp("fuzz") / "here"
    shutil.copytree(whole, here)
    documents = here / "documents"
    (documents / "text").mkdir(parents=True)
    lines = (here / "texts.jsonl").read_bytes().splitlines(keepends=True)[:12]
    (documents / "a.jsonl").write_bytes(b"".join(lines))
    (documents / "text" / "a.txt").write_bytes("é river\n".encode() * 9)
    table = pa.table({"id": ["a", "b", None], "text": ["a river", "é", "stone"], "n": [1, 2, 3]})
    pq.write_table(table, documents / "a.parquet")
    (documents / "saved").mkdir()
    with pa.OSFile(str(documents / "saved/data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (documents / "saved/state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    (here / "moments").mkdir()
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.named_parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), here / "moments/state.pt")
    (here / "adapter").mkdir()
    (here / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}')
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
    save_file(pair, here / "adapter/adapter_model.safetensors")
    (here / "captured/capture").mkdir(parents=True)
    visits = {"rows": torch.ones(2, 4), "passage": torch.arange(2), "step": torch.ones(2, dtype=torch.int32)}
    save_file({**visits, "lr": torch.ones(2)}, here / "captured/capture/visits-00000001.safetensors")
    (here / "captured/sums").mkdir()
    sums = {"sums": torch.ones(2, 4), "weights": torch.ones(2, dtype=torch.float64), "visits": torch.arange(2)}
    save_file(sums, here / "captured/sums/capture-mean-00000.safetensors")
    make_run(here / "report", people=4, base=60)
    parallel.start(threads=1)
    yield here
    parallel.stop()


def state(here: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and the time of its last change."""
    found = {}
    for directory, _, names in os.walk(here):
        for name in names:
            status = os.lstat(f"{directory}/{name}")
            found[f"{directory}/{name}"] = (status.st_size, status.st_mtime_ns)
    return found


def place_of(error: Exception) -> str:
    """The line of this project that an error came through last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/site-packages/" not in frame.filename]
    return f"at {frames[-1].filename}:{frames[-1].lineno}"


def tried(reader: Reader, home: Path, seed: str) -> tuple[Counter[str], list[str]]:
    """How the cases ended, and those that ended otherwise than they may."""
    draw = random.Random(seed)
    files = sorted({path for pattern in reader.files for path in home.glob(pattern) if path.is_file()})
    assert files
    ends, wrong = Counter[str](), []
    for number in range(max(int(reader.cases * SCALE), 1)):
        file, harm = draw.choice(files), draw.choice(list(HARMS))
        content = file.read_bytes()
        made = HARMS[harm](draw, content, files)
        file.unlink()  # and not written over: what is mapped by now stays as it was
        if made is not None:
            file.write_bytes(made)
        before = state(home)
        case = f"case {number}: {file.relative_to(home)} {harm}"
        try:
            reader.read(home)
            ends["read"] += 1
        except UserError as error:
            ends["refused"] += 1
            if not error.what.strip() or "Traceback" in str(error):
                wrong.append(f"{case}: {error!r}")
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {str(error)[:160]} {place_of(error)}")
        after = state(home)
        if after != before:
            names = {name for name in {*before, *after} if before.get(name) != after.get(name)}
            wrong.append(f"{case}: changed {sorted(names)}")
        file.unlink(missing_ok=True)
        file.write_bytes(content)
    return ends, wrong


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_harmed_files_are_read_or_refused(name: str, material: Path) -> None:
    reader = READERS[name]
    home = material / "report" if name == "report" else material
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader.read(home)  # what is not harmed is read
        ends, wrong = tried(reader, home, name)
        assert not wrong, "\n".join([f"{len(wrong)} of {sum(ends.values()) + len(wrong)}", *wrong[:12]])
        reader.read(home)
    assert ends["refused"] > 0
