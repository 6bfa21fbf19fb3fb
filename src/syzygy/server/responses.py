"""From a job's events to an answer: one of JSON, or server-sent events as OpenAI names them."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from syzygy.server.metrics import Metrics
from syzygy.server.problems import CLIENT_LEFT, Json, problem_of
from syzygy.server.requests import Order
from syzygy.server.worker import Ended, Event, Job, Painted, Previewed, Stepped, Worker

SILENCE_SECONDS = 10.0
"""After so long without an event a stream says that it lives, for proxies."""


class ClientLeft(Exception):
    """There is nobody to answer."""


class Errand:
    """An order handed to the worker, and its events on the server's event loop."""

    def __init__(self, worker: Worker, metrics: Metrics, order: Order) -> None:
        """Raises Problem when the queue is full."""
        self.worker, self.metrics, self.order = worker, metrics, order
        self.began = time.monotonic()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self.job = Job(order, tell)
        worker.submit(self.job)

    async def events(self, receive: Receive) -> AsyncIterator[Event | None]:
        """What happens to the order, up to `Ended`; None after a long silence. However this ends, the job ends with it.

        Raises:
            ClientLeft: the client closed the connection.
        """
        gone = asyncio.ensure_future(_left(receive))
        coming = asyncio.ensure_future(self._events.get())
        try:
            while True:
                await asyncio.wait({gone, coming}, timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    event = coming.result()
                    yield event
                    if isinstance(event, Ended):
                        return
                    coming = asyncio.ensure_future(self._events.get())
                elif gone.done():
                    self.metrics.count("cancelled")
                    raise ClientLeft
                else:
                    yield None
        finally:
            gone.cancel()
            coming.cancel()
            self.worker.cancel(self.job)

    def done(self) -> None:
        """Its pictures are there."""
        self.metrics.painted(time.monotonic() - self.began)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(errand: Errand, receive: Receive, size: str | None, notes: Sequence[str]) -> Response:
    """All pictures in one answer, as `images.generate` of OpenAI's clients reads it."""
    found: dict[int, dict[str, Any]] = {}
    try:
        async for event in errand.events(receive):
            if isinstance(event, Painted):
                found[event.picture] = {"b64_json": _text(event.png), "seed": event.seed}
            elif isinstance(event, Ended) and event.error is not None:
                return problem_of(event.error).response()
    except ClientLeft:
        return Response(status_code=CLIENT_LEFT)
    errand.done()
    about = {"created": int(time.time()), "output_format": "png", "background": "opaque", "size": size}
    return Json({**about, "data": [found[picture] for picture in sorted(found)], "warnings": list(notes)})


class EventStream(Response):
    """Pictures as they come. An error before the first event is an answer of its own, with its status."""

    media_type = "text/event-stream"

    def __init__(self, errand: Errand, kind: str, size: str | None, notes: Sequence[str], steps: bool) -> None:
        """
        Args:
            kind: what the events' names begin with: `image_generation`, `image_edit`.
            steps: tell every step too.
        """
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.errand, self.kind, self.steps, self.notes = errand, kind, steps, list(notes)
        self.about = {"size": size, "quality": "auto", "background": "opaque", "output_format": "png"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async for event in self.errand.events(receive):
                if not started and isinstance(event, Ended) and event.error is not None:
                    await problem_of(event.error).response()(scope, receive, send)
                    return
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    started = True
                text = self._told(event)
                if text:
                    await send({"type": "http.response.body", "body": text.encode("ascii"), "more_body": True})
        except (ClientLeft, OSError):
            return
        self.errand.done()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _told(self, event: Event | None) -> str:
        now = {"created_at": int(time.time()), **self.about}
        if isinstance(event, Previewed):
            more = {"partial_image_index": event.number, "index": event.picture, "b64_json": _text(event.png)}
            return _sse(f"{self.kind}.partial_image", {**more, **now})
        if isinstance(event, Painted):
            own = {"index": event.picture, "seed": event.seed, "b64_json": _text(event.png), "warnings": self.notes}
            return _sse(f"{self.kind}.completed", {**own, **now})
        if isinstance(event, Stepped):
            return _sse("syzygy.progress", {"step": event.step, "steps": event.steps}) if self.steps else ""
        if isinstance(event, Ended) and event.error is not None:
            return _sse("error", problem_of(event.error).body)
        return "" if isinstance(event, Ended) else ": waiting\n\n"


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")


def _sse(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"
