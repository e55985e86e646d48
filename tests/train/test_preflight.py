"""A vocabulary that does not hold the tokenizer's is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from headwater.configs import load_config
from headwater.configs.errors import ConfigError, UserError
from headwater.train.artifacts import RunDir
from headwater.train.corpus.settings import CorpusSettings, TokenizerSettings
from headwater.train.preflight import check_inputs, check_vocabulary
from headwater.train.settings import ModelSettings, ParallelSettings, PretrainSettings
from headwater.train.tokenizer import TextTokenizer

from ..jobs import status


@pytest.fixture(scope="module")
def tokenizer(prepared: Path) -> TextTokenizer:
    return TextTokenizer.from_file(prepared / "run" / "tokenizer.json")


def tokens_of(tokenizer: TextTokenizer) -> int:
    return tokenizer.tokenizer.get_vocab_size(with_added_tokens=True)


def asked(rows: int, tensor: int = 1) -> PretrainSettings:
    return PretrainSettings(model=ModelSettings(vocab_size=rows), parallel=ParallelSettings(tensor=tensor))


def test_every_token_needs_a_row(tokenizer):
    tokens = tokens_of(tokenizer)
    check_vocabulary(asked(0), tokenizer)
    check_vocabulary(asked(tokens), tokenizer)  # fewer than the multiple of 64 that a new model would have
    with pytest.raises(UserError, match=f"model.vocab_size = {tokens - 1}\n.*at least {tokens}"):
        check_vocabulary(asked(tokens - 1), tokenizer)


def test_rows_are_shared_out_evenly(tokenizer):
    assert tokenizer.vocab_size % 3 == 0
    check_vocabulary(asked(0, 3), tokenizer)
    with pytest.raises(UserError, match=r"out over parallel.tensor = 5"):
        check_vocabulary(asked(0, 5), tokenizer)


def test_a_tokenizer_to_be_trained_is_known_by_its_settings(tmp_path):
    wanted = asked(256)
    wanted.corpus.tokenizer.vocab_size = 320
    with pytest.raises(UserError, match=r"model.vocab_size = 256\n.*at least 320"):
        check_inputs(wanted, RunDir.at(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"parallel.tensor = 2: expected a divisor of model.vocab_size \(8193\)"):
        load_config(PretrainSettings, None, ["model.vocab_size=8193", "parallel.tensor=2"])


def test_the_tokenizer_is_found_where_it_lies(tokenizer, tmp_path):
    """A file that the settings name, or that of a corpus to be adopted; an id beyond the count of tokens counts."""
    own = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    own.add_tokens(["brontosaurus"])
    own.save(str(tmp_path / "tokenizer.json"))
    rows = tokens_of(tokenizer)
    for corpus in (
        CorpusSettings(tokenizer=TokenizerSettings(path=str(tmp_path / "tokenizer.json"))),
        CorpusSettings(prebuilt=str(tmp_path)),
    ):
        wanted = PretrainSettings(corpus=corpus, model=ModelSettings(vocab_size=rows))
        with pytest.raises(UserError, match=f"at least {rows + 1}, the tokenizer's"):
            check_inputs(wanted, RunDir.at(tmp_path / "run"))
        wanted.model.vocab_size = rows + 1
        check_inputs(wanted, RunDir.at(tmp_path / "run"))


@pytest.mark.slow
def test_two_ranks_refuse_and_leave_nothing(prepared, config, tmp_path):
    """The rows that were missing were zeros at two tensor-parallel ranks, and losses looked as they should."""
    log, run = tmp_path / "log", tmp_path / "run"
    tokenizer = f"corpus.tokenizer.path={prepared / 'run' / 'tokenizer.json'}"
    arguments = [config, f"out={run}", tokenizer, "parallel.tensor=2"]
    assert status([*arguments, "model.vocab_size=128"], ranks=2, log=log) == 2
    assert log.read_text().count("error:") == 1
    assert "model.vocab_size = 128" in log.read_text()
    assert not run.exists()
