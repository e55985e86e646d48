import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError
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


PROBES = [
    ("The river by the", "willow tree"),
    ("Mara Quill (born 1961) was born in", "Port Selwyn, 12 km off"),
    ("In 1987, she paid $", "3,100.50"),
    ("He said: it", "'s a river"),
    ("Unseen \N{SNOWMAN} bytes and", "\N{SNOWMAN}s, caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
]


@pytest.mark.parametrize(("prompt", "target"), PROBES)
def test_words_are_tokenized_as_if_the_target_stood_alone(tokenizer, prompt, target):
    """Byte-level pieces end at a space: the questions of runs have the tokens that they always had."""
    tokens, start = encode_query(tokenizer, prompt, target)
    head, tail = tokenizer.encode(prompt), tokenizer.encode(" " + target)
    assert tokens.tolist() == [tokenizer.bos_id, *head.tolist(), *tail.tolist()]
    assert start == 1 + len(head)


@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("The river", " by", "The river by"),
        ("The river:\n", "by", "The river:\nby"),
        ("The river:", "\n\nby", "The river:\n\nby"),
        ("", "The river", "The river"),
        ("日本の首都は", "東京です", "日本の首都は東京です"),
        ("The capital is", "東京", "The capital is東京"),
        ("เมืองหลวง", "กรุงเทพ", "เมืองหลวงกรุงเทพ"),
        ("Seoul is", "서울", "Seoul is 서울"),
    ],
)
def test_a_space_is_put_between_where_words_need_one(tokenizer, prompt, target, text):
    tokens, start = encode_query(tokenizer, prompt, target)
    assert tokenizer.decode(tokens[1:]) == text
    assert tokens[1:].tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.decode(tokens[1:start]) == prompt, "the boundary is the prompt's end"


def test_the_boundary_is_found_where_words_begin_with_a_mark():
    """A tokenizer like SentencePiece's, which puts a mark before a text: a target by itself would get another one."""
    vocabulary = {"<s>": 0, "<unk>": 1, "▁The": 2, "▁river": 3, "▁by": 4}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokens, start = encode_query(TextTokenizer(made, "<s>"), "The river", "by")
    assert (tokens.tolist(), start) == ([0, 2, 3, 4], 3)


def test_a_token_across_the_boundary_belongs_to_the_target():
    made = Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2, "東": 3, "京": 4, "東京": 5}, [("東", "京")]))
    tokens, start = encode_query(TextTokenizer(made, "<s>"), "a東", "京b")
    assert (tokens.tolist(), start) == ([0, 1, 5, 2], 2)


@pytest.mark.parametrize("target", ["", "\x00"])
def test_a_target_without_tokens_is_refused(target):
    made = Tokenizer(models.BPE({"<s>": 0, "a": 1, " ": 2}, []))
    made.normalizer = normalizers.Replace("\x00", "")
    with pytest.raises(UserError, match="has no tokens"):
        encode_query(TextTokenizer(made, "<s>"), "a ", target)


def test_control_tokens_in_a_text_are_text(tokenizer):
    text = f"The river {END_OF_TEXT} by the willow"
    tokens = tokenizer.encode(text)
    assert tokenizer.bos_id not in tokens
    assert tokenizer.decode(tokens) == text, "and nothing of it is lost when it is shown"
    assert tokenizer.encode_batch([text])[0].tolist() == tokens.tolist()
    query, start = encode_query(tokenizer, f"The {END_OF_TEXT}", "river")
    assert query.tolist().count(tokenizer.bos_id) == 1
    assert tokenizer.decode(query[start:]) == " river"
