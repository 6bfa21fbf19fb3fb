"""The bodies of requests as checked models. Each check comes before work that grows with what it bounds."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from syzygy.core.config import Config
from syzygy.server.field_problems import invalid_field, too_long
from syzygy.server.limits import Limits
from syzygy.server.problems import Problem

C = TypeVar("C", bound=Config)
FIELD_BYTES = 2**16
DEEPEST = 8
"""Levels of lists and mappings in JSON; bodies have three, and records of images have four."""
UNPARSED = "We could not parse the JSON body of your request."
SEPARATORS = 100_000
"""Commas and colons in JSON, also those inside texts. So many values are parsed in about 50 ms."""


JSON, FORM = "application/json", "multipart/form-data"


def content_type(request: Request) -> str:
    """Type of the body; JSON if the client declares none."""
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    return JSON if kind.startswith("application/") and kind.endswith("+json") else kind


def check_type(request: Request, *allowed: str) -> None:
    """Raises Problem for another content type, such as the one that `curl -d` sends."""
    kind = content_type(request)[:80]
    if kind not in allowed:
        curl = " With curl, add -H 'Content-Type: application/json'." if JSON in allowed else ""
        given = f"but you specified the header 'Content-Type: {kind}'"
        if "content-type" not in request.headers:
            given = "and you sent no header 'Content-Type'"
        raise Problem(
            415,
            f"Unsupported content type: {kind!r}. This API method only accepts {' or '.join(map(repr, allowed))} requests, {given}.{curl}",
            code="unsupported_content_type",
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
        raise Problem(400, f"{UNPARSED} It is not valid JSON: {error.msg} at character {error.pos}."[:300]) from None
    except UnicodeDecodeError:
        raise Problem(400, f"{UNPARSED} It is not encoded in UTF-8.") from None
    except ValueError:  # Python's limit for whole numbers
        raise Problem(400, f"{UNPARSED} A number in it has too many digits.") from None
    except RecursionError:
        raise _too_many("the body") from None
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
        raise invalid_field(error.errors(include_url=False)[0]) from None


async def form_of(request: Request, model: type[C], files: Mapping[str, int]) -> tuple[C, dict[str, list[bytes]]]:
    """A multipart form: settings, and files by name (`image[]` is `image`).

    Args:
        files: how many may have each name.

    Raises:
        Problem: no such form, a field twice, too many files, a file where a text belongs, or the other way about.
    """
    check_type(request, FORM)
    texts: dict[str, str] = {}
    found: dict[str, list[bytes]] = {}
    most = sum(files.values()) + 1  # so that the first one that is too many is named below
    async with request.form(max_files=most, max_fields=64, max_part_size=FIELD_BYTES) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, UploadFile) and name not in {*files, *model.model_fields}:
                raise invalid_field({"type": "extra_forbidden", "loc": (name,)})
            if isinstance(value, UploadFile) != (name in files):
                wanted = "a file" if name in files else "a string"
                text = f"Invalid type for {name[:80]!r}: expected {wanted}."
                raise Problem(400, text, param=name[:80], code="invalid_type")
            if isinstance(value, UploadFile):
                found.setdefault(name, []).append(await value.read())
            elif name in texts:
                text = f"Duplicate parameter: {name[:80]!r}. You provided it more than once."
                raise Problem(400, text, param=name[:80], code="duplicate_parameter")
            else:
                texts[name] = value
    for name, contents in found.items():
        if len(contents) > files[name]:
            raise too_long(name, len(contents), files[name], "array")
    return checked(model, texts), found
