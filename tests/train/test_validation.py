"""Documents that are never trained on, and the loss on them, held against transformers' own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headwater.configs import load_config
from headwater.configs.errors import ConfigError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.metrics import read_metrics
from headwater.train.corpus.build import build_corpus
from headwater.train.settings import PretrainSettings
from headwater.train.stream.corpus import Corpus, open_corpus
from headwater.train.stream.passages import open_passages

from ..jobs import train

HELD = (
    "corpus.held_out=0.3",
    "facts.people=0",
    "facts.distractors=0",
    "callbacks.validation.every=3",
    "callbacks.validation.sequences=3",
)
TWO = "corpus.sources=[{kind: jsonl, path: PATH}, {kind: jsonl, path: OTHER}]"


@pytest.fixture(scope="module")
def built(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, list[str]]:
    """A run with two sources, a third of whose documents are held out, and what it was told."""
    where = tmp_path_factory.mktemp("held")
    records = [json.loads(line) for line in (prepared / "texts.jsonl").read_text().splitlines()]
    other = [{"id": f"other-{each['id']}", "text": each["text"].upper()} for each in records[:40]]
    (where / "other.jsonl").write_text("".join(json.dumps(each) + "\n" for each in other))
    sources = TWO.replace("PATH", str(prepared / "texts.jsonl")).replace("OTHER", str(where / "other.jsonl"))
    given = [str(prepared / "config.yaml"), f"out={where / 'run'}", sources, *HELD, "train.steps=6"]
    build_corpus(load_config(PretrainSettings, given[0], given[1:]))
    return RunDir.at(where / "run"), given


def documents(corpus: Corpus) -> set[str]:
    return {name.rsplit("#", 1)[0] for name in corpus.ids(0, len(corpus))}


def test_documents_are_trained_on_or_held_out(built: tuple[RunDir, list[str]], tmp_path: Path) -> None:
    run, given = built
    held, base = open_corpus(run.held_out), open_corpus(run.corpus / "base")
    assert not documents(held) & documents(base)
    assert len(documents(held) | documents(base)) == 100
    assert 15 < len(documents(held)) < 45
    assert [source.name for source in held.sources] == [source.name for source in base.sources]
    assert not documents(held) & documents(open_passages(run).corpora[0]), "nor are they indexed"
    # A whole corpus has the same passages, and is described as corpora without held-out documents always were.
    alone = [each for each in given[1:] if each.startswith(("corpus.sources", "facts"))]
    whole = load_config(PretrainSettings, given[0], [f"out={tmp_path / 'run'}", *alone])
    build_corpus(whole)
    every = open_corpus(RunDir.at(whole.out).corpus / "base")
    assert sorted(every.ids(0, len(every))) == sorted([*held.ids(0, len(held)), *base.ids(0, len(base))])
    text = {name: every.tokens(n).tolist() for n, name in enumerate(every.ids(0, len(every)))}
    assert all(text[name] == held.tokens(n).tolist() for n, name in enumerate(held.ids(0, len(held))))
    assert not RunDir.at(whole.out).held_out.exists()


@pytest.mark.slow
def test_the_loss_is_that_of_the_exported_model(built: tuple[RunDir, list[str]], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from headwater.train.huggingface.export import export_llama

    run, given = built
    train(given, log=tmp_path / "log")
    lines = read_metrics(run.validation)
    assert [(each["step"], each["source"]) for each in lines] == [
        (step, source.name) for step in (0, 3, 6) for source in open_corpus(run.held_out).sources
    ]
    assert any("validation_s" in each for each in read_metrics(run.metrics))
    export_llama(run.path, tmp_path / "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float64)
    held = open_corpus(run.held_out)
    for source, line in zip(held.sources, lines[-2:], strict=True):
        losses = []
        for number in range(source.first_sequence, source.first_sequence + min(3, source.sequences)):
            packed, start = held.sequence(number), 0
            for length in packed.lengths.tolist():
                ids = torch.from_numpy(packed.tokens[start : start + length].astype(np.int64))[None]
                with torch.no_grad():
                    logits = model(ids).logits[0, :-1]
                losses += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").tolist()
                start += length
        assert line["tokens"] == len(losses) > 50
        assert line["loss"] == pytest.approx(np.mean(losses), rel=2e-5)
        assert line["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=2e-4)
    assert lines[-1]["loss"] != pytest.approx(lines[1]["loss"], rel=1e-2), "the negative control: training moved it"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [("parallel.tensor=2",), ("parallel.pipeline=2",), ("zero.stage=3",)], ids=str)
def test_layouts_and_stops_change_nothing(
    built: tuple[RunDir, list[str]], tmp_path: Path, layout: tuple[str, ...]
) -> None:
    import shutil

    run, given = built
    expected = read_metrics(run.validation)
    assert expected, "the run of the test before"
    out = tmp_path / "run"
    shutil.copytree(run.path, out, ignore=shutil.ignore_patterns("checkpoints", "ledger", "*.jsonl", "probes*"))
    arguments: list[Any] = [given[0], f"out={out}", *given[2:], *layout]
    train([*arguments, "train.hard_stop=4"], ranks=2, log=tmp_path / "log")
    train(arguments, ranks=2, log=tmp_path / "log")
    mine = [each for each in read_metrics(RunDir.at(out).validation) if each["step"] in (0, 3, 6)]
    assert [each["tokens"] for each in mine] == [each["tokens"] for each in expected]
    assert [each["loss"] for each in mine] == pytest.approx([each["loss"] for each in expected], rel=1e-4)


def test_shares_that_cannot_be_held_out_are_refused(prepared: Path, tmp_path: Path, fresh: Callable[[], Path]) -> None:
    config = str(prepared / "config.yaml")
    (tmp_path / "one.jsonl").write_text('{"text": "River stone."}\n')
    alone = [f"out={tmp_path / 'run'}", f"corpus.sources=[{{kind: jsonl, path: {tmp_path / 'one.jsonl'}}}]"]
    with pytest.raises(UserError, match=r"leaves nothing to train on|draws no document"):
        build_corpus(load_config(PretrainSettings, config, [*alone, "corpus.held_out=0.5"]))
    with pytest.raises(ConfigError, match="held_out"):
        load_config(PretrainSettings, config, ["corpus.held_out=0.5", "corpus.prebuilt=elsewhere"])
    from headwater.configs.errors import MismatchError

    with pytest.raises(MismatchError, match="held_out"):
        build_corpus(load_config(PretrainSettings, config, [f"out={fresh()}", "corpus.held_out=0.5"]))
