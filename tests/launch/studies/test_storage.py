"""The storage study: corpora, probes and shares against references, its claims, and a study from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headwater.configs import ConfigError, UserError, load_config
from headwater.configs.errors import MismatchError
from headwater.launch.parts import pool
from headwater.launch.studies.storage import study
from headwater.launch.studies.storage.data import CELEBRITY, Population, ensure_corpus, ensure_tokenizer
from headwater.launch.studies.storage.process import do_tasks
from headwater.launch.studies.storage.settings import StorageSettings, WindowSettings
from headwater.launch.studies.storage.shares import GROUPS, KINDS, kinds_of, shares, summarise
from headwater.launch.studies.storage.study import Storage, run_storage
from headwater.launch.studies.storage.summary import majority
from headwater.launch.studies.verdict import NOT_REPRODUCED, NOT_TESTABLE, REPRODUCED
from headwater.train.artifacts import RunDir
from headwater.train.callbacks.ledger_files import read_ledger
from headwater.train.corpus.settings import CorpusSettings
from headwater.train.facts.biographies import ATTRIBUTES, VARIANTS
from headwater.train.facts.settings import PopulationSettings
from headwater.train.stream.corpus import open_corpus
from headwater.train.stream.order import BLOCK, SequenceOrder
from headwater.train.stream.passages import open_passages

from ..forked_parts import killed_when
from .here import finisher

PEOPLE = PopulationSettings(
    people=24,
    first_names=4,
    middle_names=4,
    last_names=4,
    cities=5,
    universities=4,
    majors=4,
    employers=4,
    years=3,
    days=3,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storage")
    ensure_tokenizer(path / "tokenizer.json", Population(PEOPLE, 0), 512)
    return path


def corpus_of(home: Path, variant: str | None, share: float) -> Path:
    out = home / f"{variant}-{share}"
    settings = CorpusSettings(max_tokens=200, seq_len=256)
    ensure_corpus(out, settings, Population(PEOPLE, 0), home / "tokenizer.json", variant, share)
    return out


def test_passages_of_one_person_never_share_a_sequence(home: Path):
    corpus = open_corpus(corpus_of(home, "multi5+permute", 0.0))
    assert corpus.passages == 24 * 5
    owners = [name.rpartition("#")[0] for name in corpus.ids(0, corpus.passages)]
    held: dict[int, list[str]] = {}
    for owner, sequence in zip(owners, corpus.sequence_of.tolist(), strict=True):
        held.setdefault(sequence, []).append(owner)
    assert max(len(each) for each in held.values()) > 1, "sequences hold several passages"
    assert all(len(set(each)) == len(each) for each in held.values())


def test_questions_of_the_taught_half_alone_get_their_share_of_the_rows(home: Path):
    corpus, population = open_corpus(corpus_of(home, "single", 0.6)), Population(PEOPLE, 0)
    ids = corpus.ids(0, corpus.passages)
    asked = {each.document.replace("person/", "qa/") for each in (population.people[n] for n in population.asked)}
    of_questions = {name.rpartition("#")[0] for name in ids if name.startswith("qa/")}
    assert len(of_questions) == 12
    assert not of_questions & asked
    assert sum(name.startswith("person/") for name in ids) == 24
    span = corpus.sources[1]
    rows = SequenceOrder(corpus.sources, 0).sequences(np.arange(BLOCK))
    assert (rows >= span.first_sequence).mean() == pytest.approx(0.6, abs=0.01)


def test_celebrities_are_the_taught_half():
    population = Population(PEOPLE, 0)
    counts = [len(each) for each in population.biographies(CELEBRITY)]
    assert [counts[n] for n in population.taught] == [5] * 12
    assert [counts[n] for n in population.asked] == [1] * 12


def test_majority_by_hand():
    population = Population(PEOPLE, 0)
    values = {
        half: [population.people[n].values["major"] for n in getattr(population, half)] for half in ("taught", "asked")
    }
    counts = {value: values["taught"].count(value) for value in set(values["taught"])}
    common = min(value for value, count in counts.items() if count == max(counts.values()))
    found = majority([population])
    assert found["by_attribute"]["major"] == values["asked"].count(common) / 12
    assert found["mean"] == pytest.approx(np.mean(list(found["by_attribute"].values())))


def test_shares_by_hand():
    kinds = np.array([0, 1, 2, 2, 5, 4])
    scores = np.array([0.5, 0.3, 0.2, -1.0, 0.0, 0.1])
    found = shares(scores, kinds, top=2)
    assert found["top"] == pytest.approx([0.625, 0.375, 0, 0, 0, 0])
    assert found["all"] == pytest.approx([5 / 11, 3 / 11, 2 / 11, 0, 1 / 11, 0])
    assert found["expected"] == pytest.approx([1 / 6, 1 / 6, 2 / 6, 0, 1 / 6, 1 / 6])
    assert found["own_rank"] == 0
    row = {**found, "right": True, "person": 3}
    made = summarise([{"questions": [row, {**row, "right": False}]}], True)
    assert made["questions"] == 1
    assert made["all"]["groups"]["others' questions of the relation"] == pytest.approx(5 / 11)
    assert sum(made["all"]["groups"].values()) == pytest.approx(1)
    assert sum(map(len, GROUPS.values())) == len(KINDS)


def test_leads_are_of_seeds_and_of_the_people_of_each():
    """Person 3 of one seed is not person 3 of another: each seed's one lead is its own draw."""
    row = {"top": [0.0] * 6, "all": [0.5, *[0.1] * 5], "expected": [0.1] * 6, "own_rank": 0, "right": True, "person": 3}
    other = {**row, "all": [0.2, *[0.1] * 5]}
    made = summarise([{"questions": [row]}, {"questions": [other]}, {"questions": []}], None)
    assert made["own_lead"] == pytest.approx([0.25, 0.1, 0.4])


def test_kinds_of_passages():
    population = Population(PEOPLE, 0)
    subject, other = (population.people[n] for n in population.asked[:2])
    taught = population.people[population.taught[0]]
    question = population.questions([subject.number])[3]
    ids = [f"{subject.document}#0", f"{other.document}#0"]
    ids += [f"{taught.document.replace('person/', 'qa/')}#{k}" for k in (3, 2)]
    for answer in (other.values["major"], "Nothing"):
        kinds = kinds_of([question], [answer], ids, population)[0].tolist()
        same = taught.values["major"] == answer
        assert kinds == [0, 4 if answer != "Nothing" else 5, 1 if same else 2, 3]


def test_rewritten_people_are_nested_and_of_both_halves():
    population = Population(PEOPLE, 0)
    quarter, half = population.rewritten(0.25), population.rewritten(0.5)
    assert (len(quarter), len(half)) == (6, 12)
    assert quarter < half
    assert len(half & set(population.taught)) == 6
    counts = {n: len(each) for n, each in enumerate(population.biographies("rewritten-25"))}
    assert {n for n, count in counts.items() if count == 5} == quarter
    assert set(counts.values()) == {1, 5}
    assert population.rewritten(0.0) == set()
    assert population.biographies("rewritten-50", [min(half)]) == population.biographies("multi5+permute", [min(half)])


def test_shuffled_questions_ask_for_another_persons_values():
    population = Population(PEOPLE, 0)
    questions, shuffled = population.questions(population.asked), population.shuffled_questions()
    assert [each.prompt for each in shuffled] == [each.prompt for each in questions]
    by_person: dict[int, dict[str, str]] = {}
    for each in shuffled:
        by_person.setdefault(each.person, {})[each.attribute] = each.target
    given = [tuple(values.items()) for values in by_person.values()]
    own = {n: tuple(population.people[n].values.items()) for n in population.asked}
    assert sorted(given) == sorted(own.values()), "each person's values go to one other"
    assert all(tuple(by_person[n].items()) != own[n] for n in population.asked)


def test_a_window_says_at_which_steps_there_are_questions():
    assert [WindowSettings(first=a, last=b).steps(1000) for a, b in ((0, 0.5), (0.25, 0.75), (0.5, 1))] == [
        (1, 500),
        (251, 750),
        (501, 1000),
    ]
    assert WindowSettings(first=0.25, last=1).label == "25-100"


def test_settings_that_cannot_work_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(StorageSettings, None, ["variants=[single]", "q_probed=[multi5]", "provenance.variants=[multi2]"])
    assert "q_probed" in str(caught.value)
    assert "provenance.variants" in str(caught.value)
    for given, words in (
        ("windows=[{first: 0.5, last: 0.5}]", "more than first"),
        ("windows=[{first: 0, last: 1}, {first: 0, last: 1}]", "each once"),
        ("grid=[{name: a/b}]", "letters and figures"),
        ("grid=[{name: base}]", "other seeds than those that are reported"),
        ("lora_sizes=[{}]", "each once"),
        ("rewritten=[1.0]", "rewritten"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(StorageSettings, None, [given, "seeds=[100]"])
    with pytest.raises(ConfigError, match=r"model\.layerz"):
        Storage(load_config(StorageSettings, None, ["grid=[{name: base, pretrain: [model.layerz=3]}]"]))
    with pytest.raises(UserError, match="single5"):
        Storage(StorageSettings(variants=["single5"], out=str(tmp_path), q_probed=[], p_probed=[], lora_variants=[]))
    with pytest.raises(ConfigError, match=r"optimizer\.lrr"):
        Storage(StorageSettings(finetune=["optimizer.lrr=1"], out=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_the_preset_runs_all_sixteen_and_the_main_comparison_first():
    settings = load_config(StorageSettings, "study/storage")
    parts = Storage(settings).parts()
    assert {part.variant for part in parts if part.protocol == "pretrain"} == {*VARIANTS, CELEBRITY}
    repeated = len(settings.seeds) * 2 * len(settings.repeated)
    assert {part.variant for part in parts[:repeated]} == {"single", "multi5+permute"}
    assert len({part.path for part in parts}) == len(parts)


def test_the_long_preset_adds_parts_to_the_short_one():
    short, long = (Storage(load_config(StorageSettings, f"study/storage{name}")).parts() for name in ("", "-long"))
    known = {part.name: set(part.tasks) for part in long}
    assert all(set(part.tasks) <= known[part.name] for part in short)
    settings = load_config(StorageSettings, "study/storage-long")
    assert len({part.path for part in long}) == len(long)
    assert not set(settings.grid_seeds) & set(settings.seeds)
    kinds = [part.protocol for part in long]
    assert kinds.count("windowed") == len(settings.windows) * len(settings.windowed) > 0
    assert kinds.count("grid") == 2 * len(settings.grid) * len(settings.grid_seeds) > 0
    assert {part.variant for part in long} > {f"rewritten-{100 * share:g}" for share in settings.rewritten} != set()
    point = next(part for part in long if part.protocol == "grid")
    assert point.tasks[:2] == ("train", "told")
    assert all(task.startswith("places-") for task in point.tasks[2:])


TOY = [
    "train.steps=6",
    "model.layers=1",
    "model.hidden=32",
    "model.heads=2",
    "model.kv_heads=2",
    "model.ffn_hidden=64",
    "corpus.tokenizer.vocab_size=512",
    "corpus.max_tokens=200",
    "callbacks.probes.every=3",
    "checkpoint.every=2",
]


def toy(out: Path) -> list[str]:
    people = {name: getattr(PEOPLE, name) for name in PEOPLE.__slots__}
    fast = "{steps: 4, batch: 8, lr: 1e-3, embedding_rank: 4, rank: 2}"
    return [
        f"out={out}",
        f"population={json.dumps(people)}",
        f"pretrain={json.dumps(TOY)}",
        "variants=[single]",
        "mixed=[multi5+permute]",
        "rewritten=[0.5]",
        "windows=[{first: 0.5, last: 1}]",
        "windowed=[single]",
        "lora_sizes=[{name: small, steps: 2, batch: 8, embedding_rank: 2, rank: 1}]",
        "grid=[{name: narrow, people: 12, pretrain: [model.hidden=16], ranks: [1]}]",
        "finetune=[train.steps=4]",
        *(f"{name}={fast}" for name in ("lora", "q_probe", "p_probe")),
        *(f"{name}=[single]" for name in ("lora_variants", "q_probed", "p_probed", "repeated")),
        "provenance={variants: [multi5+permute], questions: 5, top: 4}",
        "provenance.index.projection.dims=4",
        "celebrity=false",
        "untrained=true",
        "seeds=[0]",
        "resamples=10",
        "parallel=1",
    ]


def test_a_study_of_before_there_was_a_search_for_a_size_goes_on(tmp_path: Path):
    given = [f"out={tmp_path}", "untrained=false"]
    made = Storage(load_config(StorageSettings, "study/storage", given))
    made._check_same()
    kept = json.loads((tmp_path / "study.json").read_text())
    for name in ("grid", "grid_seeds", "windows", "windowed", "rewritten", "lora_sizes", "untrained"):
        del kept["made_with"][name]
    (tmp_path / "study.json").write_text(json.dumps(kept))
    made._check_same()


@pytest.mark.slow
def test_a_study_from_end_to_end_killed_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "study"
    settings = load_config(StorageSettings, "study/storage", toy(out))
    with monkeypatch.context() as patch:
        saved = killed_when(lambda path: bool(list(path.glob("checkpoints/step-*/checkpoint.json"))))
        patch.setattr(pool, "begin", saved)
        with pytest.raises(KeyboardInterrupt):
            run_storage(settings)
    assert not (out / "summary.json").exists()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(study, "finish_parts", finisher(do_tasks))
        run_storage(settings)
    check_study(out, capsys.readouterr().out)
    first = json.loads((out / "summary.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr("headwater.launch.studies.storage.page.write_report", lambda settings, summary: None)
        again = Storage(settings).run()
    assert "6 parts, 6 finished before" in capsys.readouterr().out
    assert json.loads(json.dumps(again)) == first
    with pytest.raises(MismatchError, match="other settings"):
        Storage(load_config(StorageSettings, "study/storage", [*toy(out), "question_share=0.5"])).run()


def check_study(out: Path, printed: str) -> None:
    summary = json.loads((out / "summary.json").read_text())
    assert {claim["status"] for claim in summary["claims"]} <= {REPRODUCED, NOT_REPRODUCED, NOT_TESTABLE}
    assert set(summary["accuracy"]["single"]) == {"full", "lora"}
    assert set(summary["accuracy"]["multi5+permute"]) == {"mixed"}
    assert set(summary["accuracy"]["rewritten-50"]) == {"full"}
    for rows in summary["accuracy"].values():
        for row in rows.values():
            assert set(row["by_attribute"]) == set(ATTRIBUTES)
            assert 0 <= row["asked"][1] <= row["asked"][0] <= row["asked"][2] <= 1
    found = summary["measures"]
    for probed in ("places", "untrained"):
        assert np.array(found["probes"][probed]["single"]["accuracy"]).shape == (8, 6)
    assert set(found["lora"]["rows"]) == {"lora", "lora-small"}
    assert [(row["size"], row["people"], row["rank"]) for row in found["size"]["rows"]] == [("narrow", 12, 1)]
    assert set(found["mixing"]["single"]["rows"]) == {"50-100", "full"}
    check_window(out)
    assert len(summary["q_probes"]["single"]["accuracy"]) == 6
    assert list(summary["curves"]["multi5+permute"]) == ["0", "3", "6"]
    traced = summary["provenance"]["multi5+permute"]["all"]
    assert traced["questions"] == 5
    for scope in ("top", "all", "expected"):
        assert sum(traced[scope]["groups"].values()) == pytest.approx(1)
    # 24 people with five biographies and half of them with six questions.
    assert traced["expected"]["groups"]["own biographies"] == pytest.approx(5 / (24 * 5 + 12 * 6))
    page = (out / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 8
    assert "answers held against another person" in (out / "table.md").read_text()
    assert "differs from the paper in" in page
    assert "not testable" in printed


def check_window(out: Path) -> None:
    """No question was met in the first half of the steps, and some were in the second."""
    run = RunDir(out / "seed-0" / "windowed" / "single_50-100")
    ids = open_passages(run).ids(0, len(open_passages(run)))
    met = [(row["step"], ids[row["passage"]].startswith("qa/")) for row in read_ledger(run.ledger).to_pylist()]
    assert {step for step, is_question in met if is_question} <= {4, 5, 6}
    assert any(is_question for _, is_question in met)
    assert {step for step, is_question in met if not is_question} >= {1, 2, 3}
