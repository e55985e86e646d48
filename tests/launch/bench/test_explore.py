"""The explorer's benchmark: a run made to measure is one that can be explored."""

from __future__ import annotations

from pathlib import Path

from headwater.attribution.explorer.holdings import find
from headwater.launch.bench.explore import PAGES, fetched, filters_at_server, serving
from headwater.launch.bench.exploring_data import make_run


def test_a_made_run_is_served(tmp_path: Path) -> None:
    run = make_run(tmp_path, queries=30, passages=200)
    holdings = find([run.path])
    opened = holdings.sets["headwater"].open()
    assert len(opened.answers) == 30
    library = holdings.homes[0].library
    assert library is not None
    assert len(library.numbers(opened.answers.postings.names)) == len(opened.answers.postings.names)
    with serving(run.path) as (address, site):
        assert site.desk is None
        for path in PAGES.values():
            assert fetched(f"{address}/{path}") > 0
        assert filters_at_server(address, 1)["worst_s"] > 0
