"""Checks before every request: API key, origin, host and size of the body. It also counts the answers."""

import asyncio
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from syzygy.server.limits import Limits
from syzygy.server.metrics import Metrics
from syzygy.server.problems import Problem

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class SecurityMiddleware:
    """ASGI middleware. It reads bodies whole, so that no handler sees one that is too large."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        paths: Sequence[str],
        api_key: str | None,
        hosts: Sequence[str] | None,
    ) -> None:
        """
        Args:
            paths: the paths that metrics count separately.
            hosts: allowed names in the header Host; None allows all.
        """
        self.app, self.limits, self.metrics = app, limits, metrics
        self.paths, self.hosts = frozenset(paths), hosts
        self.key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        head = scope.get("method") == "HEAD"
        if head:  # answered as GET is, without the body
            scope = {**scope, "method": "GET"}

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.request(path, message["status"])
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
            messages = await self._body(Headers(scope=scope), receive)
        except Problem as problem:
            await problem.response()(scope, receive, counted)
            return
        if messages is None:
            return

        async def replayed() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replayed, counted)

    def _check(self, path: str, headers: Headers) -> None:
        try:
            name = urlsplit(f"//{headers.get('host', '')}").hostname
        except ValueError:
            name = None
        if self.hosts is not None and name not in self.hosts:
            raise Problem(
                421,
                "this server does not answer to the name in the header Host; --allow-host allows further names.",
                code="wrong_host",
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            raise Problem(403, "pages of other sites are not allowed to use this server.", code="foreign_origin")
        if self.key is not None and (path.startswith("/v1/") or path == "/metrics"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1"), self.key)
            if scheme.lower() != "bearer" or not right:
                raise Problem(
                    401,
                    "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
                    code="invalid_api_key",
                )

    async def _body(self, headers: Headers, receive: Receive) -> list[Message] | None:
        """The body in one message; None if the client left before its end."""
        most = self.limits.upload
        too_large = Problem(413, f"the body is larger than the {most:,} bytes allowed.", code="body_too_large")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > most:
                        raise too_large
        except TimeoutError:
            raise Problem(408, "the body did not arrive in time.", code="body_too_slow") from None
        return [{"type": "http.request", "body": b"".join(parts), "more_body": False}]
