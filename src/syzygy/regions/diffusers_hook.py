"""Paint-with-words in existing diffusers pipelines, without training and without patching classes.

Legend: P prompts, T tokens, h × w latent positions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.clip.tokenization import Tokenized
from syzygy.core.contracts import Region
from syzygy.core.diffusers_timesteps import HostTimesteps, Sigma, noise_of
from syzygy.core.errors import UserError
from syzygy.regions.attention_processors import (
    RegionAttnProcessor,
    add_region_processors,
    at_level,
    combined_region_maps,
    padded_tokens,
    remove_region_processors,
)
from syzygy.regions.phrases import blurred, for_each
from syzygy.regions.region_bias import REGION_STRENGTH, RegionBias

P = TypeVar("P")


@contextmanager
def region_conditioning(
    pipeline: P,
    prompt: str | Sequence[str],
    regions: Sequence[Region] | Sequence[Sequence[Region]],
    *,
    strength: float = REGION_STRENGTH,
    blur: float = 0.0,
) -> Iterator[P]:
    """Condition an existing diffusers pipeline on regions (paint-with-words), without training:

        with region_conditioning(pipe, prompt, [Region("a red star", mask)], strength=0.4):
            images = pipe(prompt, num_images_per_prompt=2).images

    For Stable Diffusion 1.x, 2.x and XL: text to image, image to image, inpainting. Calls inside the block must use this prompt; negative
    prompts, steps, schedulers, guidance and numbers of images are free. Afterwards, also after an error, the pipeline is as before.

    Args:
        pipeline: one with `unet`, `scheduler`, `tokenizer` and `text_encoder`, perhaps a second pair of these.
        prompt: the prompt of the calls inside the block.
        regions: for all prompts, or a list for each.
        strength: w' of eDiff-I; 0 has no effect. Its scale is that of σ = √((1 − ᾱ)/ᾱ), whatever the scheduler.
        blur: softness of the borders, as a fraction of the longer side.

    Raises:
        UserError: another kind of pipeline; a phrase that is not in its prompt, or after the last token that is read; attention
            that does not support regions. In calls: another prompt, embeddings of another length, a scheduler of unknown noise levels.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    unet, readers = _parts(pipeline)
    own = [[blurred(one, blur) for one in some] for some in for_each(regions, len(prompts))]
    tokens = [padded_tokens(tokenizer, prompts, control=True) for tokenizer, _ in readers]
    hooks = _RegionHooks(pipeline, prompts, own, strength, tokens)
    if hooks.maps((8, 8)) is None:
        yield pipeline
        return
    with ExitStack() as stack:
        stack.callback(remove_region_processors, unet)
        add_region_processors(unet)
        for place, (_, encoder) in enumerate(readers):
            if encoder is not None:
                stack.callback(encoder.register_forward_pre_hook(hooks.reading(place), with_kwargs=True).remove)
        stack.callback(unet.register_forward_pre_hook(hooks.denoising, with_kwargs=True).remove)
        yield pipeline


painted = region_conditioning


def _parts(pipeline: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """The U-Net, and tokenizers with their encoders."""
    unet, pairs = getattr(pipeline, "unet", None), [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    readers = [(getattr(pipeline, one, None), getattr(pipeline, two, None)) for one, two in pairs]
    readers = [pair for pair in readers if pair[0] is not None]
    if unet is None or not readers or not hasattr(type(pipeline), "do_classifier_free_guidance"):
        raise UserError(
            f"{type(pipeline).__name__} does not support regions: they need a U-Net that reads a prompt token by token, as in Stable "
            "Diffusion 1.x, 2.x and XL. Kandinsky's reads no tokens; for Karlo and Stable unCLIP use syzygy generate --region."
        )
    if any(isinstance(getattr(one, "processor", None), RegionAttnProcessor) for one in unet.modules()):
        raise UserError("this pipeline has regions already: give all regions at once.")
    return unet, readers


@dataclass
class _RegionHooks:
    """Adds the region bias to each evaluation of a pipeline's U-Net, by hooks on it and on the text encoders."""

    pipeline: Any
    prompts: Sequence[str]
    regions: Sequence[Sequence[Region]]
    strength: float
    tokens: Sequence[Tokenized]
    """Of the prompts, by each tokenizer."""
    _read: dict[int, bool] = field(default_factory=dict)
    """Whether an encoder was given these prompts, for those that were given anything since the last evaluation."""
    _biases: dict[Any, RegionBias] = field(default_factory=dict)
    _noise: tuple[tuple[Any, ...], Sigma] | None = None
    """A scheduler with its configuration and schedule, and what its timesteps mean."""
    _host: HostTimesteps = field(default_factory=HostTimesteps)
    _modules: list[Any] = field(default_factory=list)

    def maps(self, size: tuple[int, int]) -> Float[Tensor, "P T h w"] | None:
        return combined_region_maps(self.prompts, [one.spans for one in self.tokens], self.regions, self.strength, size)

    def reading(self, place: int) -> Callable[..., None]:
        """A hook that records whether a text encoder reads these prompts."""

        def hook(_: Any, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
            ids = args[0] if args else more["input_ids"]
            self._read[place] = self._read.get(place, False) or torch.equal(ids.cpu(), self.tokens[place].ids)

        return hook

    def denoising(self, unet: Any, args: tuple[Any, ...], more: dict[str, Any]) -> tuple[Any, Any]:
        """A hook that passes the region bias to the U-Net."""
        given = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | more
        self._check(unet, given["encoder_hidden_states"])
        bias = self._region_bias(given["sample"], torch.as_tensor(given["timestep"]))
        return args, more | {
            "cross_attention_kwargs": (more.get("cross_attention_kwargs") or {}) | {"region_bias": bias}
        }

    def _check(self, unet: Any, states: Tensor) -> None:
        """Check that this evaluation reads these prompts, through our processors."""
        if not all(self._read.values()):
            raise UserError(
                f"the pipeline was given another prompt than its regions, {' | '.join(self.prompts)!r}: give it the same, for both of "
                "its text encoders."
            )
        self._read.clear()
        if states.shape[1] != (length := self.tokens[0].ids.shape[1]):
            raise UserError(
                f"the U-Net is given {states.shape[1]} tokens, but words can be found only among {length}: give prompts as text."
            )
        self._modules = self._modules or [one for one in unet.modules() if hasattr(one, "set_processor")]
        if not all(isinstance(one.processor, RegionAttnProcessor) for one in self._modules):
            raise UserError("the U-Net's attention processors were changed inside the block: change them before it.")

    def _region_bias(self, sample: Tensor, timestep: Tensor) -> RegionBias:
        pictures = len(sample) // 2 if self.pipeline.do_classifier_free_guidance else len(sample)
        each, over = divmod(pictures, len(self.prompts))
        if over:
            raise UserError(
                f"{len(self.prompts)} prompts have regions, but the pipeline generates {pictures} images at once: give it these prompts."
            )
        size = int(sample.shape[-2]), int(sample.shape[-1])
        key = size, pictures, len(sample), sample.device
        if key not in self._biases:
            maps = self.maps(size)
            assert maps is not None
            weights = maps.to(sample.device).repeat_interleave(each, 0)
            self._biases = {key: RegionBias(weights, size, weights.new_empty(pictures), 0, len(sample) - pictures)}
        return at_level(self._biases[key], self._sigma()(self._host.value(timestep)))

    def _sigma(self) -> Sigma:
        """The meaning of the scheduler's timesteps; computed again when the scheduler or one of its parts was replaced."""
        scheduler = self.pipeline.scheduler
        made_of = (scheduler, scheduler.config, getattr(scheduler, "alphas_cumprod", None))
        if self._noise is None or any(known is not now for known, now in zip(self._noise[0], made_of, strict=True)):
            self._noise = made_of, noise_of(scheduler)
        return self._noise[1]
