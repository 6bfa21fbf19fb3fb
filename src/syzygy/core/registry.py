"""What users choose by name: decoders, priors, text encoders and samplers.

Each registry maps names to targets, "module:attribute", that are imported when they are chosen and not before, so that
`--help` stays fast. Other packages add names by entry point: "syzygy.decoders", "syzygy.priors", "syzygy.text_encoders"
and "syzygy.samplers". How to write each is described in docs/extending.md.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from syzygy.core.errors import UserError, unknown

T = TypeVar("T")
Named = tuple[Callable[..., Any], str | None]
"""A registered function, and the source that the user gave after its name and ":"."""


def imported(target: str) -> Any:
    """The object that a target, "module:attribute", names; the module itself without ":attribute"."""
    module, _, attribute = target.partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def preset(table: str, name: str) -> Any:
    """The settings called `name` in a table of presets, which is given by its target: a mapping of names to functions.

    Raises:
        UserError: an unknown name; the error lists the known ones.
    """
    presets: Mapping[str, Callable[[], Any]] = imported(table)
    if name not in presets:
        raise unknown("preset", name, presets)
    return presets[name]()


class Registry:
    """Objects of one kind by name. Iterating gives the names.

    Args:
        kind: what one of them is called in errors: "decoder". Entry points of the group "syzygy.decoders" add to them.
        builtin: targets by name.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._targets: dict[str, str] = dict(builtin)
        self._objects: dict[str, Any] = {}

    def register(self, name: str, value: T) -> T:
        """Add an object, or replace one, for this process; returns it."""
        self._objects[name] = value
        return value

    def decorator(self, name: str) -> Callable[[T], T]:
        """Register the decorated class or function under `name`."""
        return lambda value: self.register(name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def names(self) -> list[str]:
        """All names, those of other packages last. Imports nothing."""
        return [*{**self._targets, **self._outside, **self._objects}]

    def outside(self) -> list[str]:
        """The names that other packages add by entry point. Imports nothing."""
        return [name for name in self._outside if name not in self._targets]

    def get(self, name: str) -> Any:
        """The object with this name.

        Raises:
            UserError: an unknown name (the error lists the known ones), or another package's object cannot be imported.
        """
        if name not in self._objects:
            self._objects[name] = self._imported(name)
        return self._objects[name]

    def _imported(self, name: str) -> Any:
        if name in self._targets:
            value = imported(self._targets[name])
        elif name in self._outside:
            target = self._outside[name]
            try:
                value = imported(target)
            except Exception as error:  # another package's code may fail in any way
                raise UserError(
                    f"the {self.kind} {name!r} of another package cannot be imported from {target}: "
                    f"{type(error).__name__}: {error}. Fix or uninstall that package."
                ) from error
        else:
            raise unknown(self.kind, name, self.names())
        return self._objects.get(name, value)  # a decorator may have registered it during the import

    @cached_property
    def _outside(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=f"syzygy.{self.kind.replace(' ', '_')}s")}


def by_name(registry: Registry, chosen: object) -> Named | None:
    """The registered object that "NAME" or "NAME:SOURCE" chooses, with the source; None where nothing has that name.

    Args:
        registry: of priors or text encoders, whose options also take folders and hub ids.
        chosen: what the user gave.
    """
    if not isinstance(chosen, str):
        return None
    name, _, source = chosen.partition(":")
    return (registry.get(name), source or None) if name in registry else None


DECODERS = Registry(
    "decoder",
    {
        "kandinsky-2.2": "syzygy.pretrained.kandinsky",
        "karlo": "syzygy.pretrained.karlo",
        "stable-unclip": "syzygy.pretrained.stable_unclip",
        "stable-diffusion-1.5": "syzygy.pretrained.stable_diffusion",
        "stable-diffusion-xl": "syzygy.pretrained.stable_diffusion",
        "kandinsky-2.2-inpaint": "syzygy.pretrained.kandinsky",
        "kandinsky-2.2-controlnet-depth": "syzygy.pretrained.kandinsky",
    },
)
"""Published models for `--model`, as `pretrained.families.DecoderFamily`; `@register_decoder` adds to them."""
PRIORS = Registry("prior", {})
"""Functions `(source, clip, device) → Prior` for `--prior NAME` or `NAME:SOURCE`. Our own priors are recognised by their folders."""
TEXT_ENCODERS = Registry("text encoder", {})
"""Functions `(source, clip, device) → TextEncoder` for `--text-encoder NAME` or `NAME:SOURCE`. Our own adapters are folders."""
SAMPLERS = Registry(
    "sampler",
    {
        "euler": "syzygy.decoder.samplers:euler",
        "heun": "syzygy.decoder.samplers:heun",
        "dpm++2m": "syzygy.decoder.samplers:dpm_solver_2m",
    },
)
"""Functions that take one step (`decoder.samplers`), for `--sampler`."""

register_prior = PRIORS.decorator
register_text_encoder = TEXT_ENCODERS.decorator
register_sampler = SAMPLERS.decorator
