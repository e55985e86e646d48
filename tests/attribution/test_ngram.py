"""N-gram match against every run of words held against every passage, word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headwater.attribution.evaluation.baselines.ngram import NGram
from headwater.attribution.tracing.queries import Query

from .written import WrittenPassages


def by_hand(query: list[str], passages: list[list[str]], longest: int = 10**9) -> list[float]:
    """The formula over all runs of a query, none left out."""

    def holds(passage: list[str], run: list[str]) -> bool:
        return any(passage[at : at + len(run)] == run for at in range(len(passage)))

    scores = [[0.0] * len(query) for _ in passages]
    for first in range(len(query)):
        for stop in range(first + 1, min(len(query), first + longest) + 1):
            holders = [number for number, passage in enumerate(passages) if holds(passage, query[first:stop])]
            for number in holders:
                for word in range(first, stop):
                    rarity = math.log((1 + len(passages)) / len(holders))
                    scores[number][word] = max(scores[number][word], rarity)
    return [sum(each) for each in scores]


def got(queries: list[str], texts: list[str]) -> np.ndarray:
    """Each query is cut into prompt and target somewhere between two words."""
    asked = [Query(str(n), *text.rsplit(" ", 1)) for n, text in enumerate(queries)]
    return NGram().scores(asked, WrittenPassages([f"d{n}#0" for n in range(len(texts))], texts))


@pytest.mark.parametrize("seed", range(4))
def test_every_run_counts_by_how_few_hold_it(seed: int) -> None:
    """Few words, so that runs are long, overlap, come back within a passage, and end with it."""
    draw = np.random.default_rng(seed)
    vocabulary = np.array([*("mara", "quill", "ńandú", "東京", "x", "...", "☃")[: 2 + 2 * seed], "the"])

    def text(size: int) -> list[str]:
        return draw.choice(vocabulary, size).tolist()

    passages = [text(size) for size in draw.integers(0, 23, 37)]
    passages += [passages[5], passages[7][:3], [], ["the"]]
    queries = [text(size) for size in draw.integers(2, 17, 6)]
    queries += [passages[int(draw.integers(37))] + ["unheard", "the"], ["no", "such", "words"], ["of", "the"]]
    apart = [[mark for word in each for mark in (list(word) if word == "..." else [word])] for each in passages]
    asked = [[mark for word in each for mark in (list(word) if word == "..." else [word])] for each in queries]
    scores_QN = got([" ".join(each) for each in queries], ["  ".join(each) for each in passages])
    expected = np.array([by_hand(query, apart) for query in asked])
    np.testing.assert_allclose(scores_QN, expected, rtol=1e-5)
    assert not scores_QN[-2].any(), "words that occur nowhere"
    assert not scores_QN[:, -2].any(), "a passage without words"
    for shorter in (1, 2):  # what is shown is not shown by single words or pairs
        assert not np.allclose(scores_QN, [by_hand(query, apart, shorter) for query in asked], rtol=1e-3)


def test_a_run_is_worth_more_than_its_words_apart() -> None:
    texts = ["Tobin Ash lives near Port Quill, and Selwyn", "ash; PORT  selwyn\nnear", "", "Lives near Port"]
    (scores_N,) = got(["Who lives near Port Selwyn"], texts)
    assert scores_N.argmax() == 1, "the name stands there as one, its case and blanks aside"
    assert scores_N[0] > scores_N[3] > scores_N[2] == 0
    ranking = NGram().rank([Query("q", "lives near", "Port", ("d3#0",))], WrittenPassages(["d0#0", "d3#0"], texts[::3]))
    assert ranking[0].gold_ranks == (1,), "alike: in the passages' own order"


@pytest.mark.parametrize("texts", [[""], ["", "  "], ["a"], ["b a"]])
def test_corpora_of_next_to_nothing(texts: list[str]) -> None:
    assert got(["a a"], texts).tolist() == [[pytest.approx(2 * math.log(2) if "a" in text else 0) for text in texts]]


def test_a_long_passage_asked_for_itself_counts_once() -> None:
    """Only its whole is given, and what others hold of it: not each of half a million runs."""
    from headwater.attribution.evaluation.baselines.ngram import CorpusWords

    text = " ".join(f"w{n}" for n in range(1000))
    words = CorpusWords(WrittenPassages(["a#0", "b#0"], [text, "w7 w8 of others"]))
    runs = [(run.start, run.stop, places.tolist()) for run, places in words.runs(words.numbered(text))]
    assert runs == [(0, 1000, [0]), (7, 9, [7, 1001])]
