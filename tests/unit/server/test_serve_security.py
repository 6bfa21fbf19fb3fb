"""The checks before every request, as an ASGI server meets them."""

import asyncio
import json
import socket
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from syzygy.server.admission import Admission
from syzygy.server.limits import Limits
from syzygy.server.metrics import Metrics
from syzygy.server.security import SecurityMiddleware, is_loopback, own_names
from syzygy.server.worker import Worker

LIMITS = Limits(upload=2000)
HASTY = Limits(upload=2000, upload_seconds=0.05)
KEY = "s3cret"


class Told:
    """One request through the middleware: what the application read, and what the client got."""

    def __init__(
        self,
        parts: list[bytes],
        headers: Mapping[str, str] = {},
        path: str = "/v1/models",
        limits: Limits = LIMITS,
        hosts: frozenset[str] | None = None,
        **more: Any,
    ) -> None:
        self.parts, self.read = list(parts), 0
        self.body: bytes | None = None
        self.sent: list[dict[str, Any]] = []
        self.metrics = Metrics()
        engine: Any = SimpleNamespace(lanes=1)  # nothing is generated here
        admission = Admission(limits, Worker(engine, self.metrics, batch_size=1))
        middleware = SecurityMiddleware(
            self.app, admission=admission, metrics=self.metrics, paths=["/v1/models"], api_key=KEY, hosts=hosts
        )
        raw = [(name.encode(), value.encode()) for name, value in {"authorization": f"Bearer {KEY}", **headers}.items()]
        asyncio.run(middleware({"type": "http", "path": path, "headers": raw, **more}, self.receive, self.send))

    async def app(self, _scope: Any, receive: Any, send: Any) -> None:
        self.body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive(self) -> dict[str, Any]:
        if not self.parts:
            await asyncio.sleep(60)
        part = self.parts.pop(0)
        self.read += len(part)
        if part == b"gone":
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": part != b""}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def answer(self) -> tuple[int, str | None]:
        status = self.sent[0]["status"]
        return status, None if status == 200 else json.loads(self.sent[1]["body"])["error"]["code"]


def test_a_body_of_the_largest_size_is_taken_and_a_larger_one_is_not_read_to_its_end() -> None:
    taken = Told([b"a" * 1000, b"b" * 1000, b""], {"content-length": "2000"})
    assert (taken.answer, taken.body) == ((200, None), b"a" * 1000 + b"b" * 1000)
    refused = Told([b"a" * 1500] * 9 + [b""])
    assert (refused.answer, refused.body, refused.read) == ((413, "body_too_large"), None, 3000)
    told_before = Told([b"a"], {"content-length": "2001"})
    assert (told_before.answer, told_before.read) == ((413, "body_too_large"), 0)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    slow = Told([b"a"], limits=HASTY)
    assert (slow.answer, slow.body) == ((408, "body_too_slow"), None)
    gone = Told([b"a", b"gone"])
    assert (gone.sent, gone.body) == ([], None)


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cretx", "Bearer S3CRET", "Basic s3cret", "s3cret"]
)
def test_another_key_is_no_key(given: str) -> None:
    refused = Told([b""], {"authorization": given})
    assert (refused.answer, refused.body, refused.read) == ((401, "invalid_api_key"), None, 0)
    names = {name: value for name, value in refused.sent[0]["headers"]}
    assert names[b"www-authenticate"] == b"Bearer"


def test_the_key_is_told_in_any_spelling_of_bearer_and_is_not_asked_for_elsewhere() -> None:
    assert Told([b""], {"authorization": f"bearer  {KEY}"}).answer == (200, None)
    assert Told([b""], {"authorization": ""}, path="/healthz").answer == (200, None)
    assert Told([b""], {"authorization": ""}, path="/metrics").answer == (401, "invalid_api_key")


def test_paths_that_are_no_routes_are_counted_together() -> None:
    told = Told([b""], path="/anything")
    assert 'syzygy_requests_total{path="other",status="200"} 1' in told.metrics.text({})
    told = Told([b""])
    assert 'syzygy_requests_total{path="/v1/models",status="200"} 1' in told.metrics.text({})


def answered(host: str, *allowed: str, server: str = "192.0.2.7") -> bool:
    """Whether a server without a key, on all addresses of its machine, answers to this header Host."""
    told = Told([b""], {"host": host}, hosts=own_names(*allowed), server=(server, 7860))
    assert told.answer in ((200, None), (421, "wrong_host"))
    return told.answer[0] == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:7860", "[::1]:7860", "192.0.2.7:7860", "192.0.2.7"]
)
def test_a_server_answers_to_its_own_addresses(host: str) -> None:
    assert answered(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "192.0.2.8",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::",
        "1",
    ],
)
def test_other_names_are_not_answered(host: str) -> None:
    """A page of evil.example whose name now has this server's address (DNS rebinding) sends its own name."""
    assert not answered(host)


def test_further_names_and_the_machines_own_are_answered() -> None:
    assert answered("Pictures.example:80", "pictures.Example")
    assert answered(socket.gethostname())
    assert answered("192.0.2.9", "192.0.2.9")
    assert answered("192.0.2.7", server="::ffff:192.0.2.7")  # a socket for both versions of IP


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.2", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("machine", False)],
)
def test_loopback_addresses_let_no_other_machine_in(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_a_failure_of_a_handler_is_answered_and_logged_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Told):
        prompt = "a secret"

        async def app(self, _scope: Any, receive: Any, send: Any) -> None:
            raise ValueError(self.prompt)

    assert Failing([b""]).answer == (500, "internal_error")
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text
