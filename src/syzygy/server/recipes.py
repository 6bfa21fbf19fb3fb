"""From the record inside a picture to the request that paints it again."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from syzygy.server.problems import Problem
from syzygy.server.schema import Generation, Mix
from syzygy.server.validation import checked

SAME = ("steps", "guidance_scale", "sampler", "negative_prompt", "seed")
ASIDE = {"conditions": "conditions", "noise_level": "noise level", "super_res_steps": "steps of super-resolution"}
"""What decides a picture, and no request can say."""
MOST_FRAMES = 10_000
DEEPEST = 8
"""Levels of lists and mappings in a record; ours have four."""


def again(record: Mapping[str, Any], own: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """`request` (`path` and `body`, for this picture alone), `missing` (fields whose picture the record does not hold), and `notes`: why
    what this server paints will be another picture.

    Args:
        record: of any file that says it is ours: nothing about it is certain.
        own: what the server was started with.
        size: height and width of all that it paints; None where a request may choose.

    Raises:
        Problem: it is not of one picture, or its values are none that a request can have.
    """
    if not _plain(record, DEEPEST):
        raise _unusable("it holds what is no plain JSON")
    body = {name: record[name] for name in SAME if record.get(name) is not None}
    if size is None and record.get("width") is not None:
        body["size"] = f"{record['width']}x{record.get('height')}"
    missing: list[str] = []
    if "prompt" in record:
        path, body = "generations", body | _painted(record, missing)
    elif "sources" in record or "variation_of" in record:
        path, body = "mixes", body | {"sources": _sources(record, missing)}
    else:
        raise _unusable("it tells of no prompt and no pictures, as a contact sheet's does")
    try:
        checked(Generation if path == "generations" else Mix, body)
    except Problem as problem:
        raise _unusable(str(problem).removesuffix(".")) from None
    return {
        "request": {"path": f"/v1/images/{path}", "body": body},
        "missing": missing,
        "notes": _notes(record, own, size),
    }


def _painted(record: Mapping[str, Any], missing: list[str]) -> dict[str, Any]:
    names = ("prompt", "regions", "style_guidance")
    found = {name: record[name] for name in names if record.get(name) is not None}
    strength = record.get("region_strength", record.get("painting"))  # the name that records had before
    found |= {} if strength is None else {"painting": strength}
    if record.get("style") is not None:
        found |= _picture(record["style"], "style", "style", missing)
    return found


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


def _picture(told: Any, field: str, param: str, missing: list[str]) -> dict[str, Any]:
    if isinstance(told, dict) and isinstance(told.get("data"), str):
        return {field: told["data"]}
    missing.append(param)
    return {}


def _notes(record: Mapping[str, Any], own: Mapping[str, Any], size: tuple[int, int] | None) -> Sequence[str]:
    found = []
    if record.get("fingerprints") != own.get("fingerprints"):
        found.append(f"it was painted by another model, {str(record.get('model'))[:80]!r}.")
    elif record.get("versions") != own.get("versions"):
        found.append("it was painted by other versions of the libraries: single grey levels may differ.")
    wanted = record.get("height"), record.get("width")
    if size is not None and wanted not in ((None, None), size):
        found.append(f"it was painted in another size than the {size[1]}x{size[0]} of this model.")
    found += [
        f"it was painted with {name} {str(record.get(key))[:80]}; this server has {own.get(key)}."
        for key, name in ASIDE.items()
        if record.get(key) != own.get(key)
    ]
    if record.get("negative_prompt") is None and own.get("negative_prompt") is not None:
        found.append("it was painted without a negative prompt; this server adds its own.")
    return found


def _plain(value: Any, levels: int) -> bool:
    """Whether an answer can repeat it."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_plain(one, levels - 1) for one in inner)
    return not isinstance(value, float) or math.isfinite(value)


def _unusable(why: str) -> Problem:
    return Problem(400, f"the record in this picture cannot be asked for again: {why}.", param="image")
