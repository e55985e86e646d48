"""An S3 server on loopback that fails when it is told to."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

Answer = Callable[..., Any]
ADDRESS = "s3://runs/mine"
"""Where the `store` of the tests lies."""


class FaultyStore:
    """moto's server behind faults.

    Attributes:
        environment: what reaches it.
        fault: called with (method, path), where `COPY` is a PUT of what is there; returns None, or one of `500`,
            `truncated`, `cut` (half of what is sent arrives), `slow`, `dropped`.
        asked: every (method, path) so far.
        senders: the application that asked so last (AWS_SDK_UA_APP_ID), empty where it has no name.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_: Any, **__: Any) -> None:
                pass

        self.fault: Callable[[str, str], str | None] = lambda *_: None
        self.asked: list[tuple[str, str]] = []
        self.senders: dict[tuple[str, str], str] = {}
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        host, port = self._server.server_address[:2]
        self.environment = {
            "S3_ENDPOINT_URL": f"http://{host!s}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
        }

    def _answer(self, environ: dict[str, Any], start_response: Answer) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        method = "COPY" if "HTTP_X_AMZ_COPY_SOURCE" in environ else method
        self.asked.append((method, path))
        self.senders[method, path] = environ.get("HTTP_USER_AGENT", "").partition("app/")[2].partition(" ")[0]
        fault = self.fault(method, path)
        if fault == "500":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return []
        if fault == "dropped":  # in the middle of what is sent to it
            environ["wsgi.input"].read(10)
            environ["werkzeug.socket"].close()
            return []
        if fault == "cut":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ |= {"wsgi.input": io.BytesIO(body[: len(body) // 2]), "CONTENT_LENGTH": str(len(body) // 2)}
        if fault == "slow":
            time.sleep(1.5)
        answer = self._app(environ, start_response)
        return half(answer) if fault == "truncated" else answer

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()


@contextmanager
def served() -> Iterator[FaultyStore]:
    """The server, which this process's clients find."""
    server = FaultyStore()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server
    server.stop()


def half(answer: Iterable[bytes]) -> Iterator[bytes]:
    """Half of a body whose length was given as a whole one's."""
    body = b"".join(answer)
    yield body[: len(body) // 2]


def started(arguments: list[str], environment: dict[str, str]) -> int:
    """Trains, in this process, with what reaches the server."""
    from headwater.train.__main__ import main

    with mock.patch.dict(os.environ, environment):
        return main(arguments)
