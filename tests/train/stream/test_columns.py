"""What documents bring along, from their records to the passages that they are cut into."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headwater.configs.errors import UserError
from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.columns import kept_values
from headwater.train.corpus.documents import describe_source, read_documents
from headwater.train.corpus.settings import SourceSettings
from headwater.train.stream.column_types import as_columns, joined_schema
from headwater.train.stream.columns import PassageColumns
from headwater.train.stream.passages import PassageSet, open_passages

from .conftest import make_texts, settings_for

RECORDS = {
    "a": [{"year": 1990 + n % 7, "place": f"town {n % 3}", "draft": n % 2 == 0} for n in range(40)],
    "b": [{"year": n / 2, "source": "wiki" if n % 2 else None} for n in range(30)],
}


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> PassageSet:
    """Two sources that bring different columns along, a file of Parquet among them, and invented facts."""
    here = tmp_path_factory.mktemp("columns")
    texts = dict(zip("ab", (make_texts(40), make_texts(30, seed=1)), strict=True))
    rows = {
        name: [{"id": f"{name}-{n}", "text": texts[name][n], **more} for n, more in enumerate(each)]
        for name, each in RECORDS.items()
    }
    (here / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["a"]))
    pq.write_table(pa.Table.from_pylist(rows["b"]), here / "b.parquet")
    cfg = settings_for(here / "run", here / "a.jsonl", people=2)
    cfg.corpus.sources[0].columns = ["year", "place", "draft"]
    cfg.corpus.sources.append(SourceSettings(kind="parquet", path=str(here / "b.parquet"), columns=["source", "year"]))
    build_corpus(cfg)
    return open_passages(RunDir.at(cfg.out))


def test_every_passage_has_what_its_document_brought(passages: PassageSet) -> None:
    columns = PassageColumns(passages)
    assert columns.names == ["source", "id", "document", "length", "year", "place", "draft"]
    read = columns.read(columns.names, 0, len(passages))
    assert read["year"].type == pa.float64()  # whole numbers in one source, halves in the other
    assert read["draft"].type == pa.bool_()
    injected = 0
    for number, (name, document) in enumerate(zip(read["id"].to_pylist(), read["document"].to_pylist(), strict=True)):
        assert passages.id_of(number) == name
        source, _, place = document.partition("-")
        expected = RECORDS[source][int(place)] if source in RECORDS else {}
        injected += not expected
        for column in ("year", "place", "draft"):
            assert read[column][number].as_py() == expected.get(column)
        file = {"a": "a.jsonl", "b": "b.parquet"}.get(source, "facts")
        assert read["source"][number].as_py().endswith(expected.get("source") or file)
    assert injected == passages.corpora[1].passages > 0


@pytest.mark.parametrize("span", [(0, 1), (7, 23), (31, None), (40, 40)])
def test_a_range_is_a_part_of_the_whole(passages: PassageSet, span: tuple[int, int | None]) -> None:
    columns = PassageColumns(passages)
    start, stop = span[0], len(passages) if span[1] is None else span[1]
    for name in ("source", "year", "length"):
        whole = columns.read([name], 0, len(passages))[name].to_pylist()
        assert columns.read([name], start, stop)[name].to_pylist() == whole[start:stop]


def test_types_that_meet() -> None:
    made = as_columns([{"a": 1, "b": True, "c": None}, {"a": 2.5, "b": "x"}, {"d": 3}])
    assert {name: each.to_pylist() for name, each in made.items()} == {
        "a": [1.0, 2.5, None],
        "b": ["True", "x", None],
        "c": [None, None, None],
        "d": [None, None, 3],
    }
    schemas = [pa.schema([("a", kind), ("b", pa.null())]) for kind in (pa.null(), pa.int64(), pa.float64())]
    assert joined_schema(schemas) == pa.schema([("a", pa.float64()), ("b", pa.string())])
    assert joined_schema([*schemas, pa.schema([("a", pa.bool_())])]).field("a").type == pa.string()
    assert kept_values(["n"], {"n": 2**70}, "here") == {"n": float(2**70)}


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "one", "tags": ["a"]}) + "\n")
    source = SourceSettings(kind="jsonl", path=str(path), columns=["tags"])
    with pytest.raises(UserError, match=r"a.jsonl:1 has something in 'tags' that cannot be kept"):
        list(read_documents(source))
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column 'year'"):
        list(read_documents(SourceSettings(kind="parquet", path=str(tmp_path / "a.parquet"), columns=["year"])))
    for wrong in (["id"], ["and"], ["two words"], ["year", "year"]):
        assert [p.key for p in SourceSettings(kind="jsonl", path="a", columns=wrong).problems()] == ["columns"]
    assert [p.key for p in SourceSettings(columns=["year"]).problems()] == ["columns"]


def test_a_corpus_without_columns_is_described_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    source = SourceSettings(kind="jsonl", path=str(tmp_path / "a.jsonl"))
    assert "columns" not in describe_source(source)
    source.columns = ["year"]
    assert describe_source(source)["columns"] == ["year"]
