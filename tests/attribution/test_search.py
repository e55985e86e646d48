"""The scan against TrackStar's formula, computed directly in float64 with R^{-1/2} on both sides."""

import numpy as np
import pytest
import torch

from headwater.attribution.curvature.task import paper_lambda
from headwater.attribution.index.errors import IncompleteIndexError
from headwater.attribution.index.reader import open_index
from headwater.attribution.index.shards import ShardFile
from headwater.attribution.index.writer import IndexWriter
from headwater.attribution.search.blocks import Scan
from headwater.attribution.search.full_ranking import ROUNDING, gold_ranks, ranked, score_all
from headwater.attribution.search.options import Exclusion, ScanOptions, Source
from headwater.attribution.search.reading import read_ahead
from headwater.attribution.search.scan import scan
from headwater.attribution.search.scorer import BlockScorer, Scoring
from headwater.attribution.search.topk import NOBODY, TopK
from headwater.configs.errors import MismatchError, UserError

from .dense_formula import LAYOUT, N, build, dense_scores, queries_of
from .synthetic_rows import make_rows


@pytest.fixture(scope="module")
def rows_ND():
    return make_rows(LAYOUT, N)


@pytest.fixture(scope="module", params=["full", "kronecker"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def index(tmp_path_factory, rows_ND, kind):
    return build(tmp_path_factory.mktemp("index"), rows_ND, kind=kind)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, rows_ND, kind):
    return build(tmp_path_factory.mktemp("sharded"), rows_ND, shard_rows=47, kind=kind)


@pytest.mark.parametrize("count", [1, 7, 500])
def test_scan_is_the_dense_formula(index, sharded, rows_ND, count, kind):
    queries_QD = queries_of(count)
    expected = dense_scores(rows_ND, queries_QD, kind=kind)
    for each in (index, sharded):
        assert np.abs(score_all([Source(each, queries_QD)]) - expected).max() < 1e-4
        result = scan([Source(each, queries_QD)], ScanOptions(top_k=10, bottom_k=4))
        best = np.sort(expected, axis=1)[:, ::-1]
        assert np.abs(result.scores - best[:, :10]).max() < 1e-4
        assert np.abs(result.bottom_scores - best[:, ::-1][:, :4]).max() < 1e-4
        found = np.take_along_axis(expected, result.passages, axis=1)
        assert np.abs(found - result.scores).max() < 1e-4
        assert result.complete
        assert result.scanned == N


@pytest.mark.parametrize(
    ("curvature", "normalize"), [("train", True), ("none", True), ("none", False), ("train", False)]
)
def test_other_scores_from_the_same_index(index, rows_ND, curvature, normalize, kind):
    queries_QD = queries_of(7)
    if curvature == "train":
        expected = dense_scores(rows_ND, queries_QD, kind=kind, lambda_=0, normalize=normalize)
    else:
        rows, queries = rows_ND.double().numpy(), queries_QD.double().numpy()
        if normalize:
            rows, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, queries))
        expected = queries @ rows.T
    got = score_all([Source(index, queries_QD)], ScanOptions(scoring=Scoring(curvature=curvature, normalize=normalize)))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_an_index_without_curvature(tmp_path, rows_ND):
    plain = build(tmp_path, rows_ND, kind="none")
    queries_QD = queries_of(5)
    rows, queries = (each.double().numpy() for each in (rows_ND, queries_QD))
    expected = queries @ rows.T
    expected /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    got = score_all([Source(plain, queries_QD)], ScanOptions(scoring=Scoring(curvature="none")))
    assert np.abs(got - expected).max() < 1e-5
    with pytest.raises(UserError, match="needs the corpus's curvature"):
        paper_lambda(plain.whitening, queries_QD)


def test_gold_ranks_are_the_places_in_the_full_ranking(sharded, rows_ND):
    queries_QD = queries_of(7)
    scores = score_all([Source(sharded, queries_QD)])
    golds = [[5, 300], [0], [], [332, 1, 2], [7], [8], [9]]
    got = gold_ranks([Source(sharded, queries_QD)], golds)
    for q, each in enumerate(golds):
        order = np.lexsort((np.arange(N), -scores[q])).tolist()
        assert got[q].tolist() == [order.index(gold) for gold in each]


@pytest.mark.parametrize("codec", ["fp32", "int8"])
@pytest.mark.parametrize("rounding", [ROUNDING, 1e-12])
def test_gold_ranks_of_equal_scores_in_one_pass(tmp_path, rows_ND, codec, rounding, monkeypatch):
    """Rows that are there many times, cut into odd blocks; where rounding is thought too little of, another pass is
    made. Once the blocks are enough: what goes by near a gold score is counted by value."""
    monkeypatch.setattr("headwater.attribution.search.full_ranking.ROUNDING", rounding)
    monkeypatch.setattr("headwater.attribution.search.full_ranking.HELD", 50)
    monkeypatch.setattr("headwater.attribution.search.blocks.BLOCK_BYTES", 4 * LAYOUT.dims * 21)
    index = build(tmp_path, rows_ND[torch.arange(N) % 9], shard_rows=50, codecs=[codec], kind="kronecker")
    source = Source(index, queries_of(4))
    golds = [[17, 300, 8, 26], [0], [], [331, 332]]
    found, got = ranked([source], golds, ScanOptions(top_k=6))
    scores = score_all([source])
    for q, each in enumerate(golds):
        order = np.lexsort((np.arange(N), -scores[q])).tolist()
        assert got[q].tolist() == [order.index(gold) for gold in each]
        assert found.passages[q].tolist() == order[:6]


def test_indexes_are_added_with_their_weights(index, sharded, tmp_path, rows_ND, kind):
    other_rows = make_rows(LAYOUT, N, seed=5)
    other = build(tmp_path / "other", other_rows, shard_rows=101, kind=kind)
    q1, q2 = queries_of(4), make_rows(LAYOUT, 4, seed=5, rows_seed=77)
    got = score_all([Source(sharded, q1, weight=0.3), Source(other, q2, weight=2.0)])
    assert (
        np.abs(got - (0.3 * dense_scores(rows_ND, q1, kind=kind) + 2 * dense_scores(other_rows, q2, kind=kind))).max()
        < 2e-4
    )
    stranger = build(tmp_path / "stranger", other_rows, corpus="another")
    with pytest.raises(MismatchError, match="another corpus"):
        scan([Source(sharded, q1), Source(stranger, q1)])
    with pytest.raises(UserError, match="different queries"):
        scan([Source(sharded, q1), Source(other, q2[:2])])


def test_excluded_passages_and_pairs_do_not_turn_up(sharded):
    queries_QD = queries_of(3)
    plain = scan([Source(sharded, queries_QD)], ScanOptions(top_k=5, bottom_k=5))
    gone = plain.passages[0, 0]
    pair = np.array([[1, plain.passages[1, 1]], [1, plain.bottom_passages[1, 0]]])
    result = scan(
        [Source(sharded, queries_QD)], ScanOptions(top_k=5, bottom_k=5), exclude=Exclusion(np.array([gone]), pair)
    )
    assert gone not in result.passages
    assert result.passages[0, :4].tolist() == plain.passages[0, 1:].tolist()
    assert pair[0, 1] not in result.passages[1]
    assert pair[1, 1] not in result.bottom_passages[1]


def test_more_places_than_passages(sharded):
    result = scan([Source(sharded, queries_of(2))], ScanOptions(top_k=1000))
    assert result.passages.shape == (2, N)
    assert sorted(result.passages[0]) == list(range(N))


def test_a_row_of_zeros_scores_nothing(tmp_path, rows_ND):
    rows = rows_ND.clone()
    rows[17] = 0
    index = build(tmp_path, rows)
    for curvature in ("task", "train", "none"):
        scores = score_all([Source(index, queries_of(3))], ScanOptions(scoring=Scoring(curvature=curvature)))
        assert np.all(scores[:, 17] == 0)


def test_two_stages_rescore_the_candidates(tmp_path, rows_ND):
    index = build(tmp_path, rows_ND, shard_rows=50, codecs=["int8", "fp32"])
    queries_QD = queries_of(9)
    exact = scan([Source(index, queries_QD)], ScanOptions(top_k=10, bottom_k=10, codec="fp32"))
    two = scan(
        [Source(index, queries_QD)], ScanOptions(top_k=10, bottom_k=10, codec="int8", rescore="fp32", candidates=33)
    )
    assert np.array_equal(two.passages, exact.passages)
    assert np.allclose(two.scores, exact.scores, atol=1e-6)
    assert np.array_equal(two.bottom_passages, exact.bottom_passages)
    again = scan(
        [Source(index, queries_QD, recompute=lambda passages: rows_ND[torch.from_numpy(passages)])],
        ScanOptions(top_k=10, codec="int8", rescore="recompute", candidates=30),
    )
    assert np.array_equal(again.passages, exact.passages)
    assert np.allclose(again.scores, exact.scores, atol=1e-6)
    # A query's candidates do not depend on the other queries.
    alone = scan(
        [Source(index, queries_QD[:1], task_queries=queries_QD)],
        ScanOptions(top_k=10, codec="int8", rescore="fp32", candidates=10),
    )
    together = scan([Source(index, queries_QD)], ScanOptions(top_k=10, codec="int8", rescore="fp32", candidates=10))
    assert np.array_equal(alone.passages[0], together.passages[0])


def test_bad_options_are_refused(index, sharded):
    with pytest.raises(UserError, match="lambda must lie"):
        scan([Source(index, queries_of(2))], ScanOptions(scoring=Scoring(task_weight=1.0)))
    with pytest.raises(UserError, match="unknown curvature"):
        Scoring(curvature="fisher")
    with pytest.raises(UserError, match="holds no codec int8"):
        scan([Source(index, queries_of(2))], ScanOptions(codec="int8"))
    with pytest.raises(MismatchError, match="query rows do not fit"):
        scan([Source(index, queries_of(2)[:, :-1])])
    queries_QD = queries_of(2)
    queries_QD[1, 5] = torch.inf
    with pytest.raises(UserError, match="query rows hold NaN or infinity"):
        scan([Source(index, queries_QD)])


def test_an_unfinished_index_is_refused_or_says_so(tmp_path, rows_ND):
    index = build(tmp_path, rows_ND, shard_rows=100)
    whitening = index.whitening
    writer = IndexWriter(
        tmp_path / "half", layout=LAYOUT, passages=N, whitening=whitening, codecs=["fp32"], meta={}, shard_rows=100
    )
    writer.begin()
    writer.write(1, rows_ND[100:200])
    with pytest.warns(UserWarning, match="100 of 333 passages"):
        half = open_index(tmp_path / "half")
    assert not half.complete
    with pytest.raises(IncompleteIndexError, match="100 of 333"):
        scan([Source(half, queries_of(2))])
    result = scan([Source(half, queries_of(2))], ScanOptions(top_k=5, allow_incomplete=True))
    assert not result.complete
    assert result.scanned == 100
    assert result.passages.min() >= 100
    assert result.passages.max() < 200


@pytest.mark.parametrize("block", [1, 3, 50, 200])
def test_ties_go_to_the_lowest_passages_however_the_scores_are_cut(block):
    """Scores of four values only, so that the k-th is shared by many, against a sort by score and number."""
    generator = np.random.default_rng(3)
    scores_NQ = generator.integers(0, 4, (200, 5)).astype(np.float32)
    scores_NQ[generator.random((200, 5)) < 0.1] = -np.inf
    scores_NQ[:, 4] = -np.inf  # nothing is left of it
    scores_NQ[7, 4] = 1.0
    best = TopK(5, 9)
    order = generator.permutation(200)  # candidates come in any order
    for start in range(0, 200, block):
        part = order[start : start + block]
        best.add(torch.from_numpy(scores_NQ[part]), torch.from_numpy(part))
    got_scores, got_passages = best.result()
    for query in range(5):
        wanted = sorted((-score, n) for n, score in enumerate(scores_NQ[:, query].tolist()) if score > -np.inf)[:9]
        count = len(wanted)
        assert got_passages[query].tolist() == [n for _, n in wanted] + [NOBODY] * (9 - count)
        assert got_scores[query, :count].tolist() == [-score for score, _ in wanted]


@pytest.mark.parametrize("candidates", [1, 3, 40, 10_000])
def test_a_candidate_is_scored_again_for_its_own_queries(tmp_path, rows_ND, candidates):
    """Against the ranking by fp32 of the candidates that int8 finds; few candidates go pair by pair."""
    index = build(tmp_path, rows_ND, shard_rows=50, codecs=["int8", "fp32"])
    queries_QD = queries_of(100)
    first, exact = (score_all([Source(index, queries_QD)], ScanOptions(codec=codec)) for codec in ("int8", "fp32"))
    options = ScanOptions(top_k=3, bottom_k=2, codec="int8", rescore="fp32", candidates=candidates)
    made = []
    with pytest.MonkeyPatch.context() as patch:
        init = BlockScorer.__init__
        patch.setattr(
            BlockScorer, "__init__", lambda self, *given, **named: (made.append(1), init(self, *given, **named))[0]
        )
        found = scan([Source(index, queries_QD)], options)
    assert len(made) == 2  # one for each stage
    for q in range(100):
        kept = max(candidates, 3)
        inside = np.lexsort((np.arange(N), -first[q]))[:kept]
        wanted = inside[np.lexsort((inside, -exact[q, inside]))][:3]
        assert found.passages[q].tolist() == wanted.tolist()
        assert found.scores[q] == pytest.approx(exact[q, wanted], abs=1e-6)


def test_candidates_are_a_whole_number(index):
    for wrong in (0, 0.05, 2.5):
        with pytest.raises(UserError, match="two stages need candidates"):
            scan([Source(index, queries_of(2))], ScanOptions(rescore="fp32", candidates=wrong))


def test_shards_are_asked_for_ahead_and_let_go_of(tmp_path, rows_ND, monkeypatch):
    """Two indexes with other shards, blocks that end in neither: every row once, in order, and all is let go of."""
    one = build(tmp_path / "one", rows_ND, shard_rows=47, codecs=["int8"])
    two = build(tmp_path / "two", rows_ND, shard_rows=101, codecs=["fp32"])
    pieces = [(start, min(start + 13, N)) for start in range(0, N, 13) if start not in (26, 130)]
    asked, gone = [], []
    for name, told in (("ask", asked), ("let_go", gone)):
        real = getattr(ShardFile, name)

        def noted(shard, *rows, real=real, told=told):
            told.append((shard.path.name, rows))
            real(shard, *rows)

        monkeypatch.setattr(ShardFile, name, noted)
    seen = []
    for start, stop, (coded, plain) in read_ahead([(one, "int8"), (two, "fp32")], iter(pieces)):
        assert torch.equal(coded["code"], one.fields("int8", start, stop)["code"])
        assert torch.equal(plain["row"], two.fields("fp32", start, stop)["row"])
        seen.append((start, stop))
        assert len(asked) > len(gone)
    assert seen == pieces
    assert sorted(asked) == sorted(gone)


@pytest.mark.parametrize("codec", ["fp32", "int8", "int4", "sign"])
@pytest.mark.parametrize("count", [11, 64])
def test_one_product_for_queries_and_directions(tmp_path, rows_ND, codec, count, monkeypatch):
    """The same scores as from two; int8 nearer to the dense formula. With a task of others, or fewer directions than
    the queries span, there is no such basis."""
    index = build(tmp_path, rows_ND, shard_rows=47, codecs=[codec], kind="kronecker")
    monkeypatch.setattr("headwater.attribution.search.scorer.BASIS_BYTES", 4 * 96 * 20)
    queries_QD = queries_of(count)
    source = Source(index, queries_QD)
    work = Scan([source], ScanOptions())
    assert work.scorers[0]._basis is not None
    got = score_all([source])
    float_NQ = BlockScorer(work.prepared[0], index.codec(codec), integer=False).scores(index.fields(codec, 0, N))
    monkeypatch.setattr("headwater.attribution.search.scorer.shared_basis", lambda *_: None)
    direct = score_all([source])
    coarse = {"fp32": 1e-5, "int8": 2e-3}.get(codec, 2e-2)
    assert np.abs(got - direct).max() < coarse
    assert np.abs(got - float_NQ.T.numpy()).max() < {"fp32": 1e-5, "int8": 1e-4}.get(codec, 2e-2)
    monkeypatch.undo()
    for other in (
        Scan([Source(index, queries_QD, task_queries=make_rows(LAYOUT, 20, rows_seed=3))], ScanOptions()),
        Scan([source], ScanOptions(scoring=Scoring(rank=5))),
        Scan([source], ScanOptions(scoring=Scoring(curvature="train"))),
    ):
        assert other.scorers[0]._basis is None
