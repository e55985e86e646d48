"""How quick the explorer is: the first paint of its pages and a filter over many questions; a question asked live.

    headwater bench explore                                          10,000 questions over a million passages
    headwater bench explore --queries 500 --passages 20000 --run ""  small, without a live question

Pages are opened in Chromium where there is one (first contentful paint, as the browser reports it) and timed at the
server. The large run is synthetic and is made for the benchmark; the live question is asked of `--run`.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

FILTERS = (
    "relation:employer",
    "rank<=3 prob>.2",
    "harbour or known:yes",
    'not (relation="major" or rank>10) entry',
    "prob<.05 -willow",
)
PAGES = {
    "browse": "browse",
    "question": "question?set=headwater&q=question-17",
    "watch": "watch",
    "one fact": "watch?fact=question-17",
    "sources": "sources",
    "sources of some": "sources?where=relation%3Aemployer",
}


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, Any]]:
    """The address of a server over a run, in this process, with its files opened; and its site."""
    import uvicorn

    from headwater.attribution.explorer.explore import bound, site_of
    from headwater.attribution.explorer.guard import Guard
    from headwater.attribution.explorer.holdings import find
    from headwater.attribution.explorer.server import make_app

    holdings = find([path])
    holdings.warm()
    site = site_of(holdings)
    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(site, Guard()), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", site
    finally:
        server.should_exit = True
        thread.join(timeout=60)


def fetched(address: str) -> float:
    """Seconds to get a page, to its last byte."""
    from urllib.request import urlopen

    began = time.perf_counter()
    with urlopen(address, timeout=120) as answer:
        answer.read()
    return time.perf_counter() - began


def pages_at_server(address: str, pages: dict[str, str], rounds: int) -> list[dict[str, Any]]:
    """The first and the median time of each page."""
    table = []
    for name, path in pages.items():
        times = [fetched(f"{address}/{path}") for _ in range(rounds + 1)]
        again = statistics.median(times[1:])
        table.append({"page": name, "first_s": times[0], "median_s": again})
        print(f"{name:16s} first {1e3 * times[0]:7.1f} ms   then {1e3 * again:7.1f} ms", flush=True)
    return table


def paints(address: str, pages: dict[str, str], rounds: int) -> list[dict[str, Any]] | None:
    """First contentful paint of each page in Chromium; None where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        print("no browser: install Debian's chromium and playwright to measure paints")
        return None
    ask = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
    table = []
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        for name, path in pages.items():
            times = []
            for _ in range(rounds + 1):
                page.goto(f"{address}/{path}")
                page.wait_for_timeout(60)
                times.append(page.evaluate(ask))
            known = [value for value in times[1:] if value is not None]
            table.append({"page": name, "paint_ms": statistics.median(known), "worst_ms": max(known)})
            print(
                f"{name:16s} first paint {table[-1]['paint_ms']:7.0f} ms, at worst {table[-1]['worst_ms']:7.0f} ms",
                flush=True,
            )
        browser.close()
    return table


def filters_at_server(address: str, rounds: int) -> dict[str, float]:
    """Seconds that a filter takes, from request to the last byte of the page, over several filters."""
    times = [
        fetched(f"{address}/browse?{urlencode({'where': where, 'sort': sort})}")
        for sort in ("", "worst")
        for _ in range(rounds)
        for where in FILTERS
    ]
    found = {"median_s": statistics.median(times), "worst_s": max(times)}
    print(
        f"a filter         median {1e3 * found['median_s']:5.1f} ms, at worst {1e3 * found['worst_s']:5.1f} ms",
        flush=True,
    )
    return found


def live_questions(run: Path, rounds: int) -> dict[str, float]:
    """Seconds from asking to the answer, over the run's own probes; the model is open already."""
    from headwater.attribution.explorer.live import ENDED, Asked

    probes = [json.loads(line) for line in (run / "facts" / "probes.jsonl").read_text().splitlines()[: rounds + 1]]
    times = []
    with serving(run) as (_, site):
        index = site.desk.indexes[0].name
        for probe in probes:
            began = time.perf_counter()
            job = site.desk.submit(Asked("trace", index, probe["prompt"], probe["target"]))
            while job.state not in ENDED:
                site.desk.look(job.id)
                time.sleep(0.02)
            if job.state != "done":
                raise RuntimeError(f"the question was not answered: {job.error}")
            times.append(time.perf_counter() - began)
        scanned = job.about["scanned"]
    found = {
        "first_s": times[0],
        "median_s": statistics.median(times[1:]),
        "worst_s": max(times[1:]),
        "passages": scanned,
    }
    print(
        f"a live question  first, with the model opened, {found['first_s']:5.2f} s, then median "
        f"{found['median_s']:5.2f} s, at worst {found['worst_s']:5.2f} s; {scanned:,} passages compared",
        flush=True,
    )
    return found


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(
    queries: int = 10_000, passages: int = 1_000_000, rounds: int = 5, run: str = "runs/demo", folder: str | None = None
) -> dict[str, Any]:
    """Makes a large run, serves it, and measures pages, filters and, on `--run`, questions asked of a model.

    Args:
        queries: questions of the large run.
        passages: of its corpus.
        rounds: repetitions; medians are reported.
        run: a finished run whose model is asked; empty for none.
        folder: where the large run is made (and removed again).
    """
    from headwater.launch.bench.exploring_data import make_run

    report: dict[str, Any] = {"processor": processor(), "queries": queries, "passages": passages}
    print(report["processor"])
    with tempfile.TemporaryDirectory(dir=folder) as made:
        large = make_run(Path(made), queries, passages)
        began = time.perf_counter()
        with serving(large.path) as (address, site):
            report["open_s"] = time.perf_counter() - began
            named = site.holdings.sets["headwater"].open().answers.postings.names[0]
            pages = {**PAGES, "a passage": f"read?{urlencode({'p': named, 'set': 'headwater', 'q': 'question-0'})}"}
            print(f"{queries:,} questions, {passages:,} passages: opened in {report['open_s']:.1f} s", flush=True)
            report["server"] = pages_at_server(address, pages, rounds)
            report["filter"] = filters_at_server(address, rounds)
            report["paint"] = paints(address, pages, rounds)
    if run:
        report["live"] = live_questions(Path(run), rounds)
    return report
