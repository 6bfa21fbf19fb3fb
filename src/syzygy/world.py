"""Old home of the embedded world, which is `syzygy.lab.world` now. Imports of its documented modules work for one release."""

import sys
from types import ModuleType

from syzygy.core.deprecation import warn_renamed
from syzygy.core.registry import imported

RENAMED = {
    "language": ("language", {"spoken": "detect_language", "understood": "parse_caption"}),
    "source": ("scene_source", {}),
}
"""Module → its new name, and new names of what was in it."""

warn_renamed("syzygy.world", "syzygy.lab.world", stacklevel=3)
for _old, (_new, _names) in RENAMED.items():
    _module = ModuleType(f"{__name__}.{_old}")
    _found = vars(imported(f"syzygy.lab.world.{_new}"))
    _module.__dict__.update({name: value for name, value in _found.items() if not name.startswith("__")})
    _module.__dict__.update({old: _found[new] for old, new in _names.items()})
    globals()[_old] = sys.modules[_module.__name__] = _module
