"""Answers from a job's events: one JSON document, or server-sent events with OpenAI's names."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from syzygy.server.metrics import Metrics
from syzygy.server.problems import ClientLeft, Json, closing, problem_of
from syzygy.server.requests import ImageRequest
from syzygy.server.worker import Event, Finished, ImageReady, Job, PreviewReady, Queued, StepDone, Worker

SILENCE_SECONDS = 10.0
"""After this time without an event a stream sends a comment, so that proxies keep the connection."""
T = TypeVar("T")


class RequestStream:
    """A request in the worker, and its events on the server's event loop."""

    def __init__(self, worker: Worker, metrics: Metrics, request: ImageRequest) -> None:
        """Raises Problem when the server stops."""
        self.worker, self.metrics, self.request = worker, metrics, request
        self.began = time.monotonic()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def send(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self.job = Job(request, send)
        worker.submit(self.job)

    async def events(self, receive: Receive) -> AsyncIterator[Event | None]:
        """The request's events, up to `Finished`; None after a long silence. The job ends when this generator does.

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
                    if isinstance(event, Finished):
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
        """Record in the metrics that all its images were sent."""
        self.metrics.served(time.monotonic() - self.began)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def in_thread(executor: Executor, work: Callable[[], T], receive: Receive) -> T:
    """The result of `work`, which is dropped if its turn has not come when the client leaves.

    Raises:
        ClientLeft: the client closed the connection.
        Problem: the executor was shut down before the turn of this work.
    """
    try:
        coming = asyncio.get_running_loop().run_in_executor(executor, work)
    except RuntimeError:  # it was shut down
        raise closing() from None
    gone = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({gone, coming}, return_when=asyncio.FIRST_COMPLETED)
        if coming.cancelled():
            raise closing()
        if not coming.done():
            raise ClientLeft
        return coming.result()
    finally:
        gone.cancel()
        coming.cancel()


async def complete(stream: RequestStream, receive: Receive, size: str | None, notes: Sequence[str]) -> Response:
    """All images in one answer, as `images.generate` of OpenAI's clients reads it."""
    found: dict[int, dict[str, Any]] = {}
    async for event in stream.events(receive):
        if isinstance(event, ImageReady):
            found[event.picture] = {"b64_json": _text(event.png), "seed": event.seed}
        elif isinstance(event, Finished) and event.error is not None:
            return problem_of(event.error).response()
    stream.done()
    about = {"created": int(time.time()), "output_format": "png", "background": "opaque", "size": size}
    return Json({**about, "data": [found[picture] for picture in sorted(found)], "warnings": list(notes)})


class EventStream(Response):
    """Images as they are finished. An error before the first event is a plain answer with its status."""

    media_type = "text/event-stream"

    def __init__(self, stream: RequestStream, kind: str, size: str | None, notes: Sequence[str], steps: bool) -> None:
        """
        Args:
            kind: start of the events' names: `image_generation`, `image_edit`.
            steps: send an event for each sampling step, and for each change of the position in the queue, too.
        """
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.stream, self.kind, self.steps, self.notes = stream, kind, steps, list(notes)
        self.about = {"size": size, "quality": "auto", "background": "opaque", "output_format": "png"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._send_all(scope, receive, send)
        except OSError:  # of `send`, as some servers say that the client has left
            raise ClientLeft from None

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, error = False, None
        async for event in self.stream.events(receive):
            error = event.error if isinstance(event, Finished) else None
            if error is not None and not started:
                await problem_of(error).response()(scope, receive, send)
                return
            if isinstance(event, Queued) and not self.steps:  # until the first step, an error is a plain answer
                continue
            if not started:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                started = True
            text = self._text_of(event)
            if text:
                await send({"type": "http.response.body", "body": text.encode("ascii"), "more_body": True})
        if error is None:
            self.stream.done()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _text_of(self, event: Event | None) -> str:
        now = {"created_at": int(time.time()), **self.about}
        if isinstance(event, PreviewReady):
            more = {"partial_image_index": event.number, "index": event.picture, "b64_json": _text(event.png)}
            return _sse(f"{self.kind}.partial_image", {**more, **now})
        if isinstance(event, ImageReady):
            own = {"index": event.picture, "seed": event.seed, "b64_json": _text(event.png), "warnings": self.notes}
            return _sse(f"{self.kind}.completed", {**own, **now})
        if isinstance(event, Queued):
            return _sse("syzygy.queue", {"position": event.position, "seconds": round(event.seconds, 1)})
        if isinstance(event, StepDone):
            return _sse("syzygy.progress", {"step": event.step, "steps": event.steps}) if self.steps else ""
        if isinstance(event, Finished) and event.error is not None:
            return _sse("error", problem_of(event.error).body)
        return "" if isinstance(event, Finished) else ": waiting\n\n"


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode("ascii")


def _sse(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"
