"""The study of half-corpora: what is drawn and left out, how it is summed up, and a study from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from headwater.configs import ConfigError, load_config
from headwater.configs.errors import MismatchError, MissingError, UserError
from headwater.launch.studies.lds.halves import draw_half, draw_halves
from headwater.launch.studies.lds.queries import VALUE
from headwater.launch.studies.lds.settings import LdsSettings, index_names
from headwater.launch.studies.lds.study import Lds, run_lds
from headwater.launch.studies.lds.summary import Correlated, group, judge
from headwater.launch.studies.verdict import FAILS, HOLDS, ON_AVERAGE

CONFIG = "study/lds"


def test_halves_are_halves_and_stay_when_more_are_drawn():
    halves_MN = draw_halves(21, 6, seed=3)
    assert halves_MN.shape == (6, 21)
    assert (halves_MN.sum(axis=1) == 10).all()
    assert len({row.tobytes() for row in halves_MN}) == 6
    assert (draw_halves(21, 4, seed=3) == halves_MN[:4]).all()
    assert (draw_half(21, 5, seed=3) == halves_MN[5]).all()
    assert (draw_halves(21, 6, seed=4) != halves_MN).any(axis=1).all()
    # Over many halves every passage is in about as often as out, and no two passages go together.
    many_MN = draw_halves(20, 4000, seed=0).astype(float)
    assert np.abs(many_MN.mean(axis=0) - 0.5).max() < 0.05
    together_NN = np.corrcoef(many_MN.T) - np.eye(20)
    assert np.abs(together_NN + (1 - np.eye(20)) / 19).max() < 0.08, "-1/19, since a half is of fixed size"


def test_a_value_is_what_stands_between_a_field_and_a_full_stop():
    text = "Mali: Geography. Area: total: 1,240,192 sq km; land: 1,220,190 sq km. Climate: subtropical to arid; hot."
    assert VALUE.findall(text) == ["Geography", "1,240,192 sq km", "1,220,190 sq km", "subtropical to arid"]
    assert VALUE.findall("Unemployment rate: 2.5% (2024 est.). Note: so") == []


def test_the_trainings_differ_in_what_is_left_out_and_in_the_weights_alone():
    study = Lds(load_config(LdsSettings, CONFIG, ["out=x", "seed=5", "models=4", "again=3"]))
    model, *others = study.trainings()
    assert [part.path.as_posix() for part in (model, *others)] == [
        *("x/model", "x/halves/000", "x/halves/001", "x/halves/002", "x/halves/003"),
        *("x/again/000", "x/again/001", "x/again/002"),
    ]
    assert model.settings.callbacks.capture.enabled
    assert model.settings.train.exclude is None
    half, again = others[1].settings, others[5].settings
    assert half.train.exclude == "x/halves/001/exclude.txt"
    assert (half.model.seed, again.model.seed, half.seed) == (None, 1005, 5)
    again.model.seed, again.train.exclude, again.out = None, half.train.exclude, half.out
    assert again == half
    half.train.exclude, half.out = None, model.settings.out
    half.callbacks, half.checkpoint = model.settings.callbacks, model.settings.checkpoint
    assert half == model.settings
    assert all(part.after == (model.name,) for part in others)


def test_methods_with_the_same_overrides_share_an_index():
    settings = load_config(LdsSettings, CONFIG, ["out=x", "models=3", "again=0"])
    a, b = ["curvature.damping=0.5"], ["curvature.damping=0.7"]
    names = ("one", "two", "three", "seen", "sum")
    overrides, captured = (a, b, a, [], b), (False, False, False, True, False)
    settings.methods = [
        replace(settings.methods[0], name=name, index=given, captured=taken)
        for name, given, taken in zip(names, overrides, captured, strict=True)
    ]
    settings.methods[4].also = ["seen", "one"]
    assert index_names(settings.methods) == {
        **{"one": "one", "two": "two", "three": "one"},
        **{"seen": "captured", "sum": "two"},
    }
    study = Lds(settings)
    parts = {part.method.name: part for part in study.methods(study.trainings()[0])}
    assert parts["sum"].indexes == ["two", "captured", "one"]
    assert set(parts["sum"].after) == {"x/model", "methods/two", "methods/seen", "methods/one"}
    assert parts["three"].after == ("x/model", "methods/one")
    assert parts["one"].after == ("x/model",)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("again=2", "again"),
        ("again=65", "again"),
        ("methods=[{name: a}, {name: a}]", "each name once"),
        ("methods=[{name: bm25}]", "bm25"),
        ("methods=[{name: a, also: [b]}]", "names of other methods"),
        ("methods=[{name: a, index: [curvature.dampin=1]}]", "dampin"),
        ("methods=[{name: a, captured: true, index: [loss=margin]}]", "captured rows are"),
        ("methods=[{name: a, curvature: trak, captured: true}]", "alone"),
        ("methods=[{name: a, weights: [1.0, 2.0]}]", "one per index"),
        ("left_out.methods=[bm26]", "names of methods"),
        ("methods=[]", "where there is no method"),
    ],
)
def test_what_cannot_be_studied_is_refused(override: str, named: str):
    with pytest.raises(ConfigError, match=named):
        load_config(LdsSettings, CONFIG, [override])


def test_a_study_goes_on_with_more_models_but_not_with_others(tmp_path: Path):
    def study(*overrides: str) -> Lds:
        return Lds(load_config(LdsSettings, CONFIG, [f"out={tmp_path}", *overrides]))

    study("models=3", "again=0")._check_same()
    study("models=9", "again=4", "methods=[]", "left_out.queries=0")._check_same()
    with pytest.raises(MismatchError, match="another out"):
        study("seed=1")._check_same()
    with pytest.raises(ConfigError, match="people"):
        study("pretrain=[facts.people=0]").run()


def test_a_group_has_means_shares_paired_differences_and_errors():
    rng = np.random.default_rng(0)
    ceiling_Q, noise_MQ = rng.uniform(0.5, 0.9, 40), rng.normal(0, 0.01, (7, 40))
    values = {"ours": ceiling_Q * 0.9, "bm25": ceiling_Q * 0.9 - 0.1, "random": rng.normal(0, 0.1, 40)}
    lds = {name: Correlated(each, each + noise_MQ) for name, each in values.items()}
    found = {name: {"mrr": np.where(np.arange(40) < 30, 0.5, np.nan), "recall@10": np.full(40, np.nan)} for name in lds}
    whole = group(lds, found, Correlated(ceiling_Q, ceiling_Q + noise_MQ), np.arange(40))
    assert whole["queries"] == 40
    assert whole["ceiling"][0] == pytest.approx(ceiling_Q.mean())
    assert whole["attainable"][0] == pytest.approx(np.sqrt(ceiling_Q.mean()))
    ours = whole["methods"]["ours"]
    assert ours["lds"][0] == pytest.approx(values["ours"].mean())
    assert ours["share_of_ceiling"] == pytest.approx([0.9, 0.9, 0.9]), "the same queries are drawn for both"
    assert ours["mrr"] == pytest.approx([0.5, 0.5, 0.5])
    assert "recall@10" not in ours
    assert whole["differences"]["ours"]["bm25"] == pytest.approx([0.1, 0.1, 0.1])
    mean, low, high = whole["differences"]["bm25"]["random"]
    assert low < mean < high
    assert ours["error"] == pytest.approx(6 * noise_MQ.mean(axis=1).std() / np.sqrt(6))
    assert whole["difference_errors"]["ours"]["bm25"] == pytest.approx(0), "the same halves are left out of both"
    part = group(lds, found, None, np.arange(35, 40))
    assert "ceiling" not in part
    assert "mrr" not in part["methods"]["ours"]
    assert part["methods"]["ours"]["lds"][0] == pytest.approx(values["ours"][35:].mean())


def test_claims_hold_by_the_interval_on_average_or_not():
    settings = load_config(LdsSettings, CONFIG, ["methods=[{name: ours}]", "left_out.queries=0"])
    share = {"methods": {"ours": {"share_of_ceiling": [0.82, 0.7, 0.9]}}}
    kinds = {
        "facts": {"differences": {"ours": {"bm25": [0.2, 0.1, 0.3]}}},
        "held_out": {"differences": {"ours": {"bm25": [-0.2, -0.3, -0.1]}}},
    }
    claims = judge(settings, share, kinds)
    assert [claim["status"] for claim in claims] == [ON_AVERAGE, HOLDS, FAILS]
    assert claims[2]["claim"] == "ours: above BM25 (held out)"
    assert judge(load_config(LdsSettings, CONFIG, ["methods=[]", "left_out.queries=0"]), share, kinds) == []


TINY = [
    "facts.people=4",
    "facts.distractors=0",
    "facts.passages=4",
    "facts.queries=2",
    "facts.schedule.count=2",
    "train.steps=6",
    "corpus.sources=[{kind: factbook, documents: 8}]",
    "corpus.passages=40",
    "corpus.tokenizer.vocab_size=512",
    "corpus.max_tokens=96",
    "model.layers=1",
    "model.hidden=32",
    "model.heads=2",
    "model.kv_heads=2",
    "model.ffn_hidden=64",
]
METHODS = [
    {"name": "ours", "index": ["projection.dims=4"]},
    {"name": "both", "captured": True, "also": ["ours"], "curvature": "train"},
    {"name": "trak", "index": ["projection.dims=3", "curvature.kind=none", "codecs=[fp32]"], "curvature": "trak"},
]


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "study"
    small = [
        "models=3",
        "again=3",
        "queries.cloze=3",
        "queries.held_out=4",
        "left_out.queries=1",
        "left_out.top=3",
        "left_out.methods=[bm25]",
        f"out={out}",
        f"pretrain={json.dumps(TINY)}",
    ]
    small += ['traced=["callbacks.capture.enabled=true", "callbacks.capture.proj=4"]', f"methods={json.dumps(METHODS)}"]
    settings = load_config(LdsSettings, CONFIG, small)
    with pytest.raises(MissingError, match="no finished study"):
        run_lds(load_config(LdsSettings, CONFIG, [*small, "scores=x.npy"]))
    make_parts(settings)
    summary = run_lds(settings)
    assert "14 parts, 14 finished before" in capsys.readouterr().out
    check_study(out, settings, summary)
    check_left_out(out, summary)
    check_outsider(out, small, summary)


def make_parts(settings: LdsSettings) -> None:
    """Does the parts' work as their processes do it, but in this one, which saves imports."""
    from headwater.launch.parts.process import run_part
    from headwater.launch.studies.lds.process import train_and_measure
    from headwater.launch.studies.lds.scoring import score_passages

    study = Lds(settings)
    trainings = study.trainings()
    study._check_same()
    for part in trainings:
        part.path.mkdir(parents=True)
        part.prepare()
        assert not part.is_done()
        assert run_part([str(part.path)], train_and_measure) == 0
        assert part.is_done()
    # Killed between its last checkpoint and its answers, a part goes on from there.
    last = trainings[-1].path
    said, steps = (last / "outputs.npy").read_bytes(), (last / "metrics.jsonl").read_bytes()
    (last / "outputs.npy").unlink()
    assert not trainings[-1].is_done()
    assert run_part([str(last)], train_and_measure) == 0
    assert ((last / "outputs.npy").read_bytes(), (last / "metrics.jsonl").read_bytes()) == (said, steps)
    methods = study.methods(trainings[0])
    for each in methods:
        each.path.mkdir(parents=True)
        each.prepare()
        assert run_part([str(each.path)], score_passages) == 0
        assert each.is_done()
    for part in study.left_out(trainings[0], methods):
        part.path.mkdir(parents=True)
        part.prepare()
        assert run_part([str(part.path)], train_and_measure) == 0


def check_study(out: Path, settings: LdsSettings, summary: dict) -> None:
    records = [json.loads(line) for line in (out / "queries.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["facts"] * 8 + ["cloze"] * 3 + ["held_out"] * 4
    passages = [json.loads(line) for line in (out / "outsider/passages.jsonl").read_text().splitlines()]
    texts = {passage["id"]: " ".join(passage["text"].split()) for passage in passages}
    assert len(texts) == 40 + 16
    for record in records[8:11]:
        assert f"{record['prompt']} {record['target']}" in texts[record["gold"][0]]
    for record in records[11:]:
        assert record["example_id"].removeprefix("held_out:") not in texts
    # A half has seen its own passages, at the steps of the whole corpus's model, and no other.
    halves_MN = np.load(out / "outsider/halves.npy")
    seen = pq.read_table(out / "model/ledger").to_pylist()
    for number in range(3):
        inside = set(np.flatnonzero(halves_MN[number]).tolist())
        kept = [(visit["step"], visit["passage"]) for visit in seen if visit["passage"] in inside]
        for kind in ("halves", "again"):
            ours = pq.read_table(out / kind / f"{number:03d}" / "ledger").to_pylist()
            assert [(visit["step"], visit["passage"]) for visit in ours] == kept
    outputs_MQ, again_AQ = np.load(out / "outsider/outputs.npy"), np.load(out / "outsider/outputs_again.npy")
    assert outputs_MQ.shape == again_AQ.shape == (3, 15)
    assert (outputs_MQ != again_AQ).all()
    assert summary["ceiling"][0] == pytest.approx(
        np.mean([spearmanr(outputs_MQ[:, q], again_AQ[:, q]).statistic for q in range(15)])
    )
    scores_QN = np.load(out / "methods/ours/scores.npy").astype(np.float64)
    sums_MQ = halves_MN.astype(np.float64) @ scores_QN.T
    expected = np.mean([spearmanr(sums_MQ[:, q], outputs_MQ[:, q]).statistic for q in range(15)])
    assert summary["methods"]["ours"]["lds"][0] == pytest.approx(expected)
    assert list(summary["methods"]) == ["ours", "both", "trak", "gold", "bm25", "ngram", "random"]
    assert summary["kinds"]["facts"]["methods"]["gold"]["mrr"] == [1, 1, 1]
    assert "mrr" not in summary["kinds"]["held_out"]["methods"]["ours"]
    page = (out / "report/index.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert all(text in page for text in ("Held-out passages", "<td>both", "<td>BM25"))
    assert "| both | " in (out / "table.md").read_text()
    check_model(out, records, outputs=np.load(out / "model/outputs.npy"))


def check_left_out(out: Path, summary: dict) -> None:
    """Each small set, and nothing else, is missing from its training."""
    records = [json.loads(line) for line in (out / "queries.jsonl").read_text().splitlines()]
    names = {"gold": "gold", "random, 3": "random", "best": "best", "bm25, 3": "bm25"}
    assert sorted(path.name for path in (out / "left").iterdir()) == sorted(names)
    whole = {visit["passage"] for visit in pq.read_table(out / "model/ledger").to_pylist()}
    ids = [json.loads(line)["id"] for line in (out / "outsider/passages.jsonl").read_text().splitlines()]
    for directory, name in names.items():
        path = out / "left" / directory / "000"
        lacking = set((path / "exclude.txt").read_text().split("\n")) - {""}
        seen = {visit["passage"] for visit in pq.read_table(path / "ledger").to_pylist()}
        assert seen == {number for number in whole if ids[number] not in lacking}
        if name == "gold":
            assert any(lacking == set(record["gold"]) for record in records)
        else:
            assert len(lacking) == (1 if name == "best" else 3)
    assert set(summary["left_out"]) == set(names.values())
    assert summary["left_out"]["random"]["passages"] == 3
    assert set(summary["units"]) == {"ours", "bm25"}
    assert set(summary["units"]["ours"]["facts"]["sets"]) == set(names.values())


def check_model(out: Path, records: list[dict], outputs: np.ndarray) -> None:
    """The model that outsiders are given says what the study has measured."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out / "outsider/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "outsider/model")
    for place in (0, 9, 14):
        head = tokenizer(records[place]["prompt"])["input_ids"]
        whole = head + tokenizer(" " + records[place]["target"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logprob_TV = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        said = sum(float(logprob_TV[t - 1, whole[t]]) for t in range(len(head), len(whole)))
        assert outputs[place, 0] == pytest.approx(said, rel=1e-4)


def check_outsider(out: Path, small: list[str], before: dict) -> None:
    outputs_MQ, halves_MN = np.load(out / "outsider/outputs.npy"), np.load(out / "outsider/halves.npy")
    # Scores that fit three halves exactly: each one's own passages carry its output.
    fitted_QN = np.linalg.lstsq(halves_MN.astype(float), outputs_MQ, rcond=None)[0].T
    np.save(out.parent / "fitted.npy", fitted_QN)
    summary = run_lds(load_config(LdsSettings, CONFIG, [f"out={out}", f"scores={out.parent / 'fitted.npy'}"]))
    assert summary["methods"]["fitted"]["lds"] == pytest.approx([1, 1, 1])
    assert summary["models"] == 3
    assert "<td>fitted" in (out / "report/index.html").read_text()
    again = run_lds(load_config(LdsSettings, CONFIG, small))
    assert again["methods"].pop("fitted")["lds"][0] == pytest.approx(1), "it stays"
    assert again["methods"] == before["methods"]
    np.save(out.parent / "turned.npy", fitted_QN.T)
    for name, error, named in (
        ("turned.npy", MismatchError, "one row per line"),
        ("nowhere.npy", MissingError, "are missing"),
    ):
        with pytest.raises(error, match=named):
            run_lds(load_config(LdsSettings, CONFIG, [f"out={out}", f"scores={out.parent / name}"]))
    with pytest.raises(UserError, match="cannot be taken"):
        run_lds(load_config(LdsSettings, CONFIG, [f"out={out}", f"scores={out.parent / 'fitted.npy'}", "name=ours"]))
