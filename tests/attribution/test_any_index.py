"""Methods on anybody's index: golds by id and by text, other programs' results, the baselines beside."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from headwater.attribution import Attributor
from headwater.attribution.evaluation import golds
from headwater.attribution.evaluation.baselines.encoder import Encoder
from headwater.attribution.evaluation.baselines.tfidf import TfIdf
from headwater.attribution.evaluation.baselines.trak import Trak
from headwater.attribution.evaluation.evaluate import evaluate
from headwater.attribution.evaluation.golds import with_gold_columns, with_gold_ids
from headwater.attribution.evaluation.metrics import retrieval
from headwater.attribution.evaluation.outside import outside_rankings
from headwater.attribution.evaluation.ranking import rank_by_scores, read_rankings
from headwater.attribution.index.build import build_index
from headwater.attribution.settings import WAYS, EvaluateSettings, IndexSettings
from headwater.attribution.tracing.queries import Query
from headwater.configs import load_config
from headwater.configs.errors import ConfigError, CorruptError, MismatchError, UserError

from .written import WrittenPassages

TEXTS = [
    "Mara Quill studies geology, and nothing but geology.",
    "Tobin Ash works as glassblower near harbour towns",
    "Mara Quill lives near Port Selwyn harbour",
    "rivers and lakes cover much land",
    "Mara Quill lives near Port Selwyn harbour",
]
PASSAGES = WrittenPassages([f"doc{number}#0" for number in range(len(TEXTS))], TEXTS)
QUERIES = [
    Query("a", "Where does Mara Quill live?", "Port Selwyn", ("doc2#0",)),
    Query("b", "Tobin Ash works as", "glassblower", ("doc1#0", "doc3#0")),
]


def test_gold_is_an_id_a_document_or_a_text() -> None:
    pieces = WrittenPassages(["d#0", "d#1", "e#0"], ["one", "two", "three"])
    assert with_gold_ids([Query("a", "p", "t", ("d", "three"))], pieces)[0].gold == ("d#0", "d#1", "e#0")
    long = WrittenPassages([f"d#{n}" for n in range(130)] + ["d#200"], ["x"] * 131)
    assert with_gold_ids([Query("a", "p", "t", ("d",))], long)[0].gold == tuple(f"d#{n}" for n in range(130))
    given = [Query("a", "p", "t", (TEXTS[0], "doc1#0")), Query("b", "p", "t", ("  " + TEXTS[2] + "\n", "doc2#0"))]
    assert [query.gold for query in with_gold_ids(given, PASSAGES)] == [("doc0#0", "doc1#0"), ("doc2#0",)]
    with pytest.raises(MismatchError, match="1 gold passage") as caught:
        with_gold_ids([Query("a", "p", "t", ("doc9#0",))], PASSAGES)
    assert "doc0#0" in str(caught.value)


def test_facts_with_counterfactual_entities_are_judged_as_date_lm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gold by both entities, recall at 50 and the mean reciprocal rank, against their definition over all passages."""
    rng = np.random.default_rng(4)
    columns = {
        "true_entity": [["Oslo", "Paris", None][n] for n in rng.integers(0, 3, 211)],
        "counterfactual_entity": [["Orvik", "Lund"][n] for n in rng.integers(0, 2, 211)],
    }
    written = SimpleNamespace(
        names=[*columns, "other"],
        read=lambda names, start, stop: {name: pa.array(columns[name][start:stop]) for name in names},
    )
    passages = WrittenPassages([f"d{n}#0" for n in range(211)])
    asked = [("Oslo", "Lund"), ("Paris", "Orvik"), ("Paris", "Lund"), ("Oslo", "Orvik")]
    queries = [Query(str(n), "p", "t", record=dict(zip(columns, each, strict=True))) for n, each in enumerate(asked)]
    monkeypatch.setattr(golds, "AT_ONCE", 50)
    found = with_gold_columns(queries, passages, written, list(columns))
    scores_QN = rng.normal(size=(4, 211))
    values = retrieval(
        [rank_by_scores(query, scores_N, passages) for query, scores_N in zip(found, scores_QN, strict=True)],
        ["recall@50", "mrr"],
    )
    pairs = list(zip(*columns.values(), strict=True))
    for row, (fact, scores_N) in enumerate(zip(asked, scores_QN, strict=True)):
        places = [place for place, number in enumerate(np.argsort(-scores_N)) if pairs[number] == fact]
        assert values["recall@50"][row] == np.mean(np.array(places) < 50) != values["recall@50"][row - 1]
        assert values["mrr"][row] == 1 / (1 + places[0])
    (alone,) = with_gold_columns(queries[:1], passages, written, ["true_entity"])
    assert len(alone.gold) == columns["true_entity"].count("Oslo") > len(found[0].gold), "both entities count"
    with pytest.raises(MismatchError, match="no column that gold is told by") as caught:
        with_gold_columns(queries, passages, written, ["entity"])
    assert "other" in str(caught.value)
    with pytest.raises(MismatchError, match="query 0 does not say"):
        with_gold_columns(queries, passages, written, ["other"])


def test_values_of_a_question_are_compared_as_the_column_has_them() -> None:
    columns = {
        "year": pa.array([1991, 1, None, 1991, 0], pa.int32()),
        "name": pa.array(["1991", "1", "x", None, "True"]),
        "kind": pa.array(["a", "b", "a", "b", "a"]).dictionary_encode(),
        "share": pa.array([0.1, 1.0, 0.5, None, 0.0], pa.float32()),
        "draft": pa.array([True, False, None, True, True]),
    }
    written = SimpleNamespace(
        names=list(columns), read=lambda names, start, stop: {name: columns[name][start:stop] for name in names}
    )

    def gold(name: str, *values: object) -> list[list[int]]:
        queries = [Query(f"q{n}", "p", "t", record={name: value}) for n, value in enumerate(values)]
        found = with_gold_columns(queries, PASSAGES, written, [name])
        return [PASSAGES.numbers(query.gold) for query in found]

    assert gold("year", "1991", 1991, 1991.0, 1) == [[0, 3], [0, 3], [0, 3], [1]]
    assert gold("name", 1991, "1", "x") == [[0], [1], [2]]
    assert gold("kind", "a", "b") == [[0, 2, 4], [1, 3]]
    assert gold("share", 0.1, "0.5", 1) == [[0], [2], [1]]
    assert gold("draft", True, False) == [[0, 3, 4], [1]]
    for name, value in (
        *(("year", value) for value in (True, "none", 1990, 1991.5, 2**40)),
        *(("name", True), ("kind", "c"), ("share", False), ("draft", 1), ("draft", "true")),
    ):
        with pytest.raises(MismatchError, match=rf"1 question\(s\) have values in {name} that no passage") as caught:
            gold(name, columns[name][1].as_py(), value)
        assert f"q1: {value!r}" in str(caught.value)
        assert "q0" not in str(caught.value)


def lines(path: Path, *records: dict) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def test_results_are_joined_by_id_and_what_is_not_listed_is_not_found(tmp_path: Path) -> None:
    ids = lines(
        tmp_path / "ids.jsonl",
        {"example_id": "b", "proponent_ids": ["doc0#0", "doc1#0"]},
        {"example_id": "a", "proponent_ids": ["doc4#0", "doc2#0"]},
    )
    texts = lines(
        tmp_path / "texts.jsonl",
        {"example_id": "a", "inputs_plaintext": "", "proponents": [TEXTS[3], TEXTS[2]]},
        {"example_id": "b", "inputs_plaintext": "", "proponents": [TEXTS[1], TEXTS[1]]},
    )
    a, b = outside_rankings(ids, QUERIES, PASSAGES)
    assert (a.gold_ranks, b.gold_ranks) == ((1,), (1, 4))
    a, b = outside_rankings(texts, QUERIES, PASSAGES)
    assert (a.ranking, a.gold_ranks) == (("doc3#0", "doc2#0"), (1,))
    assert b.gold_ranks == (0, 4)


@pytest.mark.parametrize("turned", [False, True])
def test_a_matrix_of_scores(tmp_path: Path, turned: bool) -> None:
    scores_QN = np.array([[0.1, 0.5, 0.3, 0.2, 0.0], [3.0, 2.0, 1.0, 9.0, 0.0]], dtype=np.float32)
    np.save(tmp_path / "scores.npy", scores_QN.T if turned else scores_QN)
    a, b = outside_rankings(tmp_path / "scores.npy", QUERIES, PASSAGES)
    assert (a.gold_ranks, b.gold_ranks) == ((1,), (2, 0))
    np.save(tmp_path / "scores.npy", scores_QN[:, :4])
    with pytest.raises(MismatchError, match="another shape"):
        outside_rankings(tmp_path / "scores.npy", QUERIES, PASSAGES)


def test_results_of_others_are_refused_by_name(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", {"example_id": "a", "proponent_ids": []})
    with pytest.raises(MismatchError, match="does not answer every question"):
        outside_rankings(one, QUERIES, PASSAGES)
    strange = lines(tmp_path / "strange.jsonl", *({"example_id": name, "proponents": ["?"]} for name in "ab"))
    with pytest.raises(MismatchError, match="no passages of this corpus"):
        outside_rankings(strange, QUERIES, PASSAGES)
    broken = lines(tmp_path / "broken.jsonl", {"example_id": "a", "proponents": "text"})
    with pytest.raises(CorruptError, match="line 1"):
        outside_rankings(broken, QUERIES, PASSAGES)
    (tmp_path / "pickled.npy").write_bytes(b"\x80\x04N.")
    with pytest.raises(CorruptError, match="cannot be read"):
        outside_rankings(tmp_path / "pickled.npy", QUERIES, PASSAGES)


def test_settings_say_what_they_lack() -> None:
    for given, key in (
        (["index=x"], "queries"),
        (["queries=q.jsonl"], "queries"),
        (["baselines=[encoder]"], "encoder"),
        (["baselines=[trak]"], "baselines"),
        (["gold_columns=[year]"], "gold_columns"),
        (["more_metrics=[recall@0]"], "more_metrics"),
        (["more_metrics=[mrr]"], "more_metrics"),
        (["index=x", "queries=q", "results.bm25=r.jsonl"], "results"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(EvaluateSettings, None, given)
        assert [problem.key for problem in caught.value.problems] == [key]


def test_tfidf_is_the_cosine_of_word_weights() -> None:
    """The formula, by hand: idf = 1 + ln((1 + n) / (1 + df)), rows of unit norm."""
    texts = ["harbour", "harbour harbour lake", "lake", "mountain"]
    passages = WrittenPassages([f"d{n}#0" for n in range(4)], texts)
    got_QN = TfIdf().scores([Query("q", "the harbours", "unheard")], passages)
    second = np.array([1 + np.log(2), 1.0]) * (1 + np.log(5 / 3))
    np.testing.assert_allclose(got_QN[0], [1, second[0] / np.linalg.norm(second), 0, 0], atol=1e-6)
    assert TfIdf().scores([Query("q", "nobody", "knows")], passages).tolist() == [[0, 0, 0, 0]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a tokenizer of characters, pooled by the mean."""
    from headwater.train.compat import declare_torchvision_operators

    declare_torchvision_operators()
    import torch
    import transformers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("encoder")
    letters = {letter: n for n, letter in enumerate(["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz "])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    transformers.BertModel(config).save_pretrained(path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return path


def test_an_encoder_pools_what_is_there(encoder: Path) -> None:
    """Against the model asked one text at a time, without padding."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    model = transformers.AutoModel.from_pretrained(encoder).eval()

    def embedded(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=32)).last_hidden_state[0]
        return hidden.mean(0) / hidden.mean(0).norm()

    got_QN = Encoder(str(encoder)).scores(QUERIES, PASSAGES)
    for query, row_N in zip(QUERIES, got_QN, strict=True):
        expected = [float(embedded(f"{query.prompt} {query.target}") @ embedded(text)) for text in TEXTS]
        np.testing.assert_allclose(row_N, expected, atol=1e-5)


def test_a_pooling_that_is_not_known_is_refused(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "config.json").write_text((encoder / "config.json").read_text())
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(UserError, match="pools in a way"):
        Encoder(str(tmp_path))
    with pytest.raises(UserError, match="holds no sentence encoder"):
        Encoder(str(tmp_path / "nothing"))


def test_every_method_stands_beside_the_others(tiny_run: Path, tmp_path: Path) -> None:
    """On one index, gold told by a column; TRAK against its formula in float64."""
    index = tmp_path / "index"
    settings = ["curvature.kind=none", "projection.dims=2", "codecs=[fp32]"]
    build_index(load_config(IndexSettings, None, [f"model.run={tiny_run}", f"out={index}", *settings]))
    with Attributor.open(index) as attributor:
        passages, rows_ND = attributor.passages, attributor.opened[0].index.rows(0, len(attributor.passages))
        asked = [(passages.id_of(number), *passages.text(number).rsplit(" ", 1)) for number in (3, 41, 200)]
        rows_QD = attributor.rows([(prompt, target) for _, prompt, target in asked])
    fields = ("id", "prompt", "target")
    queries = lines(tmp_path / "q.jsonl", *(dict(zip(fields, each, strict=True)) for each in asked))
    told = ["gold_columns=[id]", "more_metrics=[strict@50]", "baselines=[bm25,tfidf,ngram,trak,random]"]
    table = evaluate(load_config(EvaluateSettings, None, [f"index={index}", f"queries={queries}", *told]))
    methods = table["methods"]
    assert {*methods} == {*WAYS, "bm25", "tfidf", "ngram", "trak", "random"}
    assert methods["ngram"]["mrr"] == methods["ngram"]["strict@50"] == [1, 1, 1], "each is asked for its own text"
    assert methods["random"]["mrr"][0] < 0.5
    phi = rows_ND.double().numpy()
    moment = phi.T @ phi / len(phi)
    moment += 0.01 * np.trace(moment) / len(moment) * np.eye(len(moment))
    order_QN = np.argsort(-(rows_QD.double().numpy() @ np.linalg.solve(moment, phi.T)), axis=1)
    for order_N, each in zip(order_QN, read_rankings(tmp_path / "index-evaluation/trak.jsonl"), strict=True):
        assert each.ranking[:20] == tuple(passages.ids_of(order_N[:20]))


def test_trak_is_not_asked_for_whitened_rows() -> None:
    whitened = SimpleNamespace(path="there", whitening=SimpleNamespace(kind="kronecker"))
    with pytest.raises(UserError, match="there are whitened"):
        Trak(SimpleNamespace(opened=[SimpleNamespace(index=whitened)]))  # type: ignore[arg-type]
