"""Options that a call may set on decoders: from these declarations follow the command line's flags and the HTTP API's fields.

Importing this module imports no torch, so that `--help` stays fast.
"""

import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

from syzygy.core.errors import UserError
from syzygy.core.registry import DECODERS

Kind = type[int] | type[float] | type[str] | type[bool]
JSON_TYPES: dict[Kind, str] = {int: "integer", float: "number", str: "string", bool: "boolean"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting that some decoders have, and others refuse."""

    name: str
    """A Python name: the keyword argument, the field of HTTP requests and the key in records; `--noise-level` is the flag of `noise_level`."""
    help: str
    """One sentence that says what it does, and for which decoder."""
    type: Kind = int
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    """Allowed texts, for type `str`; empty: any."""
    metavar: str = "N"
    """What stands for the value in `--help`."""

    def __post_init__(self) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", self.name), f"{self.name!r} cannot be a keyword and a flag"

    @property
    def flag(self) -> str:
        """Of the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def allowed(self) -> str:
        """The values that it takes, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        kinds: dict[Kind, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        kind = kinds[self.type]
        match self.minimum, self.maximum:
            case None, None:
                return kind
            case low, None:
                return f"{kind} of at least {low:g}"
            case None, high:
                return f"{kind} of at most {high:g}"
            case low, high:
                return f"{kind} from {low:g} to {high:g}"

    def checked(self, value: Any) -> Any:
        """The value, as `type`.

        Raises:
            UserError: it is of another type or not allowed.
        """
        numeric = self.type in (int, float)
        fits = isinstance(value, (int, float) if self.type is float else self.type)
        if numeric and isinstance(value, bool):
            fits = False
        if fits and numeric:
            low = -math.inf if self.minimum is None else self.minimum
            high = math.inf if self.maximum is None else self.maximum
            fits = math.isfinite(value) and low <= value <= high
        if not fits or (self.choices and value not in self.choices):
            raise UserError(f"{self.name} must be {self.allowed}, got {value!r}.")
        return self.type(value)

    def json_schema(self) -> dict[str, Any]:
        """Its description for OpenAPI."""
        limits = {"minimum": self.minimum, "maximum": self.maximum, "enum": list(self.choices) or None}
        schema: dict[str, Any] = {"type": JSON_TYPES[self.type], "description": self.help}
        return schema | {name: value for name, value in limits.items() if value is not None}


HEIGHT = Option(name="height", minimum=1, metavar="PIXELS", help="Image height of a published model; with --width.")
WIDTH = Option(name="width", minimum=1, metavar="PIXELS", help="Image width of a published model; with --height.")
NOISE_LEVEL = Option(
    name="noise_level",
    minimum=0,
    maximum=999,
    help="Stable unCLIP: how much noise is added to the image embedding; higher values make images less similar to it.",
)
SUPER_RES_STEPS = Option(name="super_res_steps", minimum=1, help="Karlo: sampling steps from 64 to 256 pixels.")
PLACEMENT_STRENGTH = Option(
    name="placement_strength",
    type=float,
    minimum=0,
    maximum=100,
    metavar="W",
    help="The starter: how strongly objects are drawn to where the prompt says that they are (left of, above); 0 switches it off. Default: 1. "
    "Without effect on images with regions.",
)
BUILTIN = (HEIGHT, WIDTH, NOISE_LEVEL, SUPER_RES_STEPS, PLACEMENT_STRENGTH)
"""The options of the decoders in this package; a new one is added here and named in its decoder's declaration."""


def decoder_options() -> tuple[Option, ...]:
    """The options of all decoders, each name once: the built-in ones, then those that other packages' decoders declare.

    Other packages' decoders are imported. One that cannot be imported is left out with a warning.
    """
    found = {option.name: option for option in BUILTIN}
    for name in DECODERS.outside():
        try:
            family = DECODERS.get(name)
        except UserError as error:
            warnings.warn(str(error), stacklevel=2)
            continue
        for option in getattr(family, "options", ()):
            found.setdefault(option.name, option)
    return tuple(found.values())
