"""Parts that are on the device only while they compute, so that the biggest one decides the peak of memory and not their sum."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from syzygy.clip.clip_model import Clip
from syzygy.core.contracts import Prior, TextFeatures
from syzygy.core.prompt_embeddings import PromptEmbeddings, TimedPrompts
from syzygy.data.references import References
from syzygy.prior.diffusion_prior import SampledPrior
from syzygy.text_encoders.adapted_prompts import AdaptedPrompts
from syzygy.text_encoders.adapter import AdaptedText

HOME = "cpu"


@contextmanager
def visiting(device: torch.device, part: nn.Module, *, offload: bool = True) -> Iterator[None]:
    """The part on the device, and back home at the end, also after an error. Without `offload` it is there already."""
    if not offload:
        yield
        return
    part.to(device)
    try:
        yield
    finally:
        part.to(HOME)


@dataclass(frozen=True)
class VisitingText:
    """A `TextEncoder` that is on the device only while it reads; what it gives stays there."""

    encoder: Clip | AdaptedText
    device: torch.device

    @property
    def width(self) -> int:
        return self.encoder.width

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """See `TextEncoder`."""
        with visiting(self.device, self.encoder):
            return self.encoder.encode_text(texts)


@dataclass(frozen=True)
class VisitingPrompts:
    """`AdaptedPrompts` that are on the device only while they read; what they give stays there. A timestep-aware adapter visits at each step,
    without its language model."""

    encoder: AdaptedPrompts
    device: torch.device

    def __call__(self, texts: Sequence[str]) -> PromptEmbeddings | TimedPrompts:
        if not self.encoder.timestep_aware:
            with visiting(self.device, self.encoder):
                return self.encoder(texts)
        with visiting(self.device, self.encoder.llm):
            found = self.encoder.encode_states(texts)

        def at(timestep: Tensor) -> PromptEmbeddings:
            with visiting(self.device, self.encoder.adapter):
                return self.encoder.embed(found, timestep)

        return TimedPrompts(at)


@dataclass(frozen=True)
class VisitingPrior:
    """A prior (`Prior`) that is on the device only while it predicts."""

    prior: Prior
    device: torch.device

    @property
    def takes_subjects(self) -> bool:
        """Whether the prior reads subjects and a control."""
        return getattr(self.prior, "takes_subjects", False)

    def predict(
        self,
        features: TextFeatures,
        *,
        noise: Float[Tensor, "B D"] | None = None,
        generator: torch.Generator | None = None,
        references: References | None = None,
    ) -> Float[Tensor, "B D"]:
        """See `Prior.predict`; `references` are for a prior that takes subjects."""
        network = self.prior.network if isinstance(self.prior, SampledPrior) else self.prior
        more: dict[str, Any] = {} if references is None else {"references": references}
        if not isinstance(network, nn.Module):  # an object of the user's own: where it is, is his
            return self.prior.predict(features, noise=noise, generator=generator, **more)
        with visiting(self.device, network):
            return self.prior.predict(features, noise=noise, generator=generator, **more)
