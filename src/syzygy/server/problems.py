"""Errors in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

import json
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import Response

from syzygy.core.errors import NonFiniteError, UserError, rebuilt

REQUEST, BUSY, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
CLIENT_LEFT = 499
"""Status for logs and metrics when the client has closed the connection (nginx's number)."""


class ClientLeft(Exception):
    """The client closed the connection."""


class Json(Response):
    """A JSON answer in ASCII, so that broken characters from a client cannot break the answer that quotes them."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


class Problem(Exception):
    """An error with its HTTP status."""

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
        if code is None and status == 400 and param is not None:
            code = "invalid_value"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self), self.args, self.__dict__)

    def response(self) -> Json:
        return Json(self.body, status_code=self.status, headers=self.headers)


@contextmanager
def field_errors(param: str) -> Iterator[None]:
    """Turn a UserError raised inside into a Problem of this field."""
    try:
        yield
    except NonFiniteError:
        raise
    except UserError as error:
        raise Problem(400, str(error), param=param) from None


def problem_of(error: BaseException) -> Problem:
    """The answer to an error: the message where the client made a mistake, no details where the server failed."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, NonFiniteError):  # the request was right; the model failed at it
        return Problem(500, str(error), kind=SERVER, code="non_finite_values")
    if isinstance(error, UserError):
        return Problem(400, str(error))
    return Problem(
        500,
        "The server had an error while processing your request; its log has the details.",
        kind=SERVER,
        code="internal_error",
    )


def closing() -> Problem:
    """The answer to requests when the server is stopping."""
    return Problem(503, "the server is shutting down.", kind=SERVER, code="shutting_down", retry_after=5.0)


def without_message(error: BaseException) -> str:
    """A traceback for the log. Messages may quote prompts, which are not logged, so it has only the errors' types."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    before = "" if cause is None else f"{without_message(cause)}\nwhich led to\n"
    return f"{before}{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}"
