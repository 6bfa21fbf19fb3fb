"""Train the text side of an image generator on one GPU or a laptop, and generate images with it.

Public names are imported on first use, so that `import syzygy` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syzygy.core.contracts import Region, TextFeatures
    from syzygy.experts.expert_unets import ExpertUNet
    from syzygy.generation.karlo_pipeline import KarloPipeline
    from syzygy.generation.prior_pipeline import PriorPipeline
    from syzygy.generation.prompt_encoder import PromptEncoder
    from syzygy.generation.subjects import Subject
    from syzygy.generation.text_to_image import TextToImage
    from syzygy.prior.eclipse import EclipsePrior
    from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
    from syzygy.prior.lambda_residual import LambdaResidualPrior
    from syzygy.prior.linear_prior import LinearPrior
    from syzygy.prior.residual_prior import ResidualPrior
    from syzygy.regions.diffusers_hook import region_conditioning

    __version__: str

__all__ = [
    "EclipsePrior",
    "ExpertUNet",
    "KarloPipeline",
    "LambdaEclipsePrior",
    "LambdaResidualPrior",
    "LinearPrior",
    "PriorPipeline",
    "PromptEncoder",
    "Region",
    "ResidualPrior",
    "Subject",
    "TextFeatures",
    "TextToImage",
    "__version__",
    "region_conditioning",
]

_HOMES = {
    "EclipsePrior": "syzygy.prior.eclipse",
    "ExpertUNet": "syzygy.experts.expert_unets",
    "KarloPipeline": "syzygy.generation.karlo_pipeline",
    "LambdaEclipsePrior": "syzygy.prior.lambda_eclipse",
    "LambdaResidualPrior": "syzygy.prior.lambda_residual",
    "LinearPrior": "syzygy.prior.linear_prior",
    "PriorPipeline": "syzygy.generation.prior_pipeline",
    "PromptEncoder": "syzygy.generation.prompt_encoder",
    "Region": "syzygy.core.spatial_guides",
    "ResidualPrior": "syzygy.prior.residual_prior",
    "Subject": "syzygy.generation.subjects",
    "TextFeatures": "syzygy.core.contracts",
    "TextToImage": "syzygy.generation.text_to_image",
    "region_conditioning": "syzygy.regions.diffusers_hook",
}
_RENAMED = {"painted": "region_conditioning"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("syzygy")
    if name in _RENAMED:
        from syzygy.core.deprecation import warn_renamed

        warn_renamed(f"syzygy.{name}", f"syzygy.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
