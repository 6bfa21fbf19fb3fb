"""Errors as OpenAI's API tells them: `{"error": {"message", "type", "param", "code"}}`."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response

from syzygy.core.errors import NonFiniteError, UserError

REQUEST, BUSY, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
CLIENT_LEFT = 499
"""Nobody reads this status; logs and metrics count it (nginx's number)."""


class Json(Response):
    """A JSON answer in ASCII: broken characters that a client sent cannot break the answer that names them."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


class Problem(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def response(self) -> Json:
        return Json(self.body, status_code=self.status, headers=self.headers)


@contextmanager
def about(param: str) -> Iterator[None]:
    """A mistake found inside is one in this field."""
    try:
        yield
    except NonFiniteError:
        raise
    except UserError as error:
        raise Problem(400, str(error), param=param) from None


def problem_of(error: BaseException) -> Problem:
    """What a client is told of an error: all of its own mistakes, nothing of our bugs."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, NonFiniteError):  # the request was right; the model failed at it
        return Problem(500, str(error), kind=SERVER, code="non_finite_values")
    if isinstance(error, UserError):
        return Problem(400, str(error))
    return Problem(500, "the server failed at this request; its log says why.", kind=SERVER, code="internal_error")


def closing() -> Problem:
    """For requests that a stopping server does not serve any more."""
    return Problem(503, "the server is shutting down.", kind=SERVER, code="shutting_down", retry_after=5.0)
