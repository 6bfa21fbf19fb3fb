"""A prior with its CLIP as a pipeline of diffusers, called as `KandinskyV22PriorPipeline` is, with the same output.

This module imports diffusers.

Shapes: P prompts, N pictures (prompts × pictures a prompt, those of one prompt together), R rows that the prior predicts (N, or 2 N
with negative prompts, whose rows come last), D width of the embeddings.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.pipelines.kandinsky.pipeline_kandinsky_prior import KandinskyPriorPipelineOutput
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from jaxtyping import Float
from torch import Tensor

from syzygy.clip.text_reading import read_texts
from syzygy.core import arguments
from syzygy.core.config import parse
from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.generation.combined_pipelines import combine
from syzygy.generation.prior_pipeline_files import (
    CLIPS,
    Dtypes,
    check_stock_arguments,
    device_of,
    load_parts,
    pinned,
    save_components,
    save_zero_image,
    settings_of,
)
from syzygy.generation.prior_request import TENSORS, PriorRequest
from syzygy.prior.diffusion_prior import DiffusionPrior, PriorSampling, SampledPrior
from syzygy.prior.prior_loading import OnePassPrior, as_scheduled
from syzygy.prior.unclip_sampling import TIMESTEPS, Schedule
from syzygy.text_encoders.adapter import AdaptedText

__all__ = ["CLIPS", "PriorPipeline"]

STOCK = {"num_inference_steps": 25, "guidance_scale": 4.0}
"""The values that diffusers' combined pipelines pass to a prior by default: no warning says that they have no effect."""
_loading = logging.get_logger("diffusers.pipelines.pipeline_utils")
"""Where diffusers says what it loads."""


class PriorPipeline(DiffusionPipeline):
    """Prompts → `image_embeds, negative_image_embeds`, for every decoder of diffusers that takes these, such as Kandinsky 2.2's.

    It is a `DiffusionPipeline`: `to`, `components`, `save_pretrained`, `enable_model_cpu_offload`, the progress bar and callbacks work as
    in diffusers. Load it with `from_pretrained`, or pass the components.

    A prior that predicts in one pass (ECLIPSE, residual, linear) takes a single step, without guidance of its own.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder"
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["prior"]
    _optional_components: ClassVar[list[str]] = ["scheduler"]
    _callback_tensor_inputs: ClassVar[list[str]] = [*TENSORS]

    prior: Any
    text_encoder: Any
    tokenizer: Any
    image_encoder: Any
    image_processor: Any

    def __init__(
        self,
        prior: Any,
        text_encoder: Any,
        tokenizer: Any,
        image_encoder: Any,
        image_processor: Any,
        scheduler: Any = None,
    ) -> None:
        """
        Args:
            prior: an `EclipsePrior`, `ResidualPrior`, `LambdaEclipsePrior`, `LambdaResidualPrior`, `LinearPrior` or `DiffusionPrior`.
            text_encoder: transformers' `CLIPTextModelWithProjection`, or a language model with its adapter (`AdaptedText`).
            tokenizer: transformers' `CLIPTokenizer`; None with an adapter.
            image_encoder: transformers' `CLIPVisionModelWithProjection`; None if every call has a negative prompt.
            image_processor: transformers' `CLIPImageProcessor`, which is saved with the image encoder; None without it.
            scheduler: diffusers' `UnCLIPScheduler`. Only a published `DiffusionPrior` has one.

        Raises:
            UserError: another kind of prior, or a scheduler that cannot be followed.
        """
        super().__init__()
        if not isinstance(prior, OnePassPrior | DiffusionPrior):
            raise UserError(
                f"the prior is a {type(prior).__name__}; an EclipsePrior, ResidualPrior, LambdaEclipsePrior, LambdaResidualPrior, "
                "LinearPrior or DiffusionPrior is needed. PriorPipeline.from_pretrained loads them, the stock prior as a DiffusionPrior too."
            )
        self.register_modules(
            prior=prior,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            scheduler=scheduler,
            image_processor=image_processor,
        )
        own = prior.own_sampling if isinstance(prior, DiffusionPrior) else None
        self._sampling: tuple[PriorSampling, Schedule] = own or (PriorSampling(), "linear")
        if isinstance(prior, DiffusionPrior) and scheduler is not None:
            self._sampling = as_scheduled(settings_of(scheduler), "the scheduler"), "cosine"
        self._zero_image: Callable[[], Tensor] | None = None
        self._record: dict[str, Any] | None = None
        self._adapted_dtype: torch.dtype | None = None
        self._guidance_scale, self._num_timesteps = 1.0, 0

    @classmethod
    def from_pretrained(  # noqa: PLR0913  # pyright: ignore[reportIncompatibleMethodOverride] (by keyword, but the first)
        cls,
        prior: str | Path,
        *,
        clip: str | Path | None = None,
        text_encoder: str | Path | None = None,
        llm: str | Path | None = None,
        image_encoder: Any = None,
        dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        torch_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        revision: str | None = None,
        variant: str | None = None,
        device_map: torch.device | str | None = None,
        local_files_only: bool = False,
        **stock: Any,
    ) -> "PriorPipeline":
        """Load a prior, on the CPU, with its text encoder.

        By default the image encoder is loaded only to compute the embedding of an image of zeros, which is then kept in the user's cache.

        Args:
            prior: ECLIPSE, residual, linear or a stock prior: hub id (`@` and a revision may follow), folder, finished training run, or
                what `save_pretrained` wrote.
            clip: folder or hub id of the CLIP that the prior was trained with. By default the prior's own repository, where it
                holds one; else, by the width of its embeddings, Kandinsky 2.2's or OpenAI's ViT-L/14.
            text_encoder: a language model's adapter that reads prompts, negative ones too, instead of CLIP: its folder, or the run that
                trained it.
            llm: the adapter's language model (folder or hub id), if it has moved since the training.
            image_encoder: the CLIP's, loaded already (transformers' `CLIPVisionModelWithProjection`), to use and to save it.
            dtype: what text encoder and stock prior compute in, and of the embeddings; fp32 by default. The other priors compute in fp32,
                except those of a saved pipeline. A dictionary from components ("prior", …, or "default") to dtypes sets each.
            torch_dtype: the same, by the name that it had before diffusers 0.42.
            revision: of the prior's hub id: commit, tag or branch.
            variant: the variant of the files of weights to read: "fp16" or "bf16". By default full precision, where it is published.
            device_map: a device to move all components to, such as "cuda".
            local_files_only: search the local cache only. By default, as in diffusers, what is missing is downloaded.
            stock: other arguments of diffusers' `from_pretrained`. They have no effect, and a warning says so.

        Raises:
            UserError: a part is not found, broken, or does not fit the other; no weights of the variant.
        """
        check_stock_arguments(stock, cls.__name__)
        if text_encoder is None and llm is not None:
            raise UserError("a language model has no effect without its adapter: name a text encoder, or leave it out.")
        dtypes = Dtypes.of(dtype, torch_dtype)
        parts = load_parts(
            pinned(prior, revision),
            clip=clip,
            text_encoder=text_encoder,
            llm=llm,
            dtypes=dtypes,
            variant=variant,
            local_files_only=local_files_only,
        )
        made = cls(**parts.components | ({} if image_encoder is None else {"image_encoder": image_encoder}))
        made._zero_image, made._record = parts.zero_image, parts.record
        made._sampling = parts.sampling or made._sampling
        made._adapted_dtype = dtypes.default if text_encoder is not None else None
        for name, component in made.components.items():
            if component is not None:
                _loading.info(f"Loaded {name} as {type(component).__name__} for the prior {prior}.")
        return made if device_map is None else made.to(device_of(device_map))

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] (`stock` takes the others)
        self,
        save_directory: str | PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **stock: Any,
    ) -> None:
        """Write all components in the layout of diffusers' pipelines; `PriorPipeline.from_pretrained` reads it.

        Without the image encoder, which is loaded only on demand, the embedding of an image of zeros is saved in its place.

        Args:
            save_directory: the folder; what it holds of other names is kept.
            safe_serialization: only safetensors are written. False has no effect, and a warning says so.
            variant: goes into the names of the files of weights, such as "fp16". Weights are saved in the precision that they have.
            max_shard_size: of files of CLIP's encoders, such as "5GB". A prior is a single file.
            push_to_hub: not done here.
            stock: other arguments of diffusers' `save_pretrained`. They have no effect, and a warning says so.

        Raises:
            UserError: a component cannot be saved, the folder cannot be written, or `push_to_hub`.
        """
        if push_to_hub:
            raise UserError(
                f"save_pretrained does not upload. Save the folder, then run: hf upload ID {save_directory}."
            )
        without = sorted(stock) + ["safe_serialization=False (pickle is never written)"] * (not safe_serialization)
        if without:
            warnings.warn(f"no effect in save_pretrained of a PriorPipeline: {', '.join(without)}.", stacklevel=2)
        if self.image_encoder is not None and self.image_processor is None:
            raise UserError("an image encoder is saved with its image_processor, and this pipeline has none: set it.")
        folder = Path(save_directory)
        save_components(folder, self.components, record=self._record, variant=variant, max_shard_size=max_shard_size)
        save_zero_image(folder, self.get_zero_embed() if self.image_encoder is None else None)
        self.save_config(folder)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the returned embeddings: that of the text encoder; of an adapter in fp32, the one asked for when loading."""
        own = self.text_encoder.dtype
        return self._adapted_dtype if self._adapted_dtype is not None and own == torch.float32 else own

    def combined_with(self, decoder: DiffusionPipeline) -> DiffusionPipeline:
        """Diffusers' pipeline of Kandinsky 2.2 from a prompt to an image, with this prior and the components of `decoder`.

        Args:
            decoder: a `KandinskyV22Pipeline`, `KandinskyV22Img2ImgPipeline` or `KandinskyV22InpaintPipeline`.

        Returns:
            The combined pipeline of that kind. Its `to` and its offloading move the components of prior and decoder.

        Raises:
            UserError: another pipeline.
        """
        return combine(self, decoder)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep the weights of the encoders on the CPU, and move each layer to the device only while it computes.

        Raises:
            UserError: the text encoder is a language model with its adapter.
        """
        if isinstance(self.text_encoder, AdaptedText):
            raise UserError("a language model cannot be offloaded layer by layer: use enable_model_cpu_offload.")
        if self.image_encoder is None and self._zero_image is not None:
            zero = self._zero_image()  # as long as the CLIP's weights are in one place
            self._zero_image = lambda: zero
        super().enable_sequential_cpu_offload(gpu_id, device)  # pyright: ignore[reportArgumentType] (its default is None)

    @property
    def guidance_scale(self) -> float:
        """Of the last call; 1 for a prior that predicts in one pass, where none was given."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call; 1 for a prior that predicts in one pass."""
        return self._num_timesteps

    def encode_text(self, texts: list[str]) -> TextFeatures:
        """What the prior reads of texts: token states, mask and pooled embedding, in fp32."""
        if isinstance(self.text_encoder, AdaptedText):
            return self.text_encoder.encode_text(texts)
        return read_texts(self.text_encoder, self.tokenizer, texts, self._execution_device)

    @torch.no_grad()
    def get_zero_embed(self, batch_size: int = 1, device: torch.device | str | None = None) -> Float[Tensor, "B D"]:
        """The image encoder's embedding of an image of zeros, repeated: the negative conditioning without a negative prompt.

        Raises:
            UserError: there is no image encoder, and the pipeline was not loaded with `from_pretrained`.
        """
        device = self._execution_device if device is None else device
        if self.image_encoder is not None:
            side = self.image_encoder.config.image_size
            pixels = torch.zeros(1, 3, side, side, device=device, dtype=self.image_encoder.dtype)
            found = self.image_encoder(pixels).image_embeds
        elif self._zero_image is not None:
            found = self._zero_image()
        else:
            raise UserError(
                "without a negative prompt the image encoder is needed, and this pipeline has none: give a negative_prompt, or the "
                "image_encoder, or load the pipeline with from_pretrained."
            )
        return found.to(device).repeat(batch_size, 1)

    @torch.no_grad()
    def __call__(  # noqa: PLR0913, PLR0917 (as of diffusers' pipeline)
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "R D"] | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> KandinskyPriorPipelineOutput | tuple[Any, Any]:
        """Image embeddings of prompts, and their negative conditioning.

        Args:
            prompt: one, or P.
            negative_prompt: one for all, or one each, through the prior as the prompts are. None: the embedding of a picture of
                zeros.
            num_images_per_prompt: embeddings a prompt, each from its own noise.
            num_inference_steps: of a stock prior, 25 by default. Without effect on a prior that predicts in one pass, with a warning.
            generator: one for all noise, or one for each of the N; without it torch's own.
            latents: the noise itself: ECLIPSE's ε, or where a stock prior starts.
            guidance_scale: of a stock prior, 4 by default; not the decoder's. Without effect on the others, with a warning.
            output_type: tensors ("pt") on the device, or numpy arrays ("np").
            return_dict: diffusers' output class, or a tuple.
            callback_on_step_end: is called after each step (the only one of a prior that predicts in one pass) as `callback(pipeline,
                step, timestep, tensors)`, with the latents [R, D]. The call continues with the latents that it returns in a dictionary.
                Of a stock prior they are whitened embeddings; otherwise they are the embeddings themselves.
            callback_on_step_end_tensor_inputs: which tensors it gets; "latents" is all there is.

        Raises:
            UserError: arguments of another type, or numbers that do not fit.
            NonFiniteError: noise (`latents`) or an embedding holds NaN or infinity.
        """
        request = PriorRequest.checked(
            prompt,
            negative_prompt,
            num_images_per_prompt,
            generator=generator,
            latents=latents,
            output_type=output_type,
            callback=callback_on_step_end,
            tensors=callback_on_step_end_tensor_inputs,
        )
        sampling = self._configured(num_inference_steps, guidance_scale)
        noise = request.noise(self.prior.config.embedding_dim, self._execution_device)
        rows, negatives = request.rows, request.negatives
        features, theirs = self.encode_text(request.prompts)[rows], None
        if negatives is not None:
            unique = list(dict.fromkeys(negatives))
            theirs = self.encode_text(unique)[[unique.index(negatives[row]) for row in rows]]
        found = self._predicted(request, features, theirs, noise, sampling)
        found, away = (found, self.get_zero_embed(len(rows), found.device)) if theirs is None else found.chunk(2)
        found, away = found.to(self.dtype), away.to(self.dtype)
        request.check_embeddings(found, away)
        self.maybe_free_model_hooks()
        both = (found, away) if output_type == "pt" else (found.float().cpu().numpy(), away.float().cpu().numpy())
        return KandinskyPriorPipelineOutput(*both) if return_dict else both

    def _configured(self, steps: int | None, scale: float | None) -> PriorSampling:
        """The sampling of a call; it is that of the pipeline where the call says nothing."""
        asked: dict[str, Any] = {}
        if steps is not None:
            asked["steps"] = arguments.whole(steps, "num_inference_steps", 1, TIMESTEPS)
        if scale is not None:
            asked["guidance_scale"] = arguments.number(scale, "guidance_scale", 0)
        if isinstance(self.prior, DiffusionPrior):
            sampling = parse(PriorSampling, self._sampling[0].model_dump() | asked, "the call")
            self._guidance_scale, self._num_timesteps = sampling.guidance_scale, sampling.steps
            return sampling
        given = {"num_inference_steps": steps, "guidance_scale": scale}
        without = [name for name, value in given.items() if value not in (None, STOCK[name])]
        if without:
            warnings.warn(
                f"{' and '.join(without)}: no effect on this prior, which predicts in one pass without guidance. The decoder has its "
                "own steps and guidance.",
                stacklevel=4,
            )
        self._guidance_scale, self._num_timesteps = asked.get("guidance_scale", 1.0), 1
        return self._sampling[0]

    def _predicted(
        self,
        request: PriorRequest,
        features: TextFeatures,
        negative: TextFeatures | None,
        noise: Float[Tensor, "R D"],
        sampling: PriorSampling,
    ) -> Float[Tensor, "R D"]:
        """Embeddings of the prompts, and after them of the negative ones.

        A stock prior is guided away from the negative prompt instead of the empty one, as in the stock pipeline.
        """
        with self.progress_bar(total=self._num_timesteps) as bar:  # pyright: ignore[reportCallIssue] (a decorated method)

            def on_step(step: int, timestep: int, latents: Tensor, scale: float) -> tuple[Tensor, float]:
                bar.update()
                return request.after_step(self, step, timestep, latents), self._guidance_scale

            if negative is not None:
                features = TextFeatures.cat([features, negative])
            if not isinstance(self.prior, DiffusionPrior):
                return on_step(0, 0, self.prior.predict(features, noise=noise), 1.0)[0]
            nothing = self.encode_text([""]) if negative is None else TextFeatures.cat([negative, negative])
            prior = SampledPrior(self.prior, nothing, sampling, self._sampling[1])
            return prior.predict(features, noise=noise, on_step=on_step)
