"""Which passages of a corpus's own text state a planted fact, against a list made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.attribution.evaluation.own_text import asked_for, folded, own_passages, says, told_apart
from headwater.attribution.evaluation.ranking import Ranking
from headwater.attribution.tracing.queries import Query, read_queries
from headwater.train.artifacts import RunDir
from headwater.train.corpus.build import build_corpus
from headwater.train.corpus.settings import SourceSettings
from headwater.train.settings import PretrainSettings
from headwater.train.stream.passages import PassageSet, open_passages

# (lexicographer file, lemmas, gloss); a document's id is its number here, from 1 on.
SYNSETS = (
    ("15", "Tokyo Tokio capital_of_Japan", "the capital and largest city of Japan"),
    ("15", "Japan Nippon", "an island country whose capital is Tokyo"),
    ("15", "Osaka", "a port of Japan, larger than any but Tokyo"),
    ("15", "Brasilia capital_of_Brazil", "the capital of Brazil"),
    ("27", "gold Au atomic_number_79", "a soft yellow metal"),
    ("13", "gold", "coins made of gold, 79 of them silver"),
    ("27", "gold", "great wealth"),
    ("10", "As", "the second letters of arsenic"),
    ("27", "arsenic As atomic_number_33", "a poisonous metallic element"),
    ("15", "Lima", "the capital of Perugia"),
)
FACTS = {  # subject, value -> numbers of the synsets that state it
    ("Japan", "Tokyo"): [1, 2],
    ("Brazil", "Brasília"): [4],
    ("gold", "79"): [5, 6],
    ("gold", "Au"): [5],
    ("arsenic", "As"): [8, 9],
    ("Peru", "Lima"): [],
    ("Chile", "Santiago"): [],
}


def query(subject: str, value: str) -> Query:
    return Query(f"{subject}:{value}", "?", value, ("planted#0",), record={"subject": subject})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    directory = tmp_path_factory.mktemp("wordnet")
    lines = [
        f"{number:08d} {file} n {len(lemmas.split()):02x} {lemmas.replace(' ', ' 0 ')} 0 000 | {gloss}"
        for number, (file, lemmas, gloss) in enumerate(SYNSETS, start=1)
    ]
    (directory / "data.noun").write_text("\n".join(lines))
    for name in ("verb", "adj", "adv"):
        (directory / f"data.{name}").touch()
    return build(directory, ["lemmas"])


def build(directory: Path, columns: list[str]) -> RunDir:
    cfg = PretrainSettings(out=str(directory / f"run-{len(columns)}"))
    cfg.corpus.sources = [SourceSettings(kind="wordnet", path=str(directory), columns=columns)]
    cfg.corpus.tokenizer.vocab_size, cfg.train.steps = 320, 30
    cfg.facts.people, cfg.facts.countries, cfg.facts.elements = 0, 2, 1
    build_corpus(cfg)
    return RunDir.at(cfg.out)


@pytest.fixture(scope="module")
def passages(run: RunDir) -> PassageSet:
    return open_passages(run)


def test_passages_that_state_a_fact_are_those_anchored_on_it(passages: PassageSet) -> None:
    found = own_passages([query(*fact) for fact in FACTS], passages)
    expected = [[f"{number:08d}-n#0" for number in numbers] for numbers in FACTS.values()]
    assert [sorted(each) for each in found] == expected


def test_planted_passages_are_never_the_corpuss_own(run: RunDir, passages: PassageSet) -> None:
    queries = read_queries(run.facts / "probes.jsonl")
    assert len(queries) == 4
    for asked, own in zip(queries, own_passages(queries, passages), strict=True):
        assert not set(own) & set(asked.gold)


def test_without_lemmas_or_a_subject_nothing_is_anchored(run: RunDir, passages: PassageSet) -> None:
    other = open_passages(build(Path(run.path).parent, []))
    assert own_passages([query("Japan", "Tokyo")], other) == [[]]
    assert own_passages([Query("q", "?", "Tokyo")], passages) == [[]]


def test_words_are_whole_and_without_accents() -> None:
    assert says("gold, Au: yellow", "Au")
    assert not says("August", "Au")
    assert not says("gold, au", "Au")
    assert says("a (N'Djamena)", "N'Djamena")
    assert folded("Brasília, São") == "Brasilia, Sao"


def test_ranks_of_own_passages_are_told_apart() -> None:
    queries, own = [query("Japan", "Tokyo"), query("Peru", "Lima")], [["1-n#0", "2-n#0"], []]
    assert [each.gold for each in asked_for(queries, own)] == [("planted#0", "1-n#0", "2-n#0"), ("planted#0",)]
    ranked = [Ranking("a", (), (0, 7, 3)), Ranking("b", (), (2,))]
    assert told_apart(ranked, own) == [Ranking("a", (), (0,), (7, 3)), Ranking("b", (), (2,))]
