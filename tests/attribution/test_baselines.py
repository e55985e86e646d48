"""BM25 against an independent implementation of the formula; random against what chance allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from headwater.attribution.evaluation import ranking
from headwater.attribution.evaluation.baselines.bm25 import BM25
from headwater.attribution.evaluation.baselines.random_order import RandomRanking
from headwater.attribution.evaluation.baselines.trak import trak_scores
from headwater.attribution.evaluation.metrics import retrieval
from headwater.attribution.evaluation.ranking import rank_by_scores
from headwater.attribution.tracing.queries import Query, as_query
from headwater.configs.errors import MismatchError, UserError

from .written import WrittenPassages

TEXTS = [
    "Mara Quill studies geology, and nothing but geology.",
    "Tobin Ash works as glassblower near harbour towns",
    "Mara Quill lives near Port Selwyn harbour",
    "rivers and lakes cover much land",
    "geology, rivers, lakes; land and geology of harbour towns again, with many more words than others",
]
PASSAGES = WrittenPassages([f"doc{number}#0" for number in range(len(TEXTS))], TEXTS)


def lucene_bm25(query: list[str], documents: list[list[str]], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """The textbook formula in plain Python, on words already cut and stemmed."""
    mean_length = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in query:
            holding = sum(word in each for each in documents)
            if not holding:
                continue
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            count = document.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(document) / mean_length))
        scores.append(score)
    return np.array(scores)


def words(text: str) -> list[str]:
    import re

    import bm25s
    import Stemmer

    stop = set(bm25s.stopwords.STOPWORDS_EN)
    stemmer = Stemmer.Stemmer("english")
    return [stemmer.stemWord(word) for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in stop]


def test_bm25_ranks_as_the_formula_does() -> None:
    queries = [
        Query("q0", "What Mara Quill studies is", "geology", ("doc0#0",)),
        Query("q1", "Towns with a harbour near", "lakes", ("doc3#0", "doc1#0")),
    ]
    for query, got in zip(queries, BM25().rank(queries, PASSAGES), strict=True):
        scores = lucene_bm25(words(f"{query.prompt} {query.target}"), [words(text) for text in TEXTS])
        order = np.argsort(-scores, kind="stable")
        assert got.ranking == tuple(PASSAGES.names[number] for number in order)
        assert got.gold_ranks == tuple(int(np.flatnonzero(order == int(name[3]))[0]) for name in query.gold)


def test_bm25_weighs_repetition_and_length_as_the_formula_does() -> None:
    generator = np.random.default_rng(0)
    vocabulary = [
        first + second + "o" for first in ("bra", "kel", "mut", "dov") for second in ("z", "x", "q", "v", "w")
    ]
    texts = [" ".join(generator.choice(vocabulary, size=size)) for size in generator.integers(3, 60, size=83)]
    passages = WrittenPassages([f"d#{number}" for number in range(83)], texts)
    queries = [
        Query(f"q{number}", " ".join(generator.choice(vocabulary, 3, replace=False)), "kelqo") for number in range(9)
    ]
    for query, got in zip(queries, BM25().rank(queries, passages), strict=True):
        scores = lucene_bm25(words(f"{query.prompt} {query.target}"), [words(text) for text in texts])
        along_ranking = scores[passages.numbers(got.ranking)]
        assert len(got.ranking) == 83
        assert (np.diff(along_ranking) < 1e-5).all()


def test_bm25_reads_prompt_and_target() -> None:
    rankings = BM25().rank(
        [Query("a", "Mara Quill", "geology", ("doc0#0",)), Query("b", "Mara Quill", "Port Selwyn", ("doc2#0",))],
        PASSAGES,
    )
    assert [each.ranking[0] for each in rankings] == ["doc0#0", "doc2#0"]


def test_bm25_answers_a_query_of_unknown_words() -> None:
    (got,) = BM25().rank([Query("q", "zzz", "qqq", ("doc3#0",))], PASSAGES)
    assert got.ranking == tuple(PASSAGES.names)
    assert got.gold_ranks == (3,)


def test_random_depends_on_seed_and_query_only() -> None:
    passages = WrittenPassages([f"p#{number}" for number in range(503)])
    queries = [Query(f"q{number}", "", "", (f"p#{number}",)) for number in range(5)]
    rows = RandomRanking(seed=4).rank(queries, passages)
    assert rows[3:4] == RandomRanking(seed=4).rank(queries[3:4], passages), "alone = among others"
    assert rows != RandomRanking(seed=5).rank(queries, passages)
    assert all(len(set(each.ranking)) == 100 for each in rows)


def test_random_reaches_what_chance_allows() -> None:
    # One gold passage among N: the expected reciprocal rank is the harmonic number of N over N.
    total, count = 100, 2000
    passages = WrittenPassages([f"p#{number}" for number in range(total)])
    queries = [Query(f"q{number}", "", "", (f"p#{number % total}",)) for number in range(count)]
    values = retrieval(RandomRanking(seed=0).rank(queries, passages))
    expected = sum(1 / rank for rank in range(1, total + 1)) / total
    spread = math.sqrt((sum(1 / rank**2 for rank in range(1, total + 1)) / total - expected**2) / count)
    assert abs(values["mrr"].mean() - expected) < 4 * spread
    assert abs(values["hit@10"].mean() - 0.1) < 4 * math.sqrt(0.09 / count)


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_a_ranking_is_the_same_however_its_scores_come(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many equal scores, against a stable sort."""
    monkeypatch.setattr(ranking, "AT_ONCE", at_once)
    passages = WrittenPassages([f"doc{n}#0" for n in range(50)])
    scores_N = np.random.default_rng(0).integers(0, 5, 50).astype(np.float32)
    order = np.argsort(-scores_N, kind="stable").tolist()
    query = Query("q", "", "", tuple(f"doc{n}#0" for n in (7, 31, 49, 0)))
    for depth in (1, 9, 50, 60):
        got = rank_by_scores(query, scores_N, passages, depth)
        assert got.ranking == tuple(f"doc{n}#0" for n in order[:depth])
        assert got.gold_ranks == tuple(order.index(n) for n in (7, 31, 49, 0))


def test_scores_rank_stably_and_refuse_nan() -> None:
    query = Query("q", "", "", ("doc4#0", "doc0#0"))
    got = rank_by_scores(query, np.array([0.0, 2.0, 0.0, -1.0, 0.0]), PASSAGES, depth=3)
    assert got.ranking == ("doc1#0", "doc0#0", "doc2#0")
    assert got.gold_ranks == (3, 1)
    with pytest.raises(UserError, match="doc2#0 is not finite"):
        rank_by_scores(query, np.array([0, 1, math.nan, 0, 0]), PASSAGES)
    with pytest.raises(ValueError, match="5 passages"):
        rank_by_scores(query, np.zeros(4), PASSAGES)


def test_gold_that_is_not_in_the_corpus_is_refused_by_name() -> None:
    with pytest.raises(MismatchError, match="1 gold passage") as caught:
        RandomRanking().rank([Query("q", "", "", ("doc0#0", "elsewhere#9"))], PASSAGES)
    assert "elsewhere#9" in str(caught.value)


def test_a_probe_becomes_a_query() -> None:
    probe = {
        "example_id": "p1",
        "prompt": "Mara Quill studies",
        "target": "geology",
        "gold": ["doc0#0"],
        "fact_id": "f",
    }
    assert as_query(probe, 0) == Query("p1", "Mara Quill studies", "geology", ("doc0#0",))
    assert as_query({"example_id": 7, "prompt": "", "target": "x"}, 0).gold == ()


def test_trak_is_its_formula_over_whole_rows():
    draw = torch.Generator().manual_seed(2)
    rows_ND, queries_QD = torch.randn(41, 7, generator=draw), torch.randn(3, 7, generator=draw)
    phi, asked = rows_ND.double().numpy(), queries_QD.double().numpy()
    moment = phi.T @ phi
    moment += 0.01 * np.trace(moment) / 7 * np.eye(7)
    np.testing.assert_allclose(trak_scores(queries_QD, rows_ND).numpy(), asked @ np.linalg.inv(moment) @ phi.T)
    # An invertible change of coordinates changes nothing, but for the damping; dot products it does change.
    turned = torch.randn(7, 7, generator=draw)
    plain, other = (trak_scores(queries_QD @ m, rows_ND @ m, 1e-9) for m in (torch.eye(7), turned))
    torch.testing.assert_close(plain, other, atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match="dimensions"):
        trak_scores(torch.zeros(1, 9000), torch.zeros(2, 9000))
