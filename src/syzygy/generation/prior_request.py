"""The checked arguments of a call of `PriorPipeline`.

Shapes: P prompts, N pictures (prompts × pictures a prompt, those of one prompt together), R rows that the prior predicts (N, or 2 N
with negative prompts, whose rows come last), D width of the embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import arguments
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.core.pixels import check_finite
from syzygy.core.randomness import per_sample_noise
from syzygy.generation.request import check_generator

OUTPUTS = ("pt", "np")
TENSORS = ("latents",)
"""What a callback can get."""


@dataclass(frozen=True)
class PriorRequest:
    """What to embed.

    Raises:
        UserError: arguments of another type, or numbers that do not fit.
    """

    prompts: list[str]
    negatives: list[str] | None
    """One for each prompt, or none at all."""
    number: int
    """Pictures a prompt."""
    generator: torch.Generator | list[torch.Generator] | None
    latents: Any
    output_type: str
    callback: Callable[..., Any] | None
    tensors: Sequence[str]
    """What the callback gets."""

    @staticmethod
    def checked(prompt: Any, negative_prompt: Any, num_images_per_prompt: Any, **rest: Any) -> "PriorRequest":
        """From the arguments of the call."""
        prompts = arguments.texts(prompt)
        number = arguments.whole(num_images_per_prompt, "num_images_per_prompt")
        negatives = None
        if negative_prompt is not None:
            negatives = _one_each(arguments.texts(negative_prompt, "negative_prompt"), len(prompts))
        rest["generator"] = check_generator(rest["generator"])
        return PriorRequest(prompts, negatives, number, **rest)

    def __post_init__(self) -> None:
        if not self.rows:
            raise UserError(f"{len(self.prompts)} prompts, {self.number} pictures a prompt: give 1 or more of both.")
        if self.output_type not in OUTPUTS:
            raise UserError(f"output_type {self.output_type!r} is unknown. Known: {', '.join(OUTPUTS)}.")
        asked = arguments.texts(self.tensors, "callback_on_step_end_tensor_inputs")
        if not set(asked) <= set(TENSORS):
            raise UserError(
                f"callback_on_step_end_tensor_inputs {asked}: not all of them are known. Known: {', '.join(TENSORS)}."
            )

    @property
    def rows(self) -> list[int]:
        """The prompt of each picture."""
        return [i for i in range(len(self.prompts)) for _ in range(self.number)]

    def noise(self, width: int, device: torch.device) -> Float[Tensor, "R D"]:
        """Where the prior starts, drawn as diffusers draws it.

        Raises:
            UserError: latents of another shape, or another number of generators.
            NonFiniteError: latents hold NaN or infinity.
        """
        pictures, parts = len(self.rows), 1 if self.negatives is None else 2
        shape, generator = (pictures * parts, width), self.generator
        if self.latents is not None:
            if not isinstance(self.latents, Tensor):
                raise UserError(f"latents must be a tensor of shape {shape}, got {type(self.latents).__name__}.")
            if tuple(self.latents.shape) != shape:
                raise UserError(f"latents have shape {tuple(self.latents.shape)}; {shape} is needed.")
            check_finite(self.latents, "latents")
            return self.latents.to(device)
        if isinstance(generator, Sequence):
            if len(generator) != pictures:
                raise UserError(f"{len(generator)} generators for {pictures} pictures: pass one each, or one for all.")
            return torch.cat([per_sample_noise((width,), generator, device) for _ in range(parts)])
        drawn_on = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=drawn_on).to(device)

    def after_step(self, pipeline: Any, step: int, timestep: int, latents: Tensor) -> Tensor:
        """The latents to continue with: those of the callback, if it returns some."""
        if self.callback is None:
            return latents
        given = {"latents": latents} if "latents" in self.tensors else {}
        changed: Mapping[str, Tensor] = self.callback(pipeline, step, torch.tensor(timestep), given) or {}
        return changed.get("latents", latents)

    def check_embeddings(self, found: Float[Tensor, "N D"], away: Float[Tensor, "N D"]) -> None:
        """
        Raises:
            NonFiniteError: an embedding holds NaN or infinity; it names the prompts.
        """
        for embeddings, texts in ((found, self.prompts), (away, self.negatives)):
            try:
                check_finite(embeddings, "image embeddings")
            except NonFiniteError as error:
                zeros = "of an image of zeros"
                names = [zeros if texts is None else repr(texts[row][:60]) for row in self.rows]
                raise error.named(names) from None


def _one_each(negatives: list[str], prompts: int) -> list[str]:
    if len(negatives) not in (1, prompts):
        raise UserError(f"{len(negatives)} negative prompts for {prompts} prompts: give one for all, or one each.")
    return negatives if len(negatives) == prompts else negatives * prompts
