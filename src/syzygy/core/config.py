"""Settings as frozen pydantic models, and changes to them from `key=value` texts."""

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from syzygy.core.errors import UserError


class Config(BaseModel):
    """Base of all settings: frozen and keyword-only. Unknown names are errors, and docstrings of attributes are the help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")

    def adapted(self, changes: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        """Settings that are not among the `changes` but contradict one of them: name → (new value, the change that requires it)."""
        return {}

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, which are not validated. A mapping changes the settings inside a nested `Config`."""

        def value(name: str, new: Any) -> Any:
            inner = getattr(self, name)
            return inner.changed(**new) if isinstance(inner, Config) and isinstance(new, Mapping) else new

        return self.model_copy(update={name: value(name, new) for name, new in changes.items()})


C = TypeVar("C", bound=Config)


def parse(cls: type[C], values: dict[str, Any], where: str, prefix: str = "") -> C:
    """Build `cls` from plain values. Errors name the field (after `prefix`), the value and the place."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = (prefix + ".".join(map(str, first["loc"]))).strip(".") or "(whole)"
        raise UserError(f"{where}: setting {path!r}: {first['msg']} (got {first.get('input')!r}).") from None


def fields_of(config: Config, prefix: str = "") -> dict[str, str]:
    """Dotted name → help text, for every field that can be set."""
    found: dict[str, str] = {}
    for name, field in type(config).model_fields.items():
        inner = getattr(config, name)
        if isinstance(inner, Config):
            found |= fields_of(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.description or ""
    return found


def silent(line: str) -> None:
    """Ignore a message."""


def override(config: C, assignments: Sequence[str], say: Callable[[str], None] = silent) -> C:
    """Apply `key=value` settings to existing fields. Dotted keys reach into nested settings; values are JSON or text.

    Settings that were not given are adapted to those that were (`Config.adapted`), and `say` is called with a line for each.
    """
    known = fields_of(config)
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"setting {assignment!r} has no value: write key=value.")
        if key not in known:
            near = get_close_matches(key, known, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(f"unknown setting {key!r}.{hint} --settings lists all {len(known)}.")
        *path, last = key.split(".")
        inner = changes
        for part in path:
            inner = inner.setdefault(part, {})
        try:
            inner[last] = json.loads(text)
        except json.JSONDecodeError:
            inner[last] = text
    lines: list[str] = []
    changed = _changed(config, changes, lines.append)
    for line in lines:  # only once nothing is wrong
        say(line)
    return changed


def _changed(config: C, changes: dict[str, Any], say: Callable[[str], None], prefix: str = "") -> C:
    """Nested settings are parsed first, each as its own class, so that an error names one field even if other classes are allowed."""
    values: dict[str, Any] = {name: getattr(config, name) for name in type(config).model_fields}
    for name, change in changes.items():
        inner = values[name]
        values[name] = _changed(inner, change, say, f"{prefix}{name}.") if isinstance(inner, Config) else change
    for name, (value, cause) in config.adapted(changes).items():
        given = f"{prefix}{cause}={json.dumps(changes[cause])}"
        say(
            f"{prefix}{name} is {json.dumps(value)} instead of the preset's {json.dumps(values[name])}, to fit {given}."
        )
        values[name] = value
    return parse(type(config), values, "settings", prefix)
