"""What stands before every request, as an ASGI server meets it."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from syzygy.server.limits import Limits
from syzygy.server.metrics import Metrics
from syzygy.server.security import SecurityMiddleware

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
        **more: Any,
    ) -> None:
        self.parts, self.read = list(parts), 0
        self.body: bytes | None = None
        self.sent: list[dict[str, Any]] = []
        self.metrics = Metrics()
        middleware = SecurityMiddleware(
            self.app, limits=limits, metrics=self.metrics, paths=["/v1/models"], api_key=KEY, hosts=None, **more
        )
        raw = [(name.encode(), value.encode()) for name, value in {"authorization": f"Bearer {KEY}", **headers}.items()]
        asyncio.run(middleware({"type": "http", "path": path, "headers": raw}, self.receive, self.send))

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
