"""Metrics and intervals against values worked out by hand, and the properties an interval must have."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from headwater.attribution.evaluation import metrics
from headwater.attribution.evaluation.bootstrap import interval, paired, resampled_means
from headwater.attribution.evaluation.ranking import Ranking, read_rankings, write_rankings
from headwater.attribution.evaluation.table import build_table, console_tables, format_interval, ordered, write_table
from headwater.configs.errors import CorruptError, MismatchError, MissingError, UserError

RANKS = [[0, 4, 11], [3], [250, 10], [9, 8, 7, 6]]


def test_metrics_worked_out_by_hand() -> None:
    np.testing.assert_allclose(metrics.reciprocal_rank(RANKS), [1, 1 / 4, 1 / 11, 1 / 7])
    np.testing.assert_allclose(metrics.recall(RANKS, 10), [2 / 3, 1, 0, 1])
    np.testing.assert_allclose(metrics.hit(RANKS, 10), [1, 1, 0, 1])
    np.testing.assert_allclose(metrics.precision(RANKS, 10), [0.2, 0.1, 0, 0.4])
    np.testing.assert_allclose(metrics.strict(RANKS, 10), [0, 1, 0, 1])
    np.testing.assert_allclose(metrics.strict(RANKS, 12), [1, 1, 0, 1])
    # Rank 9 is the tenth place: the last one that counts at k = 10, and the first that does not at k = 9.
    np.testing.assert_allclose(metrics.hit([[9], [10]], 10), [1, 0])
    np.testing.assert_allclose(metrics.hit([[9], [10]], 9), [0, 0])


def test_metrics_refuse_ranks_that_cannot_be() -> None:
    for bad in ([[]], [[2, 2]], [[-1]]):
        with pytest.raises(ValueError, match="query 0"):
            metrics.reciprocal_rank(bad)


def test_queries_without_gold_are_left_out_and_none_at_all_is_an_error() -> None:
    rankings = [Ranking("a", ("x",), (1,)), Ranking("b", ("x",), ())]
    values = metrics.retrieval(rankings)
    assert {key: value.tolist() for key, value in values.items()} == {
        "mrr": [0.5],
        "recall@10": [1.0],
        "hit@10": [1.0],
        "precision@10": [0.1],
    }
    elsewhere = metrics.retrieval(rankings, ["recall@1", "strict@2", "mrr"])
    assert {key: value.tolist() for key, value in elsewhere.items()} == {
        "recall@1": [0.0],
        "strict@2": [1.0],
        "mrr": [0.5],
    }
    with pytest.raises(UserError, match="no query has gold"):
        metrics.retrieval(rankings[1:])


def test_planted_and_own_passages_are_ranked_as_if_the_others_were_not_there() -> None:
    rankings = [
        Ranking("a", ("x",), (0, 1, 5), (3, 20)),  # after two planted passages: the second place, 1 / 2
        Ranking("b", ("x",), (2,), ()),  # the corpus's own text does not state it
        Ranking("c", ("x",), (0, 1, 2, 3, 4, 5), (16,)),  # the tenth beyond six planted ones, from 0
        Ranking("d", ("x",), (9,), (0,)),
    ]
    values = metrics.retrieval(rankings)
    np.testing.assert_allclose(values["own_mrr"], [1 / 2, 1 / 11, 1])
    np.testing.assert_allclose(values["own_hit@10"], [1, 0, 1])
    np.testing.assert_allclose(values["mrr"], [1, 1 / 3, 1, 1 / 9])
    np.testing.assert_allclose(values["hit@10"], 1)
    assert [each.gold_ranks for each in rankings] == [(0, 1, 5), (2,), (0, 1, 2, 3, 4, 5), (9,)]


def test_interval_of_a_coin_agrees_with_the_binomial() -> None:
    # 30 heads of 100: the bootstrap mean is Binomial(100, .3) / 100, whose 2.5% and 97.5% points are .21 and .39.
    values = np.array([1.0] * 30 + [0.0] * 70)
    mean, low, high = interval(values, seed=3)
    assert mean == pytest.approx(0.3)
    assert low == pytest.approx(0.21, abs=0.011)
    assert high == pytest.approx(0.39, abs=0.011)


def test_interval_is_seeded_narrows_with_queries_and_collapses_on_a_constant() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=400)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)
    _, low, high = interval(values)
    _, low_few, high_few = interval(values[:25])
    assert high - low < 0.5 * (high_few - low_few)
    assert interval(np.full(7, 0.25)) == [0.25, 0.25, 0.25]


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        _, low, high = interval(generator.exponential(size=60), resamples=400, seed=trial)
        covered += low <= 1.0 <= high
    assert 0.87 <= covered / 300 <= 0.98


def test_blocks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=37)
    whole = resampled_means(values, 100, seed=5)
    monkeypatch.setattr("headwater.attribution.evaluation.bootstrap.BLOCK_VALUES", 37 * 7)
    np.testing.assert_array_equal(resampled_means(values, 100, seed=5), whole)
    assert whole.shape == (100,)


def test_interval_refuses_nan_and_nothing() -> None:
    with pytest.raises(ValueError, match="not finite"):
        interval(np.array([0.1, math.nan]))
    with pytest.raises(ValueError, match="one value per query"):
        interval(np.array([]))


def test_paired_sees_a_small_steady_gain_that_separate_intervals_do_not() -> None:
    generator = np.random.default_rng(2)
    base = generator.uniform(size=120)
    better = base + 0.03 + generator.normal(scale=0.02, size=120)
    result = paired(better, base)
    assert result.apart
    assert result.difference[0] == pytest.approx(float((better - base).mean()))
    assert result.wins + result.losses + result.ties == 120
    assert interval(better)[1] < interval(base)[2], "the separate intervals overlap, or this shows nothing"
    shuffled = paired(generator.permutation(base), base)
    assert not shuffled.apart
    with pytest.raises(ValueError, match="same queries"):
        paired(base, base[:-1])


def rankings(name: str, ranks: list[list[int]]) -> list[Ranking]:
    return [Ranking(f"q{number}", (name,), tuple(each)) for number, each in enumerate(ranks)]


def test_table_has_order_intervals_counts_and_comparisons(tmp_path) -> None:
    table = build_table(
        {
            "random": rankings("r", [[90], [40], [7]]),
            "headwater": rankings("h", [[0], [1], [0]]),
            "bm25": rankings("b", [[0]] * 3),
        },
        {"gold": np.array([0.05, 0.07]), "headwater": np.array([0.04, 0.05]), "random": np.array([-0.01, 0.0])},
        resamples=500,
    )
    assert list(table["methods"]) == ["headwater", "bm25", "random", "gold"]
    headwater = table["methods"]["headwater"]
    assert headwater["mrr"][0] == pytest.approx((1 + 0.5 + 1) / 3)
    assert headwater["queries"] == 3
    assert headwater["tail_patch_queries"] == 2
    assert table["methods"]["gold"] == {
        "tail_patch": pytest.approx([0.06, 0.05, 0.07]),
        "tail_patch_queries": 2,
        "queries": 2,
    }
    against_random = [row for row in table["comparisons"] if row["against"] == "random"]
    assert {row["metric"] for row in against_random} == {"mrr", "recall@10", "hit@10", "precision@10", "tail_patch"}
    mrr = next(row for row in against_random if row["metric"] == "mrr")
    assert (mrr["wins"], mrr["losses"], mrr["ties"]) == (3, 0, 0)

    write_table(tmp_path / "table.json", table)
    assert json.loads((tmp_path / "table.json").read_text()) == json.loads(json.dumps(table))

    text = printed(table, 160)
    assert text.index("Headwater") < text.index("BM25") < text.index("Random") < text.index("Gold")
    assert ".833 [" in text
    assert "+.060 [+.050, +.070]" in text

    wide = {key: [0.5, 0.125, 0.875] for key in ("mrr", "recall@10", "hit@10", "precision@10")}
    wide_row = {**wide, "tail_patch": [-0.05, -0.062, -0.043], "queries": 3}
    narrow = printed({"methods": {**table["methods"], "gradient_cosine": wide_row}}, 80)
    assert max(map(len, narrow.splitlines())) <= 80
    for words in ("+.060", "+.050–+.070", "−.062–−.043", ".125–.875", "Recall@10", "Tail-patch", "over 3 queries"):
        assert words in narrow
    assert "…" not in narrow
    further = {"headwater": {**wide_row, "recall@50": [0.75, 0.625, 0.875], "strict@10": [0.5, 0.125, 0.875]}}
    narrow = printed({"methods": further}, 80)
    assert "Recall@50" in narrow
    assert "Strict@10" in narrow
    assert "…" not in narrow
    assert "Recall@10" in printed({"methods": further}, 160)


def printed(table: dict, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(*console_tables(table, console.width))
    return console.export_text()


def test_table_refuses_methods_that_answered_different_queries() -> None:
    with pytest.raises(MismatchError, match="same queries"):
        build_table({"headwater": rankings("h", [[0], [1]]), "bm25": rankings("b", [[0]])})


def test_the_corpuss_own_text_has_a_table_of_its_own() -> None:
    plain = {"headwater": rankings("h", [[0], [1]]), "random": rankings("r", [[90], [40]])}
    own = {name: [Ranking(r.example_id, r.ranking, r.gold_ranks, (r.gold_ranks[0] + 3,)) for r in each[:1]] + each[1:]
           for name, each in plain.items()}  # fmt: skip
    table = build_table(own, {"gold": np.array([0.05])}, resamples=100)
    assert table["methods"]["headwater"]["own_mrr"][0] == pytest.approx(1 / 3)
    assert table["methods"]["headwater"]["own_queries"] == 1
    without = build_table(plain, {"gold": np.array([0.05])}, resamples=100)
    assert without["methods"]["headwater"].items() < table["methods"]["headwater"].items(), (
        "what was planted counts alone"
    )
    first, second = printed(table, 160).split("The corpus's own text")
    assert "Gold passages" in first
    assert "Gold passages" not in second
    assert ".333 [.333, .333]" in second
    assert "own text" not in printed(without, 160)
    assert max(map(len, printed(table, 80).splitlines())) <= 80


def test_order_and_formats() -> None:
    assert ordered(["random", "mine", "headwater", "gold", "trackstar"])[:2] == ["headwater", "trackstar"]
    assert ordered(["random", "mine", "headwater"])[-1] == "mine"
    assert format_interval("mrr", [1.0, 0.9994, 1.0]) == "1.000 [.999, 1.000]"
    assert format_interval("tail_patch", [-0.0012, -0.003, 0.001]) == "−.001 [−.003, +.001]"
    assert format_interval("mrr", None) == "–"


def test_rankings_survive_the_disk(tmp_path) -> None:
    path = tmp_path / "headwater.jsonl"
    rows = [Ranking("q/1", ("a#0", "über#1"), (0, 7)), Ranking("q/2", ("b#0",), ()), Ranking("q/3", (), (1,), (4, 2))]
    write_rankings(path, rows)
    assert read_rankings(path) == rows
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CorruptError, match="line 3"):
        read_rankings(path)
    with pytest.raises(MissingError, match="headwater evaluate"):
        read_rankings(tmp_path / "none.jsonl")
