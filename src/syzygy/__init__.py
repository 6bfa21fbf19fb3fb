"""Train the text side of an image generator on one GPU or a laptop, then paint with it.

Public names are imported on first use, so that `import syzygy` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syzygy.api import TextToImage
    from syzygy.hub.expert_unets import ExpertUNet
    from syzygy.hub.painted import painted
    from syzygy.hub.prior_pipeline import PriorPipeline
    from syzygy.prior.model import EclipsePrior
    from syzygy.types import Region, TextFeatures

    __version__: str

__all__ = [
    "EclipsePrior",
    "ExpertUNet",
    "PriorPipeline",
    "Region",
    "TextFeatures",
    "TextToImage",
    "__version__",
    "painted",
]

_HOMES = {
    "EclipsePrior": "syzygy.prior.model",
    "ExpertUNet": "syzygy.hub.expert_unets",
    "PriorPipeline": "syzygy.hub.prior_pipeline",
    "Region": "syzygy.types",
    "TextFeatures": "syzygy.types",
    "TextToImage": "syzygy.api",
    "painted": "syzygy.hub.painted",
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
