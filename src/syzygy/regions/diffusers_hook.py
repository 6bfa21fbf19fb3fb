"""Paint-with-words in pipelines of diffusers that users have already, without training and without a class patched.

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
    """Paint with words in a pipeline of diffusers, as it is, without training:

        with region_conditioning(pipe, prompt, [Region("a red star", mask)], strength=0.4):
            images = pipe(prompt, num_images_per_prompt=2).images

    For Stable Diffusion 1.x, 2.x and XL: text to image, image to image, inpainting. Its calls inside must read this prompt; negative
    prompts, steps, schedulers, guidance and numbers of pictures are free. At the end, and after an error, the pipeline is what it was.

    Args:
        pipeline: one with `unet`, `scheduler`, `tokenizer` and `text_encoder`, perhaps a second pair of these.
        prompt: as the pipeline will be given.
        regions: for all prompts, or a list for each.
        strength: w' of eDiff-I; 0 is not at all. Its scale is that of σ = √((1 − ᾱ)/ᾱ), whatever the scheduler.
        blur: softness of the borders, as a part of the longer side.

    Raises:
        UserError: another kind of pipeline; a phrase that is not in its prompt, or past the last token that is read; attention
            that cannot be painted. In calls: another prompt, embeddings of another length, a scheduler of unknown noise levels.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    unet, readers = _parts(pipeline)
    own = [[blurred(one, blur) for one in some] for some in for_each(regions, len(prompts))]
    tokens = [padded_tokens(tokenizer, prompts, control=True) for tokenizer, _ in readers]
    brush = _Brush(pipeline, prompts, own, strength, tokens)
    if brush.maps((8, 8)) is None:
        yield pipeline
        return
    with ExitStack() as stack:
        stack.callback(remove_region_processors, unet)
        add_region_processors(unet)
        for place, (_, encoder) in enumerate(readers):
            if encoder is not None:
                stack.callback(encoder.register_forward_pre_hook(brush.reading(place), with_kwargs=True).remove)
        stack.callback(unet.register_forward_pre_hook(brush.denoising, with_kwargs=True).remove)
        yield pipeline


painted = region_conditioning


def _parts(pipeline: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """The U-Net, and tokenizers with their encoders."""
    unet, pairs = getattr(pipeline, "unet", None), [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    readers = [(getattr(pipeline, one, None), getattr(pipeline, two, None)) for one, two in pairs]
    readers = [pair for pair in readers if pair[0] is not None]
    if unet is None or not readers or not hasattr(type(pipeline), "do_classifier_free_guidance"):
        raise UserError(
            f"{type(pipeline).__name__} cannot be painted: this is for pipelines whose U-Net reads a prompt token by token, Stable "
            "Diffusion 1.x, 2.x and XL. Kandinsky's reads none; Karlo and Stable unCLIP are painted by syzygy generate --region."
        )
    if any(isinstance(getattr(one, "processor", None), RegionAttnProcessor) for one in unet.modules()):
        raise UserError("this pipeline is being painted already: give all regions at once.")
    return unet, readers


@dataclass
class _Brush:
    """Paints each evaluation of a pipeline's U-Net, by hooks on it and on the text encoders."""

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
        """A hook that notes what a text encoder is given."""

        def hook(_: Any, args: tuple[Any, ...], more: Mapping[str, Any]) -> None:
            ids = args[0] if args else more["input_ids"]
            self._read[place] = self._read.get(place, False) or torch.equal(ids.cpu(), self.tokens[place].ids)

        return hook

    def denoising(self, unet: Any, args: tuple[Any, ...], more: dict[str, Any]) -> tuple[Any, Any]:
        """A hook that hands the U-Net its bias."""
        told = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | more
        self._check(unet, told["encoder_hidden_states"])
        bias = self._region_bias(told["sample"], torch.as_tensor(told["timestep"]))
        return args, more | {
            "cross_attention_kwargs": (more.get("cross_attention_kwargs") or {}) | {"region_bias": bias}
        }

    def _check(self, unet: Any, states: Tensor) -> None:
        """Whether this evaluation reads the prompts that are painted, through our processors."""
        if not all(self._read.values()):
            raise UserError(
                f"the pipeline was given another prompt than is painted, {' | '.join(self.prompts)!r}: give it the same, for both of "
                "its text encoders."
            )
        self._read.clear()
        if states.shape[1] != (length := self.tokens[0].ids.shape[1]):
            raise UserError(f"the U-Net is given {states.shape[1]} tokens; words can be found in {length} alone.")
        self._modules = self._modules or [one for one in unet.modules() if hasattr(one, "set_processor")]
        if not all(isinstance(one.processor, RegionAttnProcessor) for one in self._modules):
            raise UserError("the U-Net's attention processors were changed while it is painted: change them before.")

    def _region_bias(self, sample: Tensor, timestep: Tensor) -> RegionBias:
        pictures = len(sample) // 2 if self.pipeline.do_classifier_free_guidance else len(sample)
        each, over = divmod(pictures, len(self.prompts))
        if over:
            raise UserError(
                f"{len(self.prompts)} prompts are painted, but the pipeline paints {pictures} pictures at once."
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
        """What the timesteps of the pipeline's scheduler mean; computed anew when the scheduler, or what it is made of, was replaced."""
        scheduler = self.pipeline.scheduler
        made_of = (scheduler, scheduler.config, getattr(scheduler, "alphas_cumprod", None))
        if self._noise is None or any(known is not now for known, now in zip(self._noise[0], made_of, strict=True)):
            self._noise = made_of, noise_of(scheduler)
        return self._noise[1]
