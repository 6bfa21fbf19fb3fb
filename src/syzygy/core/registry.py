"""What users choose by name: decoders, text encoders, priors, samplers, and what the lab adds.

A name leads to a target, "module:attribute", that is imported when it is chosen and not before, so that `--help` stays
fast and the library knows the lab by name only. Other packages add names by entry point.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from syzygy.core.errors import unknown


def imported(target: str) -> Any:
    """The object that a target, "module:attribute", names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


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
    """Objects of one kind by name.

    Args:
        kind: what they are called in errors, in the singular: "decoder". Entry points of the group "syzygy.decoders" add to them.
        builtin: targets by name.
    """

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._targets: dict[str, str] = dict(builtin)
        self._objects: dict[str, Any] = {}

    def register(self, name: str, value: Any) -> None:
        """Add an object, or replace one, for this process."""
        self._objects[name] = value

    def names(self) -> list[str]:
        """All names, those of other packages last. Imports nothing."""
        return [*{**self._targets, **self._outside(), **self._objects}]

    def get(self, name: str) -> Any:
        """The object with this name.

        Raises:
            UserError: an unknown name; the error lists the known ones.
        """
        if name in self._objects:
            return self._objects[name]
        targets = {**self._outside(), **self._targets}
        if name not in targets:
            raise unknown(self.kind, name, self.names())
        return imported(targets[name])

    def _outside(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=f"syzygy.{self.kind.replace(' ', '_')}s")}
