import bz2
import gzip
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from headwater.configs.errors import CorruptError, MissingError, UserError
from headwater.train.corpus.documents import Document, read_documents
from headwater.train.corpus.settings import SourceSettings
from headwater.train.factbook import clean, factbook_texts, sentences_of

RECORDS = [{"id": f"d{n}", "text": f"Text number {n} \N{LATIN SMALL LETTER E WITH ACUTE}."} for n in range(50)]
EXPECTED = [Document(record["id"], record["text"]) for record in RECORDS]


def jsonl_bytes(records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def read(kind, path, **settings):
    return list(read_documents(SourceSettings(kind=kind, path=str(path), **settings)))


def test_jsonl_is_read_plain_and_compressed(tmp_path):
    data = jsonl_bytes(RECORDS)
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(data))
    # Two frames one after the other, as parallel compressors write them.
    halves = data[: len(data) // 2], data[len(data) // 2 :]
    (tmp_path / "c.jsonl.zst").write_bytes(b"".join(zstandard.compress(half) for half in halves))
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        assert read("jsonl", tmp_path / name) == EXPECTED, name


def test_files_of_a_directory_are_read_in_order_of_their_paths(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(jsonl_bytes(RECORDS[:2]))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.jsonl").write_bytes(jsonl_bytes([{"text": "no id"}, {"text": "nor here"}]))
    (tmp_path / "notes.md").write_text("not a corpus file")
    ids = [document.id for document in read("jsonl", tmp_path)]
    assert ids == ["a/z.jsonl:1", "a/z.jsonl:2", "d0", "d1"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_compressed_file_is_refused(tmp_path, suffix):
    compress = {"gz": gzip.compress, "zst": zstandard.compress}[suffix]
    path = tmp_path / f"cut.jsonl.{suffix}"
    path.write_bytes(compress(jsonl_bytes(RECORDS * 200))[:-40])
    with pytest.raises(CorruptError, match=re.escape(str(path))):
        read("jsonl", path)


def test_bad_lines_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "text": "fine"}\n{"id": "b", "text": \n')
    with pytest.raises(CorruptError, match=r"bad\.jsonl:2 is not JSON"):
        read("jsonl", path)
    path.write_text("[1, 2]\n")
    with pytest.raises(CorruptError, match=r"bad\.jsonl:1 is not a JSON object"):
        read("jsonl", path)
    path.write_text('{"id": "a", "content": "fine"}\n')
    with pytest.raises(UserError, match="no text under 'text'") as caught:
        read("jsonl", path)
    assert "content" in str(caught.value)
    assert read("jsonl", path, text_field="content") == [Document("a", "fine")]


def test_nothing_at_the_path_is_missing(tmp_path):
    with pytest.raises(MissingError, match="has no files"):
        read("jsonl", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="has no files"):
        read("parquet", tmp_path / "empty")


def test_parquet_is_read_by_columns(tmp_path):
    table = pa.Table.from_pylist([{**record, "other": 1} for record in RECORDS])
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    assert read("parquet", tmp_path) == EXPECTED
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-30])
    with pytest.raises(CorruptError, match=r"x\.parquet"):
        read("parquet", tmp_path)


def save_to_disk(directory, files):
    """What `datasets.Dataset.save_to_disk` leaves: Arrow stream files and the state that lists them."""
    directory.mkdir(parents=True)
    names = []
    for number, records in enumerate(files):
        names.append({"filename": f"data-{number:05d}-of-{len(files):05d}.arrow"})
        table = pa.Table.from_pylist(records)
        with (
            pa.OSFile(str(directory / names[-1]["filename"]), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table, max_chunksize=9)
    (directory / "state.json").write_text(json.dumps({"_data_files": names, "_fingerprint": "x", "_split": "train"}))


def test_a_hugging_face_dataset_on_disk_is_read(tmp_path):
    save_to_disk(tmp_path / "set" / "train", [RECORDS[:20], RECORDS[20:]])
    assert read("huggingface", tmp_path / "set" / "train") == EXPECTED
    with pytest.raises(MissingError, match=r"state\.json") as caught:
        read("huggingface", tmp_path / "set")
    assert str(tmp_path / "set" / "train") in str(caught.value)
    (tmp_path / "set" / "train" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(MissingError, match="data-00001"):
        read("huggingface", tmp_path / "set" / "train")


def test_a_folder_of_text_files_is_read(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("Second.")
    (tmp_path / "a.txt").write_text("First.")
    (tmp_path / "empty.txt").write_text("  \n")
    assert read("text", tmp_path) == [Document("a.txt", "First."), Document("b/two.md", "Second.")]
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptError, match=r"bad\.txt"):
        read("text", tmp_path)


def test_html_becomes_plain_text():
    text = clean("<p>Caf&eacute; <b>note:</b> a &lt; b<br><br>next<!--x--> , end</p>")
    assert text == "Caf\N{LATIN SMALL LETTER E WITH ACUTE} note: a < b next, end"
    nested = {"Area": {"total ": {"text": "7 sq km"}, "note": "small"}, "Growth": {"Growth 2024": {"text": "1%"}}}
    assert sentences_of(nested) == "Area: total: 7 sq km; small. Growth: 2024: 1%."


def test_the_factbook_is_whole_and_clean():
    texts = dict(factbook_texts())
    assert len(texts) > 2500
    assert all(re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", each) for each in texts)
    assert sum(map(len, texts.values())) > 6_000_000
    assert not [each for each, text in texts.items() if re.search(r"</?[a-z]+[ >]|&[a-z]+;", text)]
    assert texts["algeria/geography"].startswith("Algeria: Geography. Location: Northern Africa")


def test_other_compressions_and_forms_are_read_or_named(tmp_path):
    """What looks like documents and is not read is not passed over without a word."""
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(jsonl_bytes(RECORDS)))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".gitattributes").write_text("")
    (tmp_path / ".cache.json").write_text("{}")
    assert read("jsonl", tmp_path) == EXPECTED
    for name in ("b.json", "b.jsonl.xz", "b.ndjson", "b.bz2", "deep/b.json.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}")
        with pytest.raises(UserError, match=f"also holds {re.escape(name)}, which is not read"):
            read("jsonl", tmp_path)
        path.unlink()
    assert read("jsonl", tmp_path) == EXPECTED


def test_half_of_a_surrogate_pair_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    for record, what in ((r'{"id": "a", "text": "b\ud800"}', "text"), (r'{"id": "\udc00", "text": "b"}', "id")):
        path.write_text('{"text": "whole \\ud83d\\ude00"}\n' + record + "\n")
        with pytest.raises(CorruptError, match=rf"the {what} at .*a\.jsonl:2 is no Unicode text") as error:
            read("jsonl", path)
        str(error.value).encode()
    path.write_text('{"text": "whole \\ud83d\\ude00"}\n')
    assert read("jsonl", path) == [Document("a.jsonl:1", "whole \N{GRINNING FACE}")]


LINES = {"deep": '{"text": ' + "[" * 100_000, "digits": '{"id": ' + "7" * 5000 + "}", "rest": '{"text": "a"}x'}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_json_that_python_cannot_hold_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(CorruptError, match=r"a\.jsonl:2 is not JSON"):
        read("jsonl", tmp_path)


def test_line_separators_inside_texts_separate_no_records(tmp_path):
    text = "one\u2028two\x85three\x0bfour\x1cfive"
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": text, "text": text}, ensure_ascii=False) + "\r\n")
    assert read("jsonl", tmp_path) == [Document(text, text)]


def test_parquet_with_bytes_that_are_not_utf8(tmp_path):
    good = pa.array([b"fine"] * 1500 + [b"bad \xff"] + [b"fine"], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), len(good), good.buffers())})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(CorruptError, match=r"x\.parquet:1501 has bytes in 'text' that are not UTF-8"):
        read("parquet", tmp_path)


def test_parquet_lists_the_columns_that_it_has(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "content": ["b"], "url": ["c"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="no column 'text'") as error:
        read("parquet", tmp_path)
    assert error.value.got == "the columns ['id', 'content', 'url']"
    assert "text_field" in error.value.fix
    assert "corpus." not in error.value.fix  # the key's section differs from command to command


def test_a_column_twice_is_named(tmp_path):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "id", "id"])
    pq.write_table(twice, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="the column 'id' 2 times"):
        read("parquet", tmp_path)
    assert read("parquet", tmp_path, id_field="none") == [Document("x.parquet:1", "a")]


def test_ids_of_any_type(tmp_path):
    nanoseconds = pa.array([1, 1_600_000_000_123_456_789], pa.timestamp("ns"))
    columns = {
        "time": (nanoseconds, None),
        "second": (pa.array([0, 1], pa.timestamp("s")), ["1970-01-01 00:00:00", "1970-01-01 00:00:01"]),
        "number": (pa.array([2**63 - 1, -1]), [str(2**63 - 1), "-1"]),
        "word": (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    }
    for name, (column, expected) in columns.items():
        pq.write_table(pa.table({"text": ["x", "y"], "id": column}), tmp_path / "x.parquet")
        found = [document.id for document in read("parquet", tmp_path)]
        assert found == (expected or found), name
        assert len(set(found)) == 2


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    with pytest.raises(UserError, match="a name that is not UTF-8") as error:
        read("text", tmp_path)
    str(error.value).encode()
