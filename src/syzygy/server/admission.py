"""Decides which requests get in, before anything of them is decoded: places in the queue, bytes of bodies, and the server's end."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Receive

from syzygy.server.limits import Limits
from syzygy.server.problems import BUSY, Problem, closing

SMALL_BYTES = 2**16
"""Bodies up to this size are not counted: requests without pictures have a few hundred bytes and need not wait for uploads."""
LONGEST_WAIT_SECONDS = 60.0
"""Largest Retry-After. OpenAI's clients ignore longer ones."""
UPLOAD_WAIT_SECONDS = 2.0
"""Retry-After where too many bytes are held. Decoding a body takes about a second."""
LATE_SECONDS = 5.0
"""A reserved place is kept for this time after the Retry-After that its client got."""


class Schedule(Protocol):
    """What admission must know about the work that is admitted already."""

    @property
    def running(self) -> int:
        """Requests that are computed now, so that they do not wait."""
        ...

    def starts(self) -> Sequence[float]:
        """Seconds until each waiting request is expected to start, in their order."""
        ...


@dataclass(eq=False)
class Entry:
    """A request with a body, from its headers to its answer."""

    client: str
    held: int = 0
    """Bytes of its body that count."""
    place: bool = False
    """Whether it has a place in the queue."""
    receiving: asyncio.Timeout | None = None
    """Ends the wait for its body."""


class Admission:
    """Counts what is inside. It belongs to the event loop, so it needs no lock.

    A client that met a full queue gets a reservation for the time when a place is expected to be free (`Retry-After`). Places that
    become free go to reservations first, so clients that came later cannot overtake it. A client, known by its address, has at most one.
    """

    def __init__(self, limits: Limits, schedule: Schedule) -> None:
        self.limits, self.schedule = limits, schedule
        self._entries: set[Entry] = set()
        self._reserved: dict[str, float] = {}
        """Address of the client → when its reservation ends; the first in line first."""
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes of large bodies that are received or wait to be decoded."""
        return sum(entry.held for entry in self._entries)

    @asynccontextmanager
    async def entry(self, client: str) -> AsyncIterator[Entry]:
        """What a request holds is free again when the block ends.

        Raises:
            Problem: 503 when the server stops.
        """
        if self._closed:
            raise closing()
        entry = Entry(client)
        self._entries.add(entry)
        try:
            yield entry
        finally:
            self._entries.discard(entry)

    async def body(self, entry: Entry, declared: str, receive: Receive) -> bytes | None:
        """The whole body; None if the client left before its end.

        Args:
            declared: the header Content-Length.

        Raises:
            Problem: 413 if it is too large, 408 if it does not arrive in time, 429 if too many bytes are held, 503 when the server stops.
        """
        most = self.limits.upload
        too_large = Problem(413, f"the body is larger than the {most:,} bytes allowed.", code="body_too_large")
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.limits.upload_seconds) as entry.receiving:
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_large
                    self._hold(entry, len(body))
        except TimeoutError:
            raise (
                closing() if self._closed else Problem(408, "the body did not arrive in time.", code="body_too_slow")
            ) from None
        finally:
            entry.receiving = None
        return bytes(body)

    def _hold(self, entry: Entry, size: int) -> None:
        entry.held = size if size > SMALL_BYTES else 0
        if entry.held and self.held > self.limits.held:
            raise Problem(
                429,
                "too many uploads arrive at the moment: try again after the time that Retry-After gives.",
                kind=BUSY,
                code="uploads_full",
                retry_after=UPLOAD_WAIT_SECONDS,
            )

    def take_place(self, entry: Entry) -> None:
        """Give the request a place in the queue.

        Raises:
            Problem: 429 when there is none, 503 when the server stops.
        """
        if self._closed:
            raise closing()
        now = time.monotonic()
        self._reserved = {client: end for client, end in self._reserved.items() if end > now}
        waiting = max(sum(one.place for one in self._entries) - self.schedule.running, 0)
        free = self.limits.queue - waiting
        line = [*self._reserved]
        ahead = line.index(entry.client) if entry.client in line else len(line)
        if free > ahead:
            self._reserved.pop(entry.client, None)
            entry.place = True
            return
        starts = self.schedule.starts()
        needed = ahead + 1 - free  # so many must start before there is a place for this one
        wait = min(starts[min(needed, len(starts)) - 1] if starts else 0.0, LONGEST_WAIT_SECONDS)
        if entry.client in self._reserved or len(line) < self.limits.queue:
            self._reserved[entry.client] = now + max(wait, 1) + LATE_SECONDS
        raise Problem(
            429,
            f"{waiting} requests are waiting already, and {ahead} clients are in line for a place before this one: "
            "try again after the time that Retry-After gives.",
            kind=BUSY,
            code="queue_full",
            retry_after=wait,
        )

    def decoded(self, entry: Entry) -> None:
        """The request's body is no longer held."""
        entry.held = 0

    def close(self) -> None:
        """Let nobody in any more, and end the wait for bodies."""
        self._closed = True
        for entry in self._entries:
            if entry.receiving is not None:
                entry.receiving.reschedule(0)
