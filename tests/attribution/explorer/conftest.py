"""What the explorer's tests share: a small run with everything in it, a hostile file, a server, a browser."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headwater.attribution.explorer.explore import bound, site_of
from headwater.attribution.explorer.guard import Guard
from headwater.attribution.explorer.holdings import Holdings, find

Once = Callable[[str, Callable[[Path], None]], Path]
Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def explored(tiny_run: Path, once: Once) -> Path:
    """A finished run with two indexes, traces and an evaluation. Read only."""

    def make(directory: Path) -> None:
        from headwater.attribution.evaluation.evaluate import GRADIENT_METHODS, evaluate_methods
        from headwater.attribution.index.build import build_index
        from headwater.attribution.settings import (
            EvaluateSettings,
            IndexSettings,
            ProjectionSettings,
            TailPatchSettings,
            TracedModelSettings,
            TraceSettings,
        )
        from headwater.attribution.tracing.run import run_trace
        from headwater.train.artifacts import RunDir

        run = directory / "run"
        shutil.copytree(tiny_run, run)
        for name, loss in (("headwater", "log_odds"), ("gradient", "cross_entropy")):
            model = TracedModelSettings(run=str(run))
            projection = ProjectionSettings(dims=6)
            build_index(
                IndexSettings(name=name, model=model, loss=loss, projection=projection, codecs=["fp32"], shard_rows=128)
            )
        probes = str(run / "facts/probes.jsonl")
        index = str(run / "index/headwater")
        run_trace(TraceSettings(index=index, queries=probes, out=str(run / "traces/headwater.jsonl")))
        methods = {name: GRADIENT_METHODS[name] for name in ("headwater", "gradient_cosine")}
        settings = EvaluateSettings(run=str(run), tail_patch=TailPatchSettings(enabled=False))
        evaluate_methods(RunDir.at(run), methods, settings)

    return once("explored", make) / "run"


@pytest.fixture(scope="session")
def holdings(explored: Path) -> Holdings:
    found = find([explored])
    found.warm()
    return found


@pytest.fixture(scope="session")
def exported(explored: Path, once: Once) -> Path:
    """The run's pages as files. Read only."""

    def make(directory: Path) -> None:
        from headwater.attribution.explorer.export import export

        pages = export([explored], directory / "site", say=lambda text: None)
        assert pages == len(list((directory / "site").glob("*.html")))

    return once("exported", make) / "site"


SCRIPT = "<script>document.title = 'taken'</script>"
BIDI = "\u202egnirts desrever\u202c \u2066x\u2069"
HOSTILE = [
    {
        "example_id": '"><img src=x onerror="document.title=\'taken\'">/../../etc/passwd',
        "inputs_plaintext": f"{SCRIPT} {BIDI} \0 {{{{ 7 * 7 }}}} {{% raw %}}",
        "targets_plaintext": "</mark></title><svg onload=alert(1)>",
        "proponents": [f"{SCRIPT}\0\x1b[31m{BIDI}", "javascript:alert(1)", "a" * 10_000_000, "\u2028</script>"],
        "proponent_ids": ["../../etc/passwd#0", "javascript:alert(1)#1", "\0#2", "'\"><b>#3"],
        "proponent_scores": [float("nan"), 1e308, -0.5, 0],
        "proponent_tokens": [["<b>", "x" * 1_000_000], ["=1+1"], [], ["y"]],
        "proponent_token_scores": [[1.0, float("inf")], [0.5], [], [1.0]],
        "proponent_correct": [True, False, False, False],
        "relation": "=cmd|'/c calc'!A1\"><script>",
    },
    {"example_id": "=2+5", "inputs_plaintext": "+1", "targets_plaintext": "@x", "proponents": [], "opponents": ["y"]},
    {"example_id": "lone \udc80", "inputs_plaintext": "half \ud800", "proponents": ["z"], "proponent_scores": [0.1]},
]


@pytest.fixture(scope="session")
def hostile(once: Once) -> Path:
    """A file of results that tries to become script, markup, a path, a formula."""

    def make(directory: Path) -> None:
        (directory / "bad.jsonl").write_text("".join(json.dumps(record) + "\n" for record in HOSTILE))

    return once("hostile", make) / "bad.jsonl"


@contextmanager
def served(*paths: Path, guard: Guard | None = None) -> Iterator[str]:
    """The address of a server over some paths, in this process."""
    import uvicorn

    from headwater.attribution.explorer.server import make_app

    found = find(paths)
    found.warm()
    listening = bound("127.0.0.1", 0)
    config = uvicorn.Config(
        make_app(site_of(found), guard or Guard()),
        log_level="error",
        h11_max_incomplete_event_size=256_000,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=40)


@pytest.fixture(scope="module")
def address(explored: Path) -> Iterator[str]:
    """A server over the run."""
    with served(explored) as address:
        yield address


CHROMIUM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium; without it what needs it is skipped."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as api:
        started = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()
