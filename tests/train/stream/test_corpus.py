import itertools
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from headwater.configs.errors import CorruptError, MismatchError, MissingError
from headwater.train.artifacts import fingerprint, read_json
from headwater.train.compat import declare_torchvision_operators
from headwater.train.corpus.documents import read_documents
from headwater.train.mosaic import part_of
from headwater.train.stream.corpus import UNMARKED, open_corpus
from headwater.train.stream.passages import PassageSet, open_passages
from headwater.train.stream.verified import notes_directory
from headwater.train.tokenizer import TextTokenizer


@pytest.fixture
def copied(run, tmp_path):
    """A base corpus that a test may damage."""
    shutil.copytree(run.corpus / "base", tmp_path / "base")
    return tmp_path / "base"


def test_every_token_of_every_document_is_in_exactly_one_passage(built, run):
    tokenizer = TextTokenizer.from_file(run.tokenizer)
    corpus = open_corpus(run.corpus / "base")
    pieces = {}
    for number, passage_id in enumerate(corpus.ids(0, corpus.passages)):
        document, _, place = passage_id.rpartition("#")
        tokens = corpus.tokens(number)
        assert tokens[0] == tokenizer.bos_id
        assert len(tokens) == corpus.lengths[number] <= built.corpus.max_tokens
        pieces.setdefault(document, {})[int(place)] = tokens[1:]
    documents = list(read_documents(built.corpus.sources[0]))
    assert len(documents) == len(pieces) == corpus.manifest["documents"]
    for document in documents:
        parts = pieces[document.id]
        joined = np.concatenate([parts[place] for place in range(len(parts))])
        assert joined.tolist() == tokenizer.encode(document.text).tolist()
    assert corpus.manifest["tokens"] == sum(len(part) + 1 for parts in pieces.values() for part in parts.values())


def test_passages_are_numbered_in_the_order_of_the_shards(run):
    corpus = open_corpus(run.corpus / "base")
    assert len(corpus.manifest["shards"]) > 2
    number = 0
    for place in range(corpus.sequences):
        packed, ids = corpus.shards.read(place)
        assert packed.first_passage == number
        assert ids == corpus.ids(number, number + len(ids))
        assert packed.lengths.tolist() == corpus.lengths[number : number + len(ids)].tolist()
        assert packed.lengths.sum() == len(packed.tokens) <= corpus.manifest["seq_len"]
        assert corpus.sequence_of[number : number + len(ids)].tolist() == [place] * len(ids)
        number += len(ids)
    assert number == corpus.passages


def test_passages_are_shuffled_before_packing(run):
    corpus = open_corpus(run.corpus / "base")
    documents = [passage_id.rpartition("#")[0] for passage_id in corpus.ids(0, corpus.passages)]
    neighbours = sum(a == b for a, b in itertools.pairwise(documents))
    assert neighbours < 0.05 * corpus.passages


def test_mosaicml_can_open_the_shards(run, copied):
    corpus = open_corpus(run.corpus / "base")
    index = json.loads((run.corpus / "base" / "index.json").read_text())
    assert sum(shard["samples"] for shard in index["shards"]) == corpus.sequences
    assert [shard["raw_data"]["basename"] for shard in index["shards"]] == [
        shard["file"] for shard in corpus.manifest["shards"]
    ]
    declare_torchvision_operators()
    import streaming

    # What was imported of it before, alone, is what the whole package has.
    assert streaming.MDSWriter is part_of("format.mds.writer").MDSWriter
    dataset = streaming.StreamingDataset(local=str(copied), batch_size=1, shuffle=False)
    assert len(dataset) == corpus.sequences
    for number, theirs in enumerate(dataset):
        ours, ids = corpus.shards.read(number)
        assert np.array_equal(theirs["tokens"], ours.tokens)
        assert np.array_equal(theirs["lengths"], ours.lengths)
        assert (theirs["first_passage"], theirs["passage_ids"]) == (ours.first_passage, ids)


def test_a_set_numbers_base_first(run):
    passages = open_passages(run)
    base, injected = passages.corpora
    assert passages.passages == base.passages + injected.passages
    assert passages.ids(base.passages - 2, base.passages + 2) == [
        *base.ids(base.passages - 2, base.passages),
        *injected.ids(0, 2),
    ]
    for number in (0, base.passages - 1, base.passages, passages.passages - 1):
        assert passages.number_of(passages.ids(number, number + 1)[0]) == number
        assert len(passages.tokens(number)) == passages.lengths[number]
    assert passages.tokens(base.passages + 3).tolist() == injected.tokens(3).tolist()
    for wrong in (-1, passages.passages):
        with pytest.raises(IndexError):
            passages.tokens(wrong)
    with pytest.raises(MissingError, match="nobody#0"):
        passages.number_of("nobody#0")


def test_a_truncated_shard_is_named(copied):
    shard = copied / "00001" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptError, match=f"{shard} is truncated"):
        open_corpus(copied).verify()


def test_a_changed_byte_is_found_before_anything_is_read_from_its_shard(copied):
    shard = copied / "00001" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    corpus = open_corpus(copied)
    corpus.sequence(0)  # the first shard is whole
    with pytest.raises(CorruptError, match=f"{shard} is corrupt"):
        corpus.sequence(corpus.manifest["shards"][0]["sequences"])


def test_missing_and_foreign_files_are_named(copied, tmp_path):
    (copied / "00001" / "shard.00000.mds").unlink()
    with pytest.raises(MissingError, match="00001"):
        open_corpus(copied).verify()
    table = copied / "passages.parquet"
    table.write_bytes(table.read_bytes()[:-8])
    with pytest.raises(CorruptError, match=r"passages\.parquet"):
        open_corpus(copied).ids(0, 1)
    with pytest.raises(MissingError, match=r"no manifest\.json"):
        open_corpus(tmp_path)
    (copied / "manifest.json").write_text('{"format": "something-else"}')
    with pytest.raises(CorruptError, match="headwater-corpus-1"):
        open_corpus(copied)


def test_corpora_of_different_tokenizers_are_not_put_together(run, copied):
    manifest = {**json.loads((copied / "manifest.json").read_text()), "tokenizer": "0" * 32}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptError, match="is not as it was written"):
        open_corpus(copied)
    covered = {name: value for name, value in manifest.items() if name not in UNMARKED}
    (copied / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": fingerprint(covered)}))
    with pytest.raises(MismatchError, match="different tokenizers"):
        PassageSet([open_corpus(run.corpus / "base"), open_corpus(copied)])


def test_passages_under_one_numbering_have_their_own_ids_and_texts(run):
    passages, tokenizer = open_passages(run), TextTokenizer.from_file(run.tokenizer)
    base, injected = passages.corpora
    assert len(passages) == len(base) + len(injected)
    for number in (0, len(base) - 1, len(base), len(passages) - 1):
        corpus, local = (base, number) if number < len(base) else (injected, number - len(base))
        assert passages.id_of(number) == corpus.ids(local, local + 1)[0]
        assert passages.find(passages.id_of(number)) == passages.number_of(passages.id_of(number)) == number
        assert passages.text(number) == tokenizer.decode(corpus.tokens(local)).strip() != ""
    assert passages.find("elsewhere#9") is None
    with pytest.raises(MissingError, match="elsewhere#9"):
        passages.number_of("elsewhere#9")
    with pytest.raises(MissingError, match="without their tokenizer"):
        PassageSet(passages.corpora).text(0)


def test_two_passages_of_one_id_are_refused(run, monkeypatch):
    corpus = open_corpus(run.corpus / "base")
    names = corpus.ids(0, len(corpus))
    monkeypatch.setattr(corpus, "ids", lambda start, stop: [names[1], *names[1:]][start:stop])
    with pytest.raises(CorruptError, match="not unique"):
        _ = corpus.numbers


def test_memory_of_decoded_sequences_is_bounded(run, monkeypatch):
    monkeypatch.setattr("headwater.train.stream.corpus.CACHED_TOKENS", 500)
    corpus = open_corpus(run.corpus / "base")
    first = corpus.sequence(0).tokens.tolist()
    for number in range(corpus.sequences):
        corpus.sequence(number)
        assert sum(len(packed.tokens) for packed in corpus._cached.values()) <= 500
    assert corpus.sequence(0).tokens.tolist() == first


def test_the_table_has_the_promised_columns(run):
    schema = pq.read_schema(run.corpus / "base" / "passages.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "passage": "int64",
        "id": "string",
        "document": "string",
        "sequence": "int64",
        "offset": "int32",
        "length": "int32",
    }


def test_some_passages_are_looked_up_by_row_group(copied, run, monkeypatch):
    """In a table of many small row groups, as a large corpus has."""
    table = pq.read_table(copied / "passages.parquet")
    pq.write_table(table, copied / "passages.parquet", row_group_size=7)
    monkeypatch.setattr("headwater.train.stream.corpus.check_once", lambda path, entry: None)
    many, injected = open_corpus(copied), open_corpus(run.corpus / "injected")
    passages, whole = PassageSet([many, injected]), open_passages(run)
    numbers = np.random.default_rng(0).permutation(len(passages))[:60]
    numbers = np.concatenate([numbers, [0, len(many) - 1, len(many), len(passages) - 1, 0]])
    assert passages.lengths_of(numbers).tolist() == whole.lengths[numbers].tolist()
    names = [whole.id_of(int(number)) for number in numbers]
    assert passages.numbers_of(names).tolist() == numbers.tolist()
    assert many.find({*names, "nobody#0"}) == {name: n for name, n in zip(names, numbers, strict=True) if n < len(many)}
    assert passages.numbers_of([]).tolist() == []
    assert passages.ids_of(numbers[::-1]) == names[::-1]
    assert passages.found({*names, "nobody#0"}) == dict(zip(names, numbers.tolist(), strict=True))
    assert passages.lengths_of(np.zeros(0, dtype=np.int64)).tolist() == []
    assert not {"_places", "numbers"} & vars(many).keys()
    with pytest.raises(MissingError, match="nobody#0"):
        passages.numbers_of([names[0], "nobody#0"])


def test_shards_are_described_once_and_compared_once_a_machine(copied, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "machine"))
    (tmp_path / "machine").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    parsed, hashed = [], []
    from headwater.train.stream import shards

    monkeypatch.setattr(shards, "read_json", lambda path, **given: parsed.append(path) or read_json(path, **given))
    read = shards.fingerprint_file
    monkeypatch.setattr(shards, "fingerprint_file", lambda path: hashed.append(path.parent.name) or read(path))
    for _ in range(2):  # another process of this machine would find what the first has noted
        corpus = open_corpus(copied)
        for number in range(corpus.sequences):
            corpus.sequence(number)
    names = [f"{number:05d}" for number in range(len(corpus.shards.shards))]
    assert len(names) > 2
    assert hashed == names
    assert len(parsed) == 2
    corpus.shards.verify()  # asked for, every byte is read
    assert hashed == names * 2
    shard = copied / "00001" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    again = open_corpus(copied)
    with pytest.raises(CorruptError, match=f"{shard} is corrupt"):
        again.sequence(again.manifest["shards"][0]["sequences"])


def test_nothing_is_noted_where_nothing_can_be(copied, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    assert notes_directory() is None
    assert len(open_corpus(copied).sequence(0).tokens) > 0
