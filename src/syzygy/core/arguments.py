"""Checks of the arguments of Python calls: each gives the value in its plain type, or a `UserError` that names the argument."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch

from syzygy.core.contracts import Region, Sampling
from syzygy.core.errors import UserError

T = TypeVar("T")


def whole(value: Any, name: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number: an `int`, or an integer of numpy. `True` and 2.0 are refused.

    Raises:
        UserError: another type, or out of range.
    """
    found = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None
    if found is None or (least is not None and found < least) or (most is not None and found > most):
        raise UserError(f"{name} must be a whole number{_range(least, most)}, got {_shown(value)}.")
    return found


def number(value: Any, name: str, least: float | None = None) -> float:
    """A finite number: a `float` or an `int`, or one of numpy.

    Raises:
        UserError: another type, not finite, or out of range.
    """
    found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(found) or (least is not None and found < least):
        raise UserError(f"{name} must be a finite number{_range(least, None)}, got {_shown(value)}.")
    return found


def texts(value: Any, name: str = "prompt") -> list[str]:
    """One text, or a list of texts, as a list. Empty texts are not refused here.

    Raises:
        UserError: another type.
    """
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise UserError(f"{name} must be a text (str) or a list of texts, got {_shown(value)}.")
    for place, one in enumerate(found):
        if not isinstance(one, str):
            raise UserError(
                f"{name} must be a text (str) or a list of texts; item {place} of the list is {_shown(one)}."
            )
    return list(found)


def negatives(value: Any, prompts: int | None, each: str = "prompt") -> str | list[str] | None:
    """A negative prompt for all, or a list with one for each of `prompts`, as diffusers takes them.

    Args:
        prompts: how many there are; None where only a single text makes sense.
        each: what there is one of for each, for the message.

    Raises:
        UserError: another type, or a list of another length.
    """
    if value is None or isinstance(value, str):
        return value
    found = texts(value, "negative_prompt")
    if prompts is None:
        raise UserError(
            "negative_prompt must be a single text (str) here, got a list: a mixture or an interpolation has one for all its images."
        )
    if len(found) != prompts:
        raise UserError(
            f"negative_prompt is a list of {len(found)} for {prompts} {each}{'' if prompts == 1 else 's'}: give one text for all, "
            f"or a list with one for each {each}."
        )
    return found


def generators(value: Any) -> Any:
    """None, a `torch.Generator`, or a list of them, as it is.

    Raises:
        UserError: another type.
    """
    if value is None or isinstance(value, torch.Generator):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(one, torch.Generator) for one in value):
        raise UserError(
            f"generator must be a torch.Generator or a list of them, got {_shown(value)}. From a seed: torch.Generator().manual_seed(7)."
        )
    return value


def optional(value: Any, name: str, kind: type | tuple[type, ...], wanted: str) -> Any:
    """None, or a value of this type.

    Raises:
        UserError: another type.
    """
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{name} must be {wanted}, got {_shown(value)}.")
    return value


def regions(value: Any) -> Any:
    """None, a list of regions, or a list of such lists, as it is.

    Raises:
        UserError: another type, or regions and lists in one list.
    """
    if value is None:
        return None
    rows: Any = value if isinstance(value, list | tuple) else (None,)
    lists = all(isinstance(row, list | tuple) and all(isinstance(one, Region) for one in row) for row in rows)
    if not lists and not all(isinstance(row, Region) for row in rows):
        raise UserError(f"regions must be a list of Region, or one such list for each prompt, got {_shown(value)}.")
    return value


def callback(value: Any) -> Any:
    """None, or something that can be called.

    Raises:
        UserError: neither.
    """
    if value is not None and not callable(value):
        raise UserError(f"callback must be a function that takes a Progress, got {_shown(value)}.")
    return value


def sampling(
    steps: int | None, guidance_scale: float | None, sampler: str | None, options: Mapping[str, Any]
) -> Sampling:
    """The arguments of methods that paint as the decoder takes them; `options` are height, width, region_strength and the decoder's own.

    Raises:
        UserError: a value of another type; a height without a width, or the other way about.
    """
    own = {name: value for name, value in options.items() if value is not None}
    height, width = (_if_given(whole, own.pop(name, None), name) for name in ("height", "width"))
    if (height is None) != (width is None):
        raise UserError("height and width come together: give both, or neither.")
    size = None if height is None or width is None else (height, width)
    apart = {name: _if_given(number, own.pop(name, None), name) for name in ("region_strength", "style_guidance")}
    return Sampling(
        steps=_if_given(whole, steps, "num_inference_steps"),
        guidance_scale=_if_given(number, guidance_scale, "guidance_scale"),
        sampler=optional(sampler, "sampler", str, "a name (str)"),
        size=size,
        options={name: _plain(value) for name, value in own.items()},
        **apart,
    )


def _plain(value: Any) -> Any:
    """A whole number of numpy as one of Python."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _if_given(check: Callable[[Any, str], T], value: Any, name: str) -> T | None:
    return None if value is None else check(value, name)


def names_of(conditions: Sequence[str] | None) -> list[str] | None:
    """What the decoder should read, as a list.

    Raises:
        UserError: no list of names.
    """
    if conditions is None:
        return None
    if isinstance(conditions, str):
        raise UserError(
            f"conditions must be a list of names such as ['image', 'text'], got the text {conditions[:40]!r}."
        )
    return texts(conditions, "conditions")


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    return "" if least is None else f" of at least {least}"


def _shown(value: Any) -> str:
    """A value in a message: short, with its type where it does not show."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
