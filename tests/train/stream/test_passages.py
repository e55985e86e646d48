import itertools

import numpy as np
import pytest

from headwater.train.corpus.passages import PassageCutter
from headwater.train.tokenizer import train_tokenizer

from .conftest import make_texts


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(make_texts(60), 512)


@pytest.mark.parametrize(("max_tokens", "min_tokens"), [(8, 1), (17, 4), (64, 12), (63, 31)])
def test_every_token_lands_in_exactly_one_piece_of_bounded_length(tokenizer, max_tokens, min_tokens):
    cutter = PassageCutter(tokenizer, max_tokens, min_tokens)
    rng = np.random.default_rng(0)
    for length in [*range(0, 200), 1000]:
        tokens = rng.integers(1, tokenizer.tokenizer.get_vocab_size(), length)
        cuts = cutter.cuts(tokens)
        assert cuts[0] == 0
        assert cuts[-1] == length
        sizes = np.diff(cuts)
        assert (sizes > 0).all()
        assert sizes.max(initial=0) <= max_tokens - 1
        if length >= min_tokens:
            assert sizes.min() >= min(min_tokens, (max_tokens - 1) // 2)


def test_pieces_end_with_sentences_else_between_words(tokenizer):
    text = "River stone cloud ember. Willow harbor lantern! Meadow north signal quiet orchard river stone ember willow"
    tokens = tokenizer.encode(text)
    cuts = PassageCutter(tokenizer, 8, 2).cuts(tokens)
    pieces = [tokenizer.decode(tokens[a:b]) for a, b in itertools.pairwise(cuts.tolist())]
    assert "".join(pieces) == text
    assert len(pieces) > 2, pieces
    assert pieces[0].endswith((".", "!"))
    assert all(piece.startswith(" ") for piece in pieces[1:])


def test_a_word_without_end_is_cut_all_the_same(tokenizer):
    tokens = tokenizer.encode("z" * 300)
    sizes = np.diff(PassageCutter(tokenizer, 16, 4).cuts(tokens))
    assert sizes.sum() == len(tokens)
    assert sizes.max() <= 15
