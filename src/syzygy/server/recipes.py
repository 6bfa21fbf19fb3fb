"""From the record inside an image to the request that generates it again."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from syzygy.server.bodies import DEEPEST, checked
from syzygy.server.problems import Problem
from syzygy.server.schema import OPTIONS, Generation, Mix

SAME = ("steps", "guidance_scale", "sampler", "negative_prompt", "seed")
MOST_FRAMES = 10_000


def again(
    record: Mapping[str, Any],
    own: Mapping[str, Any],
    size: tuple[int, int] | None,
    options: Collection[str] = (),
) -> dict[str, Any]:
    """`request` (`path` and `body`, for this image alone), `missing` (fields whose picture the record does not hold), and `notes`: why
    this server's image will differ.

    Args:
        record: from any file, so nothing about it is certain.
        own: the settings that the server was started with.
        size: height and width of all its images; None where a request may choose.
        options: names of the decoder's options, which requests may set.

    Raises:
        Problem: it is not of one image, or a request cannot have its values.
    """
    if not _plain(record, DEEPEST):
        raise _unusable("it is no plain JSON")
    body = {name: record[name] for name in (*SAME, *options) if record.get(name) is not None}
    if size is None and record.get("width") is not None:
        body["size"] = f"{record['width']}x{record.get('height')}"
    missing: list[str] = []
    if "prompt" in record:
        path, body = "generations", body | _prompted(record, missing)
    elif "sources" in record or "variation_of" in record:
        path, body = "mixes", body | {"sources": _sources(record, missing)}
    else:
        raise _unusable("it has no prompt and no pictures, like that of a contact sheet")
    try:
        checked(Generation if path == "generations" else Mix, body)
    except Problem as problem:
        raise _unusable(str(problem).removesuffix(".")) from None
    return {
        "request": {"path": f"/v1/images/{path}", "body": body},
        "missing": missing,
        "notes": _notes(record, own, size, options),
    }


def _prompted(record: Mapping[str, Any], missing: list[str]) -> dict[str, Any]:
    names = ("prompt", "regions", "style_content", "style_guidance", "strength")
    found = {name: record[name] for name in names if record.get(name) is not None}
    strength = record.get("region_strength", record.get("painting"))  # the name that records had before
    found |= {} if strength is None else {"region_strength": strength}
    if isinstance(style := record.get("style"), list):
        found |= _styles(style, missing)
    elif style is not None:
        found |= _picture(style, "style", "style", missing)
    for name in ("layout", "image", "mask", "depth"):
        if record.get(name) is not None:
            found |= _picture(record[name], name, name, missing)
    if record.get("subjects"):
        found |= _subjects(record["subjects"], missing)
    return found


def _styles(given: list[Any], missing: list[str]) -> dict[str, Any]:
    """All of them, or none if the record lacks a picture."""
    lacking: list[str] = []
    found = [_picture(one, "style", "style", lacking).get("style") for one in given]
    missing += lacking[:1]
    return {} if lacking else {"style": found}


def _subjects(given: Any, missing: list[str]) -> dict[str, Any]:
    """All of them, or none if the record lacks a picture."""
    if not (isinstance(given, list) and all(isinstance(one, dict) for one in given)):
        raise _unusable("its subjects are no list")
    lacking: list[str] = []
    found = [{"word": one.get("word")} | _picture(one, "image", "subjects", lacking) for one in given]
    missing += lacking[:1]
    return {} if lacking else {"subjects": found}


def _sources(record: Mapping[str, Any], missing: list[str]) -> list[dict[str, Any]]:
    given = record["sources"] if "sources" in record else [record["variation_of"]]
    if not (isinstance(given, list) and all(isinstance(one, dict) for one in given)):
        raise _unusable("its sources are no list")
    found = []
    for number, one in enumerate(given):
        part = {name: one[name] for name in ("text", "weight") if one.get(name) is not None}
        found.append(part if "text" in part else part | _picture(one, "image", f"sources[{number}].image", missing))
    frame, frames = record.get("frame"), record.get("frames")
    if isinstance(frame, int) and isinstance(frames, int) and 0 <= frame < frames <= MOST_FRAMES and len(found) == 2:
        share = frame / max(frames - 1, 1)
        found = [part | {"weight": weight} for part, weight in zip(found, (1 - share, share), strict=True)]
    return found


def _picture(held: Any, field: str, param: str, missing: list[str]) -> dict[str, Any]:
    if isinstance(held, dict) and isinstance(held.get("data"), str):
        return {field: held["data"]}
    missing.append(param)
    return {}


def _notes(
    record: Mapping[str, Any], own: Mapping[str, Any], size: tuple[int, int] | None, options: Collection[str]
) -> Sequence[str]:
    found = []
    if record.get("fingerprints") != own.get("fingerprints"):
        found.append(f"it was generated by another model, {str(record.get('model'))[:80]!r}.")
    elif record.get("versions") != own.get("versions"):
        found.append("it was generated with other versions of the libraries: single grey levels may differ.")
    wanted = record.get("height"), record.get("width")
    if size is not None and wanted not in ((None, None), size):
        found.append(f"it has another size than the {size[1]}x{size[0]} of this model.")
    found += [
        f"it was generated with {name.replace('_', ' ')} {str(record.get(name))[:80]}; this server has {own.get(name)}."
        for name in ("conditions", *(option.name for option in OPTIONS))
        if record.get(name) != own.get(name) and not (name in options and record.get(name) is not None)
    ]
    if record.get("negative_prompt") is None and own.get("negative_prompt") is not None:
        found.append("it was generated without a negative prompt; this server adds its own.")
    return found


def _plain(value: Any, levels: int) -> bool:
    """Whether a JSON answer can hold it."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_plain(one, levels - 1) for one in inner)
    return not isinstance(value, float) or math.isfinite(value)


def _unusable(why: str) -> Problem:
    return Problem(400, f"the record in this picture cannot be turned into a request: {why}.", param="image")
