"""The server: addresses to pages, posted questions to the desk. All that it says goes through guard.HEADERS."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from headwater.attribution.drawing.words import clean
from headwater.attribution.explorer.drawn import ASSETS, VIEWS, csv_lines, html, json_lines, navigation
from headwater.attribution.explorer.grammar import FilterError
from headwater.attribution.explorer.guard import COOKIE, HEADERS, Guard, same
from headwater.attribution.explorer.limits import ADDRESS_CHARACTERS, BODY_BYTES
from headwater.attribution.explorer.links import query_of
from headwater.attribution.explorer.live import Asked, BusyError, Desk
from headwater.attribution.explorer.pages.ask import status_of
from headwater.attribution.explorer.pages.base import Site, View
from headwater.attribution.explorer.pages.read import heat
from headwater.attribution.explorer.saving import pair_lines
from headwater.configs.errors import MissingError, UserError

KINDS = ("trace", "continue", "tokens")


def make_app(site: Site, guard: Guard) -> FastAPI:
    """The application over what `site` holds."""

    @asynccontextmanager
    async def alive(app: FastAPI) -> Any:
        yield
        if site.desk is not None:
            await run_in_threadpool(site.desk.close)

    # No pages of documentation: theirs load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=alive)
    app.middleware("http")(guarded(site, guard))
    app.add_exception_handler(404, lambda request, error: trouble(site, MissingError("there is no such page"), 404))
    app.add_exception_handler(UserError, lambda request, error: refused(site, request, error))  # type: ignore[arg-type]
    app.add_exception_handler(OSError, lambda request, error: trouble(site, gone(error)))  # type: ignore[arg-type]
    app.add_exception_handler(Exception, lambda request, error: trouble(site, unforeseen(error), 500))
    add_assets(app)
    add_questions(app, site)
    add_pages(app, site)
    return app


def guarded(site: Site, guard: Guard) -> Callable[..., Any]:
    """Middleware: lets through what the guard does, and puts its headers on every answer."""

    async def check(request: Request, proceed: Callable[..., Any]) -> Response:
        given = request.query_params.get("token", "")
        if len(request.url.query) > ADDRESS_CHARACTERS:
            response: Response = HTMLResponse("The address is too long.", 414)
        elif guard.token and given and same(given, guard.token) and request.method == "GET":
            rest = query_of({name: value for name, value in request.query_params.items() if name != "token"})
            response = RedirectResponse(request.url.path + (f"?{rest}" if rest else ""), 303)
            response.set_cookie(COOKIE, guard.token, httponly=True, samesite="strict")
        elif refused := guard.refusal(request.method, request.headers, request.cookies):
            response = HTMLResponse(refused[1], refused[0])
        else:
            response = await proceed(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return check


def refused(site: Site, request: Request, error: UserError) -> HTMLResponse:
    """What a user can mend; a filter that cannot be understood can be mended on the spot."""
    again = dict(request.query_params) if isinstance(error, FilterError) else {}
    return trouble(site, error, again=again, action=request.url.path)


def trouble(
    site: Site, error: Exception, status: int = 400, *, again: dict[str, str] | None = None, action: str = ""
) -> HTMLResponse:
    """A page with one clear message.

    Args:
        again: parameters of the page, for a form that asks for its filter again; `action` is its address.
    """
    status = 404 if isinstance(error, MissingError) and status == 400 else status
    status = 429 if isinstance(error, BusyError) else status
    heading = {404: "That is not here", 429: "Too many at once"}.get(status, "That does not work")
    view = View(
        "trouble",
        heading,
        "trouble",
        {"heading": heading, "message": clean(str(error))[:4000], "again": again or {}, "action": action},
    )
    return HTMLResponse(html(site, view), status, headers=HEADERS)


def gone(error: Exception) -> UserError:
    return UserError(
        "a file cannot be read any more", got=str(error)[:300], fix="restore it, or start the explorer again"
    )


def unforeseen(error: Exception) -> UserError:
    return UserError("the explorer made a mistake", got=f"{type(error).__name__}: {error}"[:300])


def add_assets(app: FastAPI) -> None:
    @app.get("/assets/{name}")
    def asset(name: str) -> Response:
        if name not in ASSETS:
            raise MissingError("there is no such file")
        path, kind = ASSETS[name]
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})


def add_pages(app: FastAPI, site: Site) -> None:
    def view_of(page: str, request: Request) -> View:
        if page not in VIEWS:
            raise MissingError("there is no such page")
        return VIEWS[page](site, request.query_params)

    @app.get("/")
    def home(request: Request) -> Response:
        pages = navigation(site)
        view = view_of(pages[0][0] if pages else "browse", request)
        return HTMLResponse(html(site, view, saves_of(view)))

    @app.get("/results.jsonl")
    def results(request: Request) -> Response:
        lines = pair_lines(site, request.query_params)
        return StreamingResponse(lines, media_type="application/jsonl", headers=attachment("results.jsonl"))

    @app.get("/{page}.json")
    def as_json(page: str, request: Request) -> Response:
        view = view_of(page, request)
        return StreamingResponse(json_lines(view), media_type="application/json", headers=attachment(f"{page}.json"))

    @app.get("/{page}.csv")
    def as_csv(page: str, request: Request) -> Response:
        view = view_of(page, request)
        headers = attachment(f"{page}.csv")
        return StreamingResponse(csv_lines(view), media_type="text/csv; charset=utf-8", headers=headers)

    @app.get("/{page}")
    def page(page: str, request: Request) -> Response:
        view = view_of(page, request)
        return HTMLResponse(html(site, view, saves_of(view)))


def saves_of(view: View) -> list[tuple[str, str]]:
    """Downloads of what a page shows."""
    if view.rows is list:
        return []
    query = query_of(view.params)
    ending = f"?{query}" if query else ""
    saves = [(f"/{view.page}.json{ending}", "JSON"), (f"/{view.page}.csv{ending}", "CSV")]
    if view.page in ("browse", "question"):
        saves.append((f"/results.jsonl{ending}", "results (JSONL)"))
    return saves


def attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def add_questions(app: FastAPI, site: Site) -> None:
    """The ways to the desk; what is posted is read by hand, up to a limit."""

    def desk_of() -> Desk:
        if site.desk is None or not site.desk.indexes:
            raise MissingError("no question can be asked here", expected="an index of a model that is there")
        return site.desk

    @app.post("/ask")
    async def ask(request: Request) -> Response:
        form = await posted(request)
        desk = desk_of()
        going = form.get("do") == "go"
        address = {name: form.get(name, "") for name in ("prompt", "target", "against", "index")}
        if len(desk.indexes) == 1:
            address["index"] = ""
        if going:
            address |= {"target": "", "against": "", "go": "1"}
        asked = asked_in(form | {"kind": "continue" if going else "trace"}, desk)
        await run_in_threadpool(desk.submit, asked)
        return RedirectResponse(f"/ask?{query_of(address)}", 303)

    @app.post("/jobs")
    async def submit(request: Request) -> Response:
        form = await posted(request)
        desk = desk_of()
        try:
            job = await run_in_threadpool(desk.submit, asked_in(form, desk))
        except UserError as error:
            return JSONResponse({"error": clean(str(error))}, 429 if isinstance(error, BusyError) else 400)
        return JSONResponse(status_of(job, desk))

    @app.get("/jobs/{name}")
    def look(name: str) -> Response:
        desk = desk_of()
        try:
            job = desk.look(name)
        except UserError as error:
            return JSONResponse({"error": str(error), "state": "failed"}, 404)
        status = status_of(job, desk)
        if job.asked.kind == "tokens" and job.state == "done":
            status["heat"] = heat(job.result)
        return JSONResponse(status)

    @app.post("/jobs/{name}/leave")
    def leave(name: str) -> Response:
        desk_of().leave(name)
        return Response(status_code=204)


async def posted(request: Request) -> dict[str, str]:
    """The fields of a posted form.

    Raises:
        UserError: it is too long.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES:
            raise UserError("what was posted is too long", expected=f"at most {BODY_BYTES:,} bytes")
    fields = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20)
    # Browsers post line breaks as CR LF.
    return {name: value.replace("\r\n", "\n").replace("\0", "") for name, value in fields}


def asked_in(form: dict[str, str], desk: Desk) -> Asked:
    kind = form.get("kind", "trace")
    if kind not in KINDS:
        raise UserError("that cannot be asked", got=kind[:40], expected=", ".join(KINDS))
    index = desk.index_named(form.get("index", "")).name
    texts = {name: form.get(name, "") for name in ("target", "against", "passage")}
    if kind == "continue":
        texts = dict.fromkeys(texts, "")
    elif kind == "trace":
        texts["passage"] = ""
    return Asked(kind, index, form.get("prompt", ""), **texts)
