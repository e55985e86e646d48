from pathlib import Path

import numpy as np
import pytest

from headwater.configs.errors import MismatchError, MissingError
from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.stream.corpus import open_corpus
from headwater.train.stream.passages import open_passages
from headwater.train.stream.stream import open_stream

from .conftest import settings_for


def settings(built, out, address=None):
    cfg = settings_for(out, Path("never-read.jsonl"))
    cfg.corpus.prebuilt = str(address or RunDir.at(built.out).corpus / "base")
    return cfg


def test_a_run_adopts_a_corpus_and_its_tokenizer(built, tmp_path):
    cfg = settings(built, tmp_path / "run")
    build_corpus(cfg)
    theirs, ours = (open_corpus(RunDir.at(each.out).corpus / "base") for each in (built, cfg))
    assert ours.fingerprint == theirs.fingerprint
    assert not list(ours.path.glob("*/*.mds"))  # not copied
    assert np.array_equal(ours.sequence(5).tokens, theirs.sequence(5).tokens)
    run = RunDir.at(cfg.out)
    assert run.tokenizer.read_bytes() == RunDir.at(built.out).tokenizer.read_bytes()
    assert len(open_passages(run).corpora) == 2
    assert open_stream(run, global_batch=3, seed=0).sequences(0, 0, 3)
    build_corpus(cfg)


def test_a_corpus_of_other_lengths_is_refused_with_the_key_to_set(built, tmp_path):
    cfg = settings(built, tmp_path / "run")
    cfg.corpus.seq_len = 128
    with pytest.raises(MismatchError, match=r"corpus\.seq_len=97"):
        build_corpus(cfg)
    cfg.corpus.seq_len = 97
    build_corpus(cfg)  # the refused attempt does not stand in the way


def test_an_address_without_a_corpus_is_refused(built, tmp_path):
    with pytest.raises(MissingError, match=r"no manifest\.json"):
        build_corpus(settings(built, tmp_path / "run", tmp_path))
