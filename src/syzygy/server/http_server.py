"""The HTTP server around the application."""

import asyncio
import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from syzygy.core.errors import UserError
from syzygy.server.limits import Limits

KEEP_ALIVE_SECONDS = 15
WAITING = 2048
"""Connections that may wait to be accepted; uvicorn's own default."""
OTHER_FILES = 256
"""Files that a process opens besides its connections."""
SENDING_SECONDS = 2.0
"""Time for the last answers, after the grace."""


class Connection(H11Protocol):
    """A connection whose requests must arrive in time. When there are too many, the oldest one that is not served gives way."""

    def __init__(self, config: uvicorn.Config, *args: Any, **more: Any) -> None:
        super().__init__(config, *args, **more)
        app: Any = config.app
        self._limits: Limits = app.state.server.limits
        self._open: dict[Connection, None] = app.state.server.connections
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def served(self) -> bool:
        """Whether a request has arrived whole, and the client reads the answer."""
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not (cycle.response_complete or cycle.more_body or self.flow.write_paused)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()
        self._open[self] = None
        if len(self._open) > self._limits.connections:
            oldest = next(one for one in self._open if not one.served)  # there is one: this connection
            del self._open[oldest]
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self._expect_head()  # also while the rest of a refused body arrives
        else:
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        self._open.pop(self, None)
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        """Close the connection if the next request's headers do not arrive in time. What arrives meanwhile does not prolong it."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._limits.head_seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.close()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class HttpServer(uvicorn.Server):
    """Stops in order: no new connections, then the grace for what was admitted, then status 503 for the rest."""

    def __init__(self, config: uvicorn.Config, grace: float) -> None:
        super().__init__(config)
        self.grace = grace
        self._app: Any = config.app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        ends = [loop.call_later(self.grace, self._app.state.server.stop)]
        ends.append(loop.call_later(self.grace + SENDING_SECONDS / 2, self._abort))  # clients that do not read
        await super().shutdown(sockets)
        for end in ends:
            end.cancel()
        if self.force_exit:  # a second Ctrl-C
            self._app.state.server.stop()
            await asyncio.sleep(0.1)

    def _abort(self) -> None:
        for connection in list(self._app.state.server.connections):
            connection.transport.abort()


def allow_files(connections: int) -> None:
    """Raise the number of files that this process may open, as far as the system lets it, so that all connections have room.

    Connections that wait to be accepted are accepted at once, before those that are too many are closed.
    """
    try:
        import resource
    except ImportError:  # of Windows, which has no such limit
        return
    wanted = connections + WAITING + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < highest:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, so that its address is known before the server starts; port 0 takes a free one.

    Connections wait in its queue until the server runs, so no client that has the address is refused.

    Raises:
        UserError: the address is taken, not allowed, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(WAITING)
    except OSError as error:
        bound.close()
        other = "another program uses it" if error.errno == errno.EADDRINUSE else error.strerror
        raise UserError(f"cannot listen on {host}, port {port}: {other}. Choose another with --port.") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Its URL for a browser on this machine."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(app: FastAPI, *, grace: float, proxies: str = "127.0.0.1", verbose: bool = False) -> HttpServer:
    """A server that takes no further connections when it is stopped, and gives requests `grace` seconds.

    Args:
        app: of `create_app`.
        proxies: addresses of proxies whose X-Forwarded headers are trusted.
    """
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients get the reason in the answer
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="info" if verbose else "warning",
        access_log=verbose,
        server_header=False,
        forwarded_allow_ips=proxies,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace + SENDING_SECONDS)),
        ws="none",
    )
    return HttpServer(config, grace)


@contextmanager
def serving(app: FastAPI, *, grace: float = 5.0) -> Iterator[str]:
    """The server in a thread of this process, on a free local port; yields its URL."""
    import threading
    import time

    bound = listening("127.0.0.1", 0)
    server = server_of(app, grace=grace)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield url_of(bound)
    finally:
        server.should_exit = True
        thread.join()
