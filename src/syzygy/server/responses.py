"""Answers from a job's events: one JSON document, or server-sent events with OpenAI's names."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from syzygy.server.metrics import Metrics
from syzygy.server.problems import ClientLeft, Json, closing, problem_of
from syzygy.server.requests import ImageRequest
from syzygy.server.worker import Event, Finished, ImageReady, Job, PreviewReady, Queued, StepDone, Worker

SILENCE_SECONDS = 10.0
"""After this time without an event a stream sends a comment, so that proxies keep the connection."""
_DETAILS = {"image_tokens": 0, "text_tokens": 0}
USAGE = {
    "input_tokens": 0,
    "input_tokens_details": _DETAILS,
    "output_tokens": 0,
    "output_tokens_details": _DETAILS,
    "total_tokens": 0,
}
"""Tokens, as clients of OpenAI expect them. This server counts none."""
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


class About(NamedTuple):
    """What an answer says about all of its images."""

    kind: str
    """Start of the events' names: `image_generation`, `image_edit`."""
    size: str
    quality: str
    output_format: str
    warnings: Sequence[str]

    @property
    def fields(self) -> dict[str, str]:
        """As OpenAI's answers and events have them."""
        about = {"size": self.size, "quality": self.quality, "output_format": self.output_format}
        return {**about, "background": "opaque"}


async def complete(
    stream: RequestStream, receive: Receive, about: About, url_of: Callable[[bytes], str] | None
) -> Response:
    """All images in one answer, as `images.generate` of OpenAI's clients reads it.

    Args:
        url_of: stores an image, and returns its URL. None puts the images into the answer.
    """
    found: list[ImageReady] = []
    async for event in stream.events(receive):
        if isinstance(event, ImageReady):
            found.append(event)
        elif isinstance(event, Finished) and event.error is not None:
            return problem_of(event.error).response()
    stream.done()
    data = [
        {**({"b64_json": _text(one.file)} if url_of is None else {"url": url_of(one.file)}), "seed": one.seed}
        for one in sorted(found, key=lambda one: one.picture)
    ]
    notes = [note for one in found for note in one.notes]
    warnings = list(dict.fromkeys([*about.warnings, *notes]))
    return Json({"created": int(time.time()), **about.fields, "data": data, "usage": USAGE, "warnings": warnings})


class EventStream(Response):
    """Images as they are finished. An error before the first event is a plain answer with its status."""

    media_type = "text/event-stream"

    def __init__(self, stream: RequestStream, about: About, steps: bool) -> None:
        """
        Args:
            steps: send an event for each sampling step, and for each change of the position in the queue, too.
        """
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.stream, self.about, self.steps = stream, about, steps

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
        now, kind = {"created_at": int(time.time()), **self.about.fields}, self.about.kind
        if isinstance(event, PreviewReady):
            more = {"partial_image_index": event.number, "index": event.picture, "b64_json": _text(event.file)}
            return _sse(f"{kind}.partial_image", {**more, **now})
        if isinstance(event, ImageReady):
            warnings = list(dict.fromkeys([*self.about.warnings, *event.notes]))
            own = {"index": event.picture, "seed": event.seed, "b64_json": _text(event.file), "warnings": warnings}
            return _sse(f"{kind}.completed", {**own, **now, "usage": USAGE})
        if isinstance(event, Queued):
            return _sse("syzygy.queue", {"position": event.position, "seconds": round(event.seconds, 1)})
        if isinstance(event, StepDone):
            return _sse("syzygy.progress", {"step": event.step, "steps": event.steps}) if self.steps else ""
        if isinstance(event, Finished) and event.error is not None:
            return _sse("error", problem_of(event.error).body)
        return "" if isinstance(event, Finished) else ": waiting\n\n"


def _text(file: bytes) -> str:
    return base64.b64encode(file).decode("ascii")


def _sse(name: str, data: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"
