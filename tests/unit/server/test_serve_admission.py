"""Who gets in: places in the queue, the line before it, and bytes of bodies."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from syzygy.server import admission
from syzygy.server.admission import SMALL_BYTES, Admission, Entry
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem

LIMITS = Limits(queue=2, upload=2**20)


class Plan:
    """A schedule with these numbers."""

    def __init__(self, running: int = 0, starts: Sequence[float] = ()) -> None:
        self.running, self.waits = running, starts

    def starts(self) -> Sequence[float]:
        return self.waits


class Clients:
    """Requests inside, and those that are refused."""

    def __init__(self, door: Admission) -> None:
        self.door = door
        self.inside: list[tuple[Entry, Any]] = []

    async def come(self, client: str) -> int | None:
        """The Retry-After of one that is refused; None for one that gets a place."""
        context = self.door.entry(client)
        entry = await context.__aenter__()
        try:
            self.door.take_place(entry)
        except Problem as problem:
            await context.__aexit__(None, None, None)
            return int(problem.headers["Retry-After"]) if problem.status == 429 else -problem.status
        self.inside.append((entry, context))
        return None

    async def leave(self) -> None:
        """The first one inside is answered."""
        await self.inside.pop(0)[1].__aexit__(None, None, None)


@asynccontextmanager
async def clients(plan: Plan, limits: Limits = LIMITS) -> AsyncIterator[Clients]:
    found = Clients(Admission(limits, plan))
    yield found
    while found.inside:
        await found.leave()


async def arriving(*parts: bytes, then: float = 0.0) -> Any:
    """A `receive` for a body in these parts; the last one after some seconds."""
    left = [*parts]

    async def receive() -> dict[str, Any]:
        if len(left) == 1:
            await asyncio.sleep(then)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return receive


def test_as_many_wait_as_the_queue_has_places_and_those_that_are_computed_do_not_count() -> None:
    async def run() -> None:
        plan = Plan()
        async with clients(plan) as found:
            assert [await found.come("a") for _ in range(2)] == [None, None]
            assert await found.come("a") == 1  # nothing is known about the time yet
            plan.running = 1
            assert await found.come("a") is None
            assert await found.come("a") is not None
            await found.leave()
            assert await found.come("a") is None

    asyncio.run(run())


def test_a_client_that_met_a_full_queue_is_not_overtaken_by_later_ones() -> None:
    async def run() -> None:
        plan = Plan(starts=[4.0, 9.5])
        async with clients(plan) as found:
            assert [await found.come(name) for name in "ab"] == [None, None]
            assert [await found.come(name) for name in "cd"] == [4, 10]  # when the first, then the second starts
            assert await found.come("c") == 4  # it asks too early, and keeps its place in line
            await found.leave()
            assert await found.come("e") == 10  # the only place is kept for c
            assert await found.come("d") == 4
            assert await found.come("c") is None
            await found.leave()
            assert await found.come("d") is None

    asyncio.run(run())


def test_reservations_end_and_are_at_most_as_many_as_places(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        plan = Plan(starts=[2.0])
        now = time.monotonic()
        async with clients(plan) as found:
            for name in "ab":
                await found.come(name)
            for name in "cdef":
                assert await found.come(name) is not None
            assert len(found.door._reserved) == LIMITS.queue
            await found.leave()
            assert await found.come("g") is not None
            monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now + 60))
            assert await found.come("g") is None

    asyncio.run(run())


def test_nobody_is_told_to_wait_longer_than_clients_do() -> None:
    async def run() -> None:
        async with clients(Plan(starts=[1000.0])) as found:
            for name in "ab":
                await found.come(name)
            assert await found.come("c") == admission.LONGEST_WAIT_SECONDS

    asyncio.run(run())


def test_large_bodies_share_a_limit_and_small_ones_do_not_count() -> None:
    big = b"a" * LIMITS.upload

    async def run() -> None:
        door = Admission(LIMITS, Plan())
        async with AsyncExitStack() as stack:

            async def sent(body: bytes) -> Entry:
                entry = await stack.enter_async_context(door.entry("a"))
                assert await door.body(entry, str(len(body)), await arriving(body)) == body
                return entry

            for _ in range(LIMITS.held // LIMITS.upload):
                await sent(big)
            assert door.held == LIMITS.held
            with pytest.raises(Problem) as full:
                await sent(b"a" * (SMALL_BYTES + 1))
            assert (full.value.status, full.value.body["error"]["code"]) == (429, "uploads_full")
            assert int(full.value.headers["Retry-After"]) >= 1
            await sent(b"a" * SMALL_BYTES)
            await stack.pop_all().aclose()
            assert door.held == 0
            door.decoded(await sent(big))
            assert door.held == 0

    asyncio.run(run())


def test_bytes_count_while_they_arrive() -> None:
    async def run() -> None:
        door = Admission(LIMITS, Plan())
        async with door.entry("a") as entry:
            body = asyncio.ensure_future(door.body(entry, "", await arriving(b"a" * 100_000, b"a", then=60)))
            await asyncio.sleep(0.01)
            assert door.held == 100_000
            body.cancel()
        assert door.held == 0

    asyncio.run(run())


def test_the_end_of_the_server_ends_uploads_and_lets_nobody_in() -> None:
    async def run() -> None:
        door = Admission(LIMITS, Plan())
        async with door.entry("a") as slow, door.entry("a") as late:
            body = asyncio.ensure_future(door.body(slow, "", await arriving(b"a", b"a", then=60)))
            await asyncio.sleep(0.01)
            door.close()
            with pytest.raises(Problem, match="shutting down"):
                await body
            with pytest.raises(Problem, match="shutting down"):
                door.take_place(late)
        with pytest.raises(Problem, match="shutting down"):
            async with door.entry("a"):
                pass

    asyncio.run(run())
