"""Checks before every request: host, origin, API key, then admission. It also counts and numbers the answers, and logs failures."""

import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from syzygy.server.admission import Admission, Entry
from syzygy.server.metrics import Metrics
from syzygy.server.problems import CLIENT_LEFT, ClientLeft, Problem, problem_of, without_message

ENTRY = "syzygy.entry"
"""Where the scope of a request with a body has its `Entry`."""
QUEUED = "/v1/images/"
"""Requests to these paths need a place in the queue."""
log = logging.getLogger(__name__)


def own_names(*more: str) -> frozenset[str]:
    """Names in the header Host that are answered besides addresses: localhost, this machine's name, and `more`."""
    return frozenset(name.lower() for name in ("localhost", socket.gethostname(), *more))


def is_loopback(name: str) -> bool:
    """Whether only this machine reaches this address. Other names than localhost are not looked up: the answer is no."""
    address = _address(name)
    return name.lower() == "localhost" or (address is not None and address.is_loopback)


def _address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address that is written out; None for names. IPv4 inside IPv6 is IPv4."""
    try:
        found = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


class SecurityMiddleware:
    """ASGI middleware. It reads bodies whole, so that no handler sees one that was not admitted."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        admission: Admission,
        metrics: Metrics,
        paths: Sequence[str],
        api_key: str | None,
        hosts: frozenset[str] | None,
    ) -> None:
        """
        Args:
            paths: the paths that metrics count separately.
            hosts: allowed names in the header Host; None allows all. With names, loopback addresses and the address that the client
                connected to are allowed too. A page of another site reaches this server under a name of its own (DNS rebinding), never
                under these.
        """
        self.app, self.admission, self.metrics = app, admission, metrics
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
        started, number = False, f"req_{secrets.token_hex(16)}"

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = self._begun(message, path, number)
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
            if scope.get("method") in ("GET", "OPTIONS"):
                await self.app(scope, receive, counted)
                return
            async with self.admission.entry((scope.get("client") or ("",))[0]) as entry:
                await self._admitted(entry, scope, receive, counted)
        except ClientLeft:
            if not started:
                self.metrics.request(path, CLIENT_LEFT)
        except Exception as error:
            if not isinstance(error, Problem):
                log.error("request %s to %s failed\n%s", number, path, without_message(error))
            if not started:
                await problem_of(error).response()(scope, receive, counted)

    def _begun(self, message: Message, path: str, number: str) -> Message:
        """The start of an answer with its number; it is counted, and logged where the server failed."""
        self.metrics.request(path, message["status"])
        if message["status"] == 500:
            log.error("request %s to %s got status 500", number, path)
        return {**message, "headers": [*message.get("headers", ()), (b"x-request-id", number.encode())]}

    async def _admitted(self, entry: Entry, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then let the request in."""
        body = await self.admission.body(entry, Headers(scope=scope).get("content-length", ""), receive)
        if body is None:
            return
        if scope["path"].startswith(QUEUED):
            self.admission.take_place(entry)
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        del body  # so that it is free as soon as the application has decoded it

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        await self.app({**scope, ENTRY: entry}, replayed, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if not self._answers_to(headers.get("host", ""), scope):
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
                missing = "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'."
                text = "Incorrect API key provided." if given else missing
                raise Problem(401, text, code="invalid_api_key")

    def _answers_to(self, host: str, scope: Scope) -> bool:
        """Whether the header Host names this server."""
        if self.hosts is None:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        address, own = _address(name), _address((scope.get("server") or ("",))[0])
        return name in self.hosts or (address is not None and (address.is_loopback or address == own))
