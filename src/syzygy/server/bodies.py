"""The bodies of requests as checked models. Each check comes before work that grows with what it bounds."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from syzygy.core.config import Config
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem

C = TypeVar("C", bound=Config)
FIELD_BYTES = 2**16
DEEPEST = 8
"""Levels of lists and mappings in JSON; bodies have three, and records of images have four."""
SEPARATORS = 100_000
"""Commas and colons in JSON, also those inside texts. So many values are parsed in about 50 ms."""


def check_json_type(request: Request) -> None:
    """Raises Problem for another content type, such as the one that `curl -d` sends."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(
            415,
            f"the body must be JSON, sent with the header Content-Type: application/json, got {kind[:80] or 'no type'!r}. "
            "With curl: -H 'Content-Type: application/json'.",
            code="unsupported_media_type",
        )


async def whole(request: Request) -> bytes:
    """The body, which neither the request nor the framework keeps."""
    return b"".join([chunk async for chunk in request.stream()])


def json_of(body: bytes, model: type[C], limits: Limits) -> C:
    """A JSON body.

    Raises:
        Problem: it is not JSON, has too many values, unknown fields, or values out of range.
    """
    if crowded(body):
        raise _too_many("the body")
    try:
        values = json.loads(body)
    except json.JSONDecodeError as error:
        raise Problem(400, f"the body is not valid JSON: {error.msg} at character {error.pos}."[:300]) from None
    except (ValueError, RecursionError):  # not UTF-8; a number of too many digits; too many levels
        raise Problem(400, "the body is not valid JSON: it cannot be parsed.") from None
    if not plain(values, DEEPEST, limits.values):
        raise _too_many("the body")
    return checked(model, values)


def crowded(text: str | bytes) -> bool:
    """Whether JSON has so many values that parsing it takes long. Long texts, such as pictures in base64, do not count."""
    comma, colon = (",", ":") if isinstance(text, str) else (b",", b":")
    return text.count(comma) + text.count(colon) > SEPARATORS  # pyright: ignore[reportArgumentType]


def plain(value: Any, levels: int, most: int) -> bool:
    """Whether parsed JSON has at most so many levels and values, in all."""
    inner, depth, number = [value], 0, 0
    while inner:
        number += len(inner)
        if depth > levels or number > most:
            return False
        sizes = [len(one) for one in inner if isinstance(one, (dict, list))]
        if number + sum(sizes) > most:
            return False
        inner = [
            one
            for outer in inner
            if isinstance(outer, (dict, list))
            for one in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return True


def _too_many(what: str) -> Problem:
    return Problem(400, f"{what} has too many values or levels: send only the fields that the documentation lists.")


def checked(model: type[C], values: dict[str, Any]) -> C:
    """The fields of a form or of a JSON body, checked.

    Raises:
        Problem: one is unknown or out of range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_context=False, include_input=False)) from None


def _invalid(errors: Sequence[Any]) -> Problem:
    """The first of pydantic's errors."""
    first = errors[0]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".") or None
    return Problem(400, f"{param or 'the body'}: {first['msg']}."[:300], param=param and param[:100])


async def form_of(request: Request, model: type[C], files: Sequence[str]) -> tuple[C, dict[str, bytes]]:
    """A multipart form: settings, and files by name (`image[]` is `image`).

    Raises:
        Problem: no such form, a field twice, a file where a text belongs, or the other way about.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Problem(415, "send this as multipart/form-data.", code="unsupported_media_type")
    texts: dict[str, str] = {}
    found: dict[str, bytes] = {}
    async with request.form(max_files=len(files), max_fields=64, max_part_size=FIELD_BYTES) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in texts or name in found:
                raise Problem(400, f"{name[:80]!r} is given twice; one is allowed.", param=name[:80])
            if isinstance(value, UploadFile) != (name in files):
                wanted = "a file" if name in files else "a text"
                raise Problem(400, f"{name[:80]!r} must be {wanted}.", param=name[:80])
            if isinstance(value, UploadFile):
                found[name] = await value.read()
            else:
                texts[name] = value
    return checked(model, texts), found
