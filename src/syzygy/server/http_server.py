"""The HTTP server around the application."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from syzygy.core.errors import UserError

KEEP_ALIVE_SECONDS = 15
WAITING = 2048
"""Connections that may wait to be accepted; uvicorn's own default."""


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
        raise UserError(
            f"cannot listen on {host}, port {port}: {error.strerror}. Choose another with --port."
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Its URL for a browser on this machine."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_of(app: FastAPI, *, grace: float, proxies: str = "127.0.0.1", verbose: bool = False) -> uvicorn.Server:
    """A server that takes no further requests when it is stopped, and gives running ones `grace` seconds.

    Args:
        proxies: addresses of proxies whose X-Forwarded headers are trusted.
    """
    config = uvicorn.Config(
        app,
        log_level="info" if verbose else "warning",
        access_log=verbose,
        server_header=False,
        forwarded_allow_ips=proxies,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace)),
        ws="none",
    )
    return uvicorn.Server(config)


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
