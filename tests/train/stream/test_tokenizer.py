import numpy as np
import pytest
from tokenizers import Tokenizer, models

from headwater.configs.errors import CorruptError, MismatchError, MissingError
from headwater.train.tokenizer import END_OF_TEXT, TextTokenizer, encode_query, train_tokenizer

from .conftest import make_texts


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(make_texts(60), 512)


def test_training_gives_the_same_tokenizer_each_time(tokenizer):
    again = train_tokenizer(iter(make_texts(60)), 512)
    assert again.fingerprint == tokenizer.fingerprint
    assert train_tokenizer(make_texts(60, seed=1), 512).fingerprint != tokenizer.fingerprint


def test_the_beginning_token_is_zero_and_rows_are_a_multiple_of_64(tokenizer):
    assert (tokenizer.bos, tokenizer.bos_id) == (END_OF_TEXT, 0)
    # These texts hold a dozen words, so merges run out before 512.
    assert tokenizer.vocab_size % 64 == 0
    assert tokenizer.tokenizer.get_vocab_size() <= tokenizer.vocab_size <= 512


@pytest.mark.parametrize("text", ["river stone", " leading", "unseen \N{SNOWMAN} bytes\n\ttab", ""])
def test_text_survives(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int64
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode_batch([text])[0].tolist() == tokens.tolist()


def test_a_query_is_the_prompt_then_the_target(tokenizer):
    tokens, start = encode_query(tokenizer, "The river by the", "willow tree")
    assert tokens[0] == tokenizer.bos_id
    assert tokenizer.decode(tokens[1:start]) == "The river by the"
    assert tokenizer.decode(tokens[start:]) == " willow tree"
    # As it stands in a passage, so that the target's first token is the one that training predicts.
    assert tokens[1:].tolist() == tokenizer.encode("The river by the willow tree").tolist()


def test_files_are_checked(tokenizer, tmp_path):
    with pytest.raises(MissingError):
        TextTokenizer.from_file(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"bad\.json"):
        TextTokenizer.from_file(tmp_path / "bad.json")
    path = tmp_path / "tokenizer.json"
    tokenizer.tokenizer.save(str(path))
    assert TextTokenizer.from_file(path).fingerprint == tokenizer.fingerprint
    with pytest.raises(MismatchError, match="token to begin a passage"):
        TextTokenizer.from_file(path, bos="<begin>")


def test_a_saved_tokenizer_says_which_token_begins_a_passage(tokenizer, tmp_path):
    word = tokenizer.tokenizer.id_to_token(265)
    TextTokenizer(Tokenizer.from_str(tokenizer.tokenizer.to_str()), word).save(tmp_path / "tokenizer.json")
    read = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    assert (read.bos, read.bos_id) == (word, 265)
    # It is not put before the texts that this project encodes.
    assert read.encode("river stone").tolist() == tokenizer.encode("river stone").tolist()


def test_the_beginning_token_of_another_tokenizer_is_found():
    other = Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "[UNK]": 2}, unk_token="[UNK]"))
    assert TextTokenizer(other).bos_id == 1
    assert TextTokenizer(other, "a").bos_id == 0
