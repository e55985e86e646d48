"""The study of exposures: what is dropped, what is foretold of it, and a small one from end to end."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from headwater.attribution.tracing.queries import Query
from headwater.configs import ConfigError, load_config
from headwater.configs.errors import MismatchError
from headwater.launch.parts import pool
from headwater.launch.parts.pair import compare_ledgers
from headwater.launch.studies.exposures.cells import (
    NOTHING,
    Cell,
    draw_cells,
    exclude_file,
    read_cells,
    training_names,
)
from headwater.launch.studies.exposures.process import train_and_compare
from headwater.launch.studies.exposures.settings import PREDICTORS, ExposuresSettings, window_steps
from headwater.launch.studies.exposures.study import Exposures, run_exposures
from headwater.launch.studies.exposures.summary import overall, within
from headwater.train.artifacts import RunDir

from .here import finisher, write_texts

CONFIG = "study/exposures"


def questions(people: int, each: int) -> list[Query]:
    return [
        Query(f"{n}/{k}", "p", "t", gold=(f"{n}#{k}", f"{n}#{k + 1}"), record={"subject": f"person {n}"})
        for n in range(people)
        for k in range(each)
    ]


def test_windows_cover_every_step_once():
    for windows, steps in ((4, 400), (3, 7), (1, 5)):
        bounds = [window_steps(number, windows, steps) for number in range(windows)]
        assert [step for first, last in bounds for step in range(first, last + 1)] == list(range(1, steps + 1))


def test_every_fact_meets_every_window_once_and_a_training_never_two_of_a_person():
    settings = ExposuresSettings(windows=3, together=4, alone=5, checkpoints=3)
    queries = questions(10, 3)
    drawn = draw_cells(queries, settings, 60, seed=2)
    assert list(drawn) == training_names(settings, 10)
    shared = {name: cells for name, cells in drawn.items() if name.isdecimal()}
    met = Counter((cell.probe, cell.window) for cells in shared.values() for cell in cells)
    assert set(met.values()) == {1}
    assert len(met) == 10 * 3
    assert len({probe for probe, _ in met}) == 10, "one fact of each person"
    for cells in shared.values():
        assert len({cell.subject for cell in cells}) == len(cells)
        assert len({cell.window for cell in cells}) == 1
    assert drawn[NOTHING] == []
    alone = [cells for name, cells in drawn.items() if name.startswith("alone")]
    assert len(alone) == 5
    every = [cell for cells in shared.values() for cell in cells]
    assert all(len(cells) == 1 and cells[0] in every for cells in alone)
    cell = shared["000"][0]
    assert cell.lines == "".join(f"{name}\t{cell.first}\t{cell.last}\n" for name in queries[cell.probe].gold)
    assert draw_cells(queries, settings, 60, seed=2) == drawn
    assert draw_cells(queries, settings, 60, seed=3) != drawn


def test_within_windows_only_the_order_of_facts_counts():
    window_n = np.repeat([0, 1], 5)
    lost_n = np.array([0.1, 0.3, 0.2, 0.5, 0.4, 5.1, 5.3, 5.2, 5.5, 5.4])
    told_nP = np.stack([window_n, lost_n % 1, np.arange(10)], axis=1).astype(float)
    order = spearmanr(np.arange(5), lost_n[:5]).statistic
    assert within(told_nP, lost_n, window_n) == pytest.approx([0, 1, order]), "a window's number orders no facts"
    assert overall(told_nP, lost_n, window_n) == pytest.approx(
        [spearmanr(each, lost_n).statistic for each in told_nP.T]
    )


@pytest.mark.parametrize(
    ("override", "named"), [("seeds=[1,1]", "each once"), ("checkpoints=6", "multiple of windows")]
)
def test_what_cannot_be_studied_is_refused(override: str, named: str):
    with pytest.raises(ConfigError, match=named):
        load_config(ExposuresSettings, CONFIG, [override])


SMALL = ["train.steps=8", "model.layers=1", "model.hidden=32", "model.heads=2", "model.kv_heads=2"]
SMALL += ["model.ffn_hidden=64", "corpus.passages=0", "corpus.tokenizer.vocab_size=512", "corpus.max_tokens=128"]
SMALL += ["facts.people=4", "facts.passages=4", "facts.distractors=0", "facts.queries=2", "facts.schedule.count=3"]
SMALL += ["optimizer.warmup=2"]
TINY = ["windows=2", "checkpoints=2", "together=2", "alone=1", "proj=6"]


@pytest.mark.slow
def test_a_study_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "finish_parts", finisher(train_and_compare))
    pretrain = json.dumps([*SMALL, write_texts(tmp_path / "texts.jsonl")])
    settings = load_config(ExposuresSettings, CONFIG, [f"out={tmp_path}", *TINY, f"pretrain={pretrain}"])
    summary = run_exposures(settings)
    home = tmp_path / "seed-0"
    cells = read_cells(home)
    assert (summary["cells"], summary["people"], summary["trainings"]) == (8, 4, 4)
    # The control: with nothing dropped, the training is the same to the bit.
    whole_Q, nothing_Q = (np.load(home / name / "outputs.npy")[:, 0] for name in ("model", "dropped-nothing"))
    assert np.array_equal(whole_Q, nothing_Q)
    assert summary["nothing"] == 0
    lost, count = {}, {}
    seen = pq.read_table(home / "model/ledger").to_pylist()
    from headwater.train.stream.passages import open_passages

    passages = open_passages(RunDir(home / "model"))
    for name, each in cells.items():
        note = json.loads((home / f"dropped-{name}/difference.json").read_text())
        outputs_Q = np.load(home / f"dropped-{name}/outputs.npy")[:, 0]
        for cell in each:
            there = [visit for visit in seen if cell.first <= visit["step"] <= cell.last]
            gone = [visit for visit in there if passages.id_of(visit["passage"]) in cell.passages]
            count[name, cell.probe] = len(gone)
            lost[name, cell.probe] = whole_Q[cell.probe] - outputs_Q[cell.probe]
        visits = sum(count[name, cell.probe] for cell in each)
        assert note == {"dropped": visits, "elsewhere": 0, "injected": visits}
        assert (outputs_Q != whole_Q).any() == bool(note["dropped"])
    told = json.loads((home / "foretold.json").read_text())
    numbered = {name: each for name, each in cells.items() if name.isdecimal()}
    shared = [(name, place, cell) for name, each in numbered.items() for place, cell in enumerate(each)]
    assert [told[name]["count"][place] for name, place, _ in shared] == [count[n, c.probe] for n, _, c in shared]
    values = [lost[name, cell.probe] for name, _, cell in shared]
    assert summary["lost"][0] == pytest.approx(np.mean(values))
    for predictor in PREDICTORS:
        foretold = [told[name][predictor][place] for name, place, _ in shared]
        found = spearmanr(foretold, values).statistic
        assert summary["predictors"][predictor]["overall"][0] == pytest.approx(0 if np.isnan(found) else found)
    assert (tmp_path / "report/index.html").read_text().count("data:image/png;base64,") == 1
    assert "Number of exposures" in (tmp_path / "table.md").read_text()
    before = (tmp_path / "summary.json").read_bytes()
    said: list[str] = []
    Exposures(settings, said.append).run()
    assert sum("done before" in line for line in said) == 7
    assert (tmp_path / "summary.json").read_bytes() == before
    check_gradient(home, cells)
    check_ledgers(home)


def check_gradient(home: Path, cells: dict[str, list[Cell]]) -> None:
    """The plain predictor, against the sum over the visits that were captured."""
    from safetensors.numpy import load_file

    from headwater.launch.studies.exposures.cells import queries_of
    from headwater.train.stream.passages import open_passages

    run = RunDir(home / "model")
    visits = load_file(next((run.path / "capture").glob("visits-*.safetensors")))
    from headwater.attribution.index.reader import open_index
    from headwater.launch.studies.exposures.foretelling import rows_at
    from headwater.train import parallel

    passages, index = open_passages(run), open_index(run.index("captured"))
    (cell,) = cells["alone-000"]
    world = parallel.start()
    row_D = rows_at(run, index, 8, world, passages, [queries_of(home)[cell.probe]])[0].double().numpy()
    parallel.stop()
    mine = np.isin(visits["passage"], passages.numbers_of(cell.passages))
    mine &= (visits["step"] >= cell.first) & (visits["step"] <= cell.last)
    expected = (visits["lr"][mine] * (visits["rows"][mine].astype(np.float64) @ row_D)).sum()
    told = json.loads((home / "foretold.json").read_text())["alone-000"]
    assert told["gradient"][0] == pytest.approx(expected, rel=1e-4)
    assert told["lr"][0] == pytest.approx(visits["lr"][mine].sum())
    assert told["recency"][0] == (visits["step"][mine].max() if mine.any() else 0) - 8


def check_ledgers(home: Path) -> None:
    """A training that has missed something else than what it was to drop is refused."""
    model, run = RunDir(home / "model"), RunDir(home / "dropped-000")
    listed = home / "listed.txt"
    listed.write_text("".join(exclude_file(home, "000").read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(MismatchError, match="more than what it leaves out"):
        compare_ledgers(model, run, listed)
    file = next(run.ledger.glob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), file)
    with pytest.raises(MismatchError, match="1 further visits"):
        compare_ledgers(model, run, exclude_file(home, "000"))
