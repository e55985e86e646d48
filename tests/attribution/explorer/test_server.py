"""The server: who may ask, what pages may do, hostile data, bad files, and questions asked of the model."""

from __future__ import annotations

import csv
import html.parser
import http.client
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from headwater.attribution import Attributor
from headwater.attribution.explorer.explore import site_of
from headwater.attribution.explorer.guard import HEADERS, Guard
from headwater.attribution.explorer.holdings import find
from headwater.attribution.explorer.live import Asked, BusyError, Desk
from headwater.attribution.tracing.continuing import answer_logprobs, continuation
from headwater.configs.errors import UserError

from .conftest import HOSTILE, served

PAGES = ("", "ask", "browse", "compare", "watch", "sources")


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


def own(client: httpx.Client) -> dict[str, str]:
    return {"Origin": str(client.base_url).rstrip("/")}


def test_every_answer_has_the_headers(client: httpx.Client) -> None:
    for page in (*PAGES, "assets/explorer.js", "nothing", "browse?where=((", "browse.csv", "assets/../server.py"):
        answer = client.get(f"/{page}")
        assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_pages_answer(client: httpx.Client) -> None:
    for page in PAGES:
        answer = client.get(f"/{page}")
        assert answer.status_code == 200, page
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//", answer.text), "no other host"
    assert client.get("/nothing").status_code == 404
    assert client.get("/browse?set=nobody").status_code == 404
    bad = client.get("/browse?where=rank<x&sort=score")
    assert 'name="where" value="rank&lt;x"' in bad.text, "it can be mended there"
    assert 'name="sort" value="score"' in bad.text
    assert bad.status_code == 400
    assert "rank is a number" in bad.text


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Host": "evil.example"}, 421),
        ("GET", "/", {"Host": "127.0.0.1.evil.example:80"}, 421),
        ("GET", "/", {"Host": "localhost:1"}, 200),
        ("POST", "/jobs", {}, 403),
        ("POST", "/jobs", {"Origin": "http://evil.example"}, 403),
        ("POST", "/ask", {"Origin": "null"}, 403),
        ("POST", "/jobs/x/leave", {"Origin": "http://127.0.0.1:1"}, 403),
    ],
)
def test_strangers_are_refused(client: httpx.Client, method: str, path: str, headers: dict, status: int) -> None:
    assert client.request(method, path, headers=headers).status_code == status


def test_a_network_needs_the_token(hostile: Path) -> None:
    with served(hostile, guard=Guard("secret")) as address, httpx.Client(base_url=address) as client:
        assert client.get("/").status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/browse.json").status_code == 401
        entered = client.get("/browse?token=secret&sort=score", headers={"Host": "any.name"})
        assert entered.status_code == 303
        assert entered.headers["location"] == "/browse?sort=score", "the token leaves the address"
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert client.get("/browse", cookies={"headwater_explorer": "secret"}).status_code == 200
        assert client.get("/browse", cookies={"headwater_explorer": "secre"}).status_code == 401


class Elements(html.parser.HTMLParser):
    """Names of the elements and attributes of a page, and its links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names, self.attributes, self.links = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.links += [value for name, value in attrs if name in ("href", "src", "action") and value]


def test_nothing_of_the_data_becomes_markup_or_a_path(hostile: Path) -> None:
    with served(hostile) as address, httpx.Client(base_url=address, timeout=60) as client:
        first = client.get("/browse")
        pages = {first.text}
        for link in Elements(first.text).links:
            if link.startswith("/question"):
                answer = client.get(link)
                pages.add(answer.text)
                pages |= {
                    client.get(each).text
                    for each in Elements(answer.text).links
                    if each.startswith(("/read", "/sources"))
                }
        assert len(pages) >= 6
        for page in pages:
            seen = Elements(page)
            assert len(page) < 400_000, "ten million characters are not sent"
            assert not seen.names & {"img", "iframe", "object", "x"}
            assert not {name for name in seen.attributes if name.startswith("on") or name == "style"}
            assert all(link.startswith(("/", "#")) for link in seen.links)
            assert page.count("<script") == 1
            assert "49" not in re.findall(r"\{\{ ?(.*?) ?\}\}", page)
            for char in "\0\x1b\u202e\u2066\u2028":
                assert char not in page
        assert client.get("/read", params={"p": "../../etc/passwd#0"}).status_code == 200
        assert "root:" not in client.get("/read", params={"p": "../../etc/passwd#0"}).text
        rows = list(csv.reader(client.get("/browse.csv").text.splitlines()))
        assert all(not cell.startswith(("=", "+", "@")) for row in rows for cell in row)
        lines = client.get("/results.jsonl").text.split("\n")
        assert json.loads(lines[0])["proponents"] == HOSTILE[0]["proponents"], "a download is the data as they are"


def test_a_vanished_run_is_one_message(explored: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(explored, run)
    shutil.rmtree(run / "index")
    query = json.loads((run / "traces/headwater.jsonl").read_text().splitlines()[0])["example_id"]
    with served(run) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/question", params={"q": query}).status_code == 200
        shutil.rmtree(run)
        answer = client.get("/question", params={"q": query})
        assert answer.status_code == 404
        assert "is gone" in answer.text
        answer = client.get("/read?p=person%231")
        assert answer.status_code in (400, 404)
        assert answer.text.count('role="alert"') == 1
        assert "Traceback" not in answer.text


def test_an_address_has_a_length(address: str) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request("GET", "/browse?where=" + "x" * 70_000)
    assert connection.getresponse().status == 414


# Questions


def wait(client: httpx.Client, name: str) -> dict:
    until = time.monotonic() + 100
    while time.monotonic() < until:
        status = client.get(f"/jobs/{name}").json()
        if status["state"] in ("done", "failed", "dropped"):
            return status
        time.sleep(0.05)
    raise AssertionError("no answer came")


def test_a_question_is_answered_as_the_attributor_answers_it(client: httpx.Client, explored: Path) -> None:
    probe = json.loads((explored / "facts/probes.jsonl").read_text().splitlines()[0])
    fields = {"prompt": probe["prompt"], "target": probe["target"], "index": "headwater"}
    waiting = client.get("/ask", params=fields)
    assert "data-wanted" in waiting.text, "a shared link asks"
    status = client.post("/jobs", data={"kind": "trace", **fields}, headers=own(client)).json()
    assert wait(client, status["id"])["state"] == "done"
    again = client.post("/jobs", data={"kind": "trace", **fields}, headers=own(client)).json()
    assert again["id"] == status["id"], "it is not asked twice"
    rows = client.get("/ask.json", params=fields).json()["rows"]
    mine = {
        end: [(row["passage"], row["score"]) for row in rows if row["end"] == end] for end in ("proponent", "opponent")
    }
    page = client.get("/ask", params=fields).text
    assert "passages compared" in page
    assert 'class="seen-dot' in page, "its curve has the times that its passages were seen"

    heat = client.post(
        "/jobs", data={"kind": "tokens", **fields, "passage": mine["proponent"][0][0]}, headers=own(client)
    ).json()
    tokens = wait(client, heat["id"])["heat"]
    assert len(tokens) > 3

    going = client.post("/jobs", data={"kind": "continue", **fields}, headers=own(client)).json()
    assert wait(client, going["id"])["state"] == "done"
    chosen = client.get(
        "/ask", params={"prompt": probe["prompt"], "go": "1", "from": "0", "to": "1", "index": "headwater"}
    )
    assert chosen.text.count('aria-current="true" title=') == 2
    explain = re.search(
        r'name="prompt" value="([^"]*)"><input type="hidden" name="target" value="([^"]*)"', chosen.text
    )
    assert explain is not None

    with Attributor.open(explored / "index/headwater") as attributor:
        (record,) = attributor.trace(
            [(probe["prompt"], probe["target"])], curvature="train", bottom_k=5, duplicates="collapse"
        )
        for end, found in mine.items():
            assert [name for name, _ in found] == record[f"{end}_ids"]
            assert [score for _, score in found] == pytest.approx(record[f"{end}_scores"], rel=1e-5)
        opened = attributor.opened[0]
        logprobs = answer_logprobs(opened, probe["prompt"], probe["target"])
        expected = [logprob_of(opened, probe["prompt"], probe["target"], n) for n in range(len(logprobs))]
        assert logprobs == pytest.approx(expected, rel=1e-4, abs=1e-4)
        token = next(continuation(opened, probe["prompt"], 1))
        assert token.others[0] == (token.text, token.prob)
        assert sum(prob for _, prob in token.others) <= 1


def logprob_of(opened, prompt: str, target: str, place: int) -> float:
    """Of one target token, from the loss that the model is trained with."""
    import numpy as np

    from headwater.attribution.models.base import Example
    from headwater.attribution.models.headwater import pack
    from headwater.train.tokenizer import encode_query

    tokens, start = encode_query(opened.passages.tokenizer, prompt, target)
    weights = np.zeros(len(tokens), np.float32)
    weights[start + place] = 1
    model = opened.collector.model
    model.gpt.loss_kind = "cross_entropy"
    batch, _ = pack([Example(tokens, weights=weights)])
    return -float(model.gpt.run(batch)[0])


def test_questions_without_an_answer_say_why(client: httpx.Client) -> None:
    def post(**fields: str) -> httpx.Response:
        return client.post("/jobs", data=fields, headers=own(client))

    assert "has no prompt" in post(kind="trace", prompt=" ", target="x").json()["error"]
    assert "no answer to explain" in post(kind="trace", prompt="x", target="").json()["error"]
    assert "too long" in post(kind="trace", prompt="x" * 4001, target="x").json()["error"]
    assert "cannot be asked" in post(kind="delete", prompt="x").json()["error"]
    assert "no index" in post(kind="trace", prompt="x", target="y", index="../x").json()["error"]
    assert client.post("/jobs", content=b"x" * 70_000, headers=own(client)).status_code == 400
    lost = post(kind="tokens", prompt="x", target="y", passage="nobody#1").json()
    assert "no passage has the id" in wait(client, lost["id"])["error"]
    assert client.get("/jobs/nobody").status_code == 404


class Slow(Desk):
    """A desk whose questions take as long as they are let."""

    def _open_first(self) -> None:
        return

    def _attributor(self, entry):
        return None

    def _trace(self, job, attributor):
        for n in range(2000):
            self._watch(job)(n, 2000)
            time.sleep(0.01)


def test_who_leaves_is_not_waited_for(explored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.attribution.explorer.live.LEASE_S", 1.2)
    desk = Slow(find([explored]))
    try:
        first = desk.submit(Asked("trace", "headwater", "a", "b"))
        second = desk.submit(Asked("trace", "headwater", "c", "d"))
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            desk.look(first.id)
            desk.look(second.id)
            time.sleep(0.05)
        assert (first.state, second.state, desk.ahead(second)) == ("scanning", "waiting", 1)
        desk.leave(first.id)
        until = time.monotonic() + 5
        while first.state != "dropped" and time.monotonic() < until:
            desk.look(second.id)
            time.sleep(0.05)
        assert first.state == "dropped"
        assert desk.submit(first.asked) is not first, "asked again, it begins again"
        while len(desk._waiting) < 8:
            desk.submit(Asked("trace", "headwater", f"{len(desk._waiting)}", "x"))
        with pytest.raises(BusyError, match="too many"):
            desk.submit(Asked("trace", "headwater", "one more", "x"))
    finally:
        desk.close()


def test_a_site_without_an_index_takes_no_questions(hostile: Path) -> None:
    site = site_of(find([hostile]))
    assert site.desk is None
    with pytest.raises(UserError):
        Desk(find([hostile])).submit(Asked("trace", "", "a", "b"))


def test_an_index_of_a_hugging_face_model_is_asked(tiny_llama: Path, tmp_path: Path) -> None:
    """An index alone, with its own corpus and no run: a question, and how the model goes on."""
    import torch

    from headwater.attribution.index.build import build_index
    from headwater.attribution.settings import (
        IndexSettings,
        ProjectionSettings,
        TracedCorpusSettings,
        TracedModelSettings,
    )

    source = tmp_path / "docs.jsonl"
    source.write_text(
        "".join(json.dumps({"id": f"d{n}", "text": f"river {n} stone harbour"}) + "\n" for n in range(30))
    )
    build_index(
        IndexSettings(
            out=str(tmp_path / "index"),
            model=TracedModelSettings(run="", path=str(tiny_llama)),
            corpus=TracedCorpusSettings(path=str(source), max_tokens=40),
            projection=ProjectionSettings(dims=4),
            codecs=["fp32"],
        )
    )
    with served(tmp_path / "index") as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/").text.count("<nav") == 1
        fields = {"prompt": "river 3", "target": "stone"}
        asked = client.post("/jobs", data={"kind": "trace", **fields}, headers=own(client)).json()
        assert wait(client, asked["id"])["error"] == ""
        rows = client.get("/ask.json", params=fields).json()["rows"]
        assert len(rows) == 25
        assert (
            client.get("/read", params={"p": rows[0]["passage"], "job": asked["id"], "index": "index"}).status_code
            == 200
        )
        going = client.post("/jobs", data={"kind": "continue", "prompt": "river"}, headers=own(client)).json()
        assert wait(client, going["id"])["state"] == "done"
    with Attributor.open(tmp_path / "index") as attributor:
        opened = attributor.opened[0]
        model = opened.collector.model.model
        ids = torch.tensor([[opened.passages.tokenizer.bos_id, *opened.passages.tokenizer.encode("river")]])
        best = model(input_ids=ids).logits[0, -1, : opened.passages.tokenizer.tokenizer.get_vocab_size()].argmax()
        token = next(continuation(opened, "river", 1), None)
        told = None if token is None else token.text
        assert told == (
            None if int(best) == opened.passages.tokenizer.bos_id else opened.passages.tokenizer.pieces([int(best)])[0]
        )


def test_a_run_is_asked_wherever_it_was_moved(explored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index noted where its run was; it lies in another directory now, and the process is in a third."""
    run = tmp_path / "moved"
    shutil.copytree(explored, run)
    manifest = json.loads((run / "index/headwater/index.json").read_text())
    manifest["places"]["run"][1] = "/gone/run"
    (run / "index/headwater/index.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    found = find([run / "index/headwater"])
    assert found.homes[0].path.resolve() == run.resolve()
    with Attributor.open(run / "index/headwater") as attributor:
        (record,) = attributor.trace([("The company is", "Orrery")], top_k=3)
        assert all(record["proponent_seen_steps"][n] is not None for n in range(3))


def test_a_half_written_index_is_one_message(explored: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    shutil.copytree(explored / "index/headwater", index)
    manifest = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(manifest | {"complete": False}))
    with served(index) as address, httpx.Client(base_url=address, timeout=60) as client:
        page = client.get("/").text
        assert "half written" in page
        assert "There is no index to ask here" in page
        answer = client.post("/ask", data={"prompt": "x", "target": "y"}, headers=own(client))
        assert answer.status_code == 404
