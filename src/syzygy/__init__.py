"""Train the text side of an image generator on one GPU or a laptop, then paint with it.

Public names are imported on first use, so that `import syzygy` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syzygy.api import TextToImage
    from syzygy.hub.prior_pipeline import PriorPipeline
    from syzygy.prior.model import EclipsePrior
    from syzygy.types import TextFeatures

    __version__: str

__all__ = ["EclipsePrior", "PriorPipeline", "TextFeatures", "TextToImage", "__version__"]

_HOMES = {
    "EclipsePrior": "syzygy.prior.model",
    "PriorPipeline": "syzygy.hub.prior_pipeline",
    "TextFeatures": "syzygy.types",
    "TextToImage": "syzygy.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("syzygy")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
