"""Karlo as a pipeline of diffusers, called as `UnCLIPPipeline` is. Diffusers has deprecated that class, and it no longer loads Karlo.

This module imports diffusers.

Shapes: P prompts, N images (prompts × images for each, those of one prompt together), T tokens, D width of the embeddings (768),
h × h and H × H pixels of both stages (64 and 256).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from jaxtyping import Float
from torch import Tensor

from syzygy.clip import clip_loading
from syzygy.clip.text_reading import read_texts
from syzygy.core import arguments, artifacts, hub_files
from syzygy.core.config import parse
from syzygy.core.contracts import Guide, Sampling, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.options import SUPER_RES_STEPS
from syzygy.core.pixels import check_finite
from syzygy.core.randomness import per_sample_noise
from syzygy.generation.pipeline import to_pil
from syzygy.generation.prior_pipeline_files import (
    Dtypes,
    check_stock_arguments,
    device_of,
    pinned,
    save_components,
    settings_of,
)
from syzygy.generation.request import check_generator, check_texts, one_each
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.karlo import BASE_STEPS, FINE_STEPS, KarloDecoder
from syzygy.pretrained.repositories import CLASS, INDEX_FILE, find_decoder
from syzygy.prior.diffusion_prior import DiffusionPrior, PriorSampling, SampledPrior
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.linear_prior import LinearPrior
from syzygy.prior.prior_folders import SCHEDULER_FILE, find_prior
from syzygy.prior.prior_loading import as_scheduled, check_width, read_network, scheduler_file
from syzygy.prior.unclip_sampling import TIMESTEPS, Ancestral

MODEL = "kakaobrain/karlo-v1-alpha"
PRIOR = "ECLIPSE-Community/ECLIPSE_Karlo_Prior"
STOCK = {"prior_num_inference_steps": 25, "prior_guidance_scale": 4.0}
"""The defaults of diffusers: no warning says that they have no effect."""
OUTPUTS = ("pil", "np", "pt")


class KarloPipeline(DiffusionPipeline):
    """Prompts → images with Karlo, with a prior of ours or its own. The arguments of the call are those of diffusers' `UnCLIPPipeline`.

    It is a `DiffusionPipeline`: `to`, `components`, `save_pretrained`, `enable_model_cpu_offload` and the progress bar work as in diffusers.
    """

    model_cpu_offload_seq = "text_encoder->text_proj->decoder->super_res_first->super_res_last"
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["prior", "text_proj"]

    prior: Any
    decoder: Any
    text_encoder: Any
    tokenizer: Any
    text_proj: Any
    super_res_first: Any
    super_res_last: Any
    prior_scheduler: Any
    decoder_scheduler: Any
    super_res_scheduler: Any

    def __init__(
        self,
        prior: Any,
        decoder: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_proj: Any,
        super_res_first: Any,
        super_res_last: Any,
        prior_scheduler: Any,
        decoder_scheduler: Any,
        super_res_scheduler: Any,
    ) -> None:
        """
        Args:
            prior: an `EclipsePrior`, `ResidualPrior`, `LinearPrior` or `DiffusionPrior`.
            decoder: diffusers' `UNet2DConditionModel`, the first stage.
            text_encoder: transformers' `CLIPTextModelWithProjection`.
            tokenizer: transformers' `CLIPTokenizer`.
            text_proj: `syzygy.pretrained.karlo_text.TextProjection`.
            super_res_first: diffusers' `UNet2DModel`, all steps of the second stage but the last.
            super_res_last: diffusers' `UNet2DModel`, the last step.
            prior_scheduler: diffusers' `UnCLIPScheduler`; None for a prior that predicts in one pass.
            decoder_scheduler: diffusers' `UnCLIPScheduler`.
            super_res_scheduler: diffusers' `UnCLIPScheduler`.

        Raises:
            UserError: another kind of prior, or a stock prior without its scheduler.
        """
        super().__init__()
        if not isinstance(prior, EclipsePrior | LinearPrior | DiffusionPrior):
            raise UserError(
                f"the prior is a {type(prior).__name__}; an EclipsePrior, ResidualPrior, LinearPrior or DiffusionPrior is needed. "
                "KarloPipeline.from_pretrained loads them."
            )
        if isinstance(prior, DiffusionPrior) and prior_scheduler is None:
            raise UserError("a diffusion prior is sampled as its scheduler says: give the prior_scheduler.")
        self.register_modules(
            prior=prior,
            decoder=decoder,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_proj=text_proj,
            super_res_first=super_res_first,
            super_res_last=super_res_last,
            prior_scheduler=prior_scheduler,
            decoder_scheduler=decoder_scheduler,
            super_res_scheduler=super_res_scheduler,
        )
        self._record: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] (its first name)
        cls,
        model: str | Path = MODEL,
        *,
        prior: str | Path | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        device_map: torch.device | str | None = None,
        local_files_only: bool = False,
        **stock: Any,
    ) -> "KarloPipeline":
        """Load Karlo with a prior, on the CPU.

        Args:
            model: hub id (`@` and a revision may follow), a folder in the layout of Karlo's repository, or what `save_pretrained` wrote.
            prior: ECLIPSE, residual, linear or a stock prior: hub id, folder or finished training run. By default the published ECLIPSE
                prior for Karlo, or the one that was saved with the pipeline. Karlo's repository itself as `prior` is the stock prior.
            dtype: what text encoder, decoder and stock prior compute in; fp32 by default. The other priors compute in fp32.
            torch_dtype: the same, by the name that it had before diffusers 0.42.
            revision: of the model's hub id: commit, tag or branch.
            device_map: a device to move all components to, such as "cuda".
            local_files_only: search the local cache only. By default, as in diffusers, what is missing is downloaded.
            stock: other arguments of diffusers' `from_pretrained`. They have no effect, and a warning says so.

        Raises:
            UserError: a part is not found, broken, or does not fit the other.
        """
        check_stock_arguments(stock, cls.__name__, ["variant"])
        kind, model = Dtypes.of(dtype, torch_dtype).default, pinned(model, revision)
        found = find_decoder(model, local_files_only=local_files_only)
        if found.family.decoder is not KarloDecoder:
            raise UserError(
                f"{model} is no Karlo: it holds a decoder of {found.family.name}. The published one is {MODEL}."
            )
        at = hub_files.locate(model, None, local_files_only, MODEL)
        text_encoder, tokenizer = clip_loading.load_text(at, kind)
        text_encoder.requires_grad_(False)
        empty = read_texts(text_encoder, tokenizer, [""], torch.device("cpu"))
        karlo = KarloDecoder.with_text(LoadContext(folder=at.folder, dtype=kind), empty)
        if prior is None:
            saved = artifacts.read_json(at.folder / INDEX_FILE).get(CLASS) == cls.__name__
            prior = model if saved else PRIOR
        place = find_prior(prior, local_files_only=local_files_only)
        network = read_network(place, kind)
        check_width(place, network, karlo.width)
        made = cls(
            prior=network,
            decoder=karlo.unet,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_proj=karlo.projection,
            super_res_first=karlo.fine_first,
            super_res_last=karlo.fine_last,
            prior_scheduler=_scheduler(scheduler_file(place)) if isinstance(network, DiffusionPrior) else None,
            decoder_scheduler=_scheduler(at.folder / BASE_STEPS / SCHEDULER_FILE),
            super_res_scheduler=_scheduler(at.folder / FINE_STEPS / SCHEDULER_FILE),
        )
        record = place / artifacts.PROVENANCE_FILE
        made._record = artifacts.read_json(record) if record.is_file() else None
        return made if device_map is None else made.to(device_of(device_map))

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] (`stock` takes the others)
        self, save_directory: str | PathLike[str], **stock: Any
    ) -> None:
        """Write all components as safetensors in the layout of Karlo's repository; `from_pretrained` reads it.

        Args:
            save_directory: the folder; what it holds of other names is kept.
            stock: other arguments of diffusers' `save_pretrained`. They have no effect, and a warning says so.

        Raises:
            UserError: the folder cannot be written.
        """
        if stock:
            warnings.warn(f"no effect in save_pretrained of a KarloPipeline: {', '.join(sorted(stock))}.", stacklevel=2)
        save_components(Path(save_directory), self.components, record=self._record)
        self.save_config(save_directory)

    @torch.no_grad()
    def __call__(  # noqa: PLR0913, PLR0917 (as of diffusers' pipeline)
        self,
        prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        prior_num_inference_steps: int | None = None,
        decoder_num_inference_steps: int = 25,
        super_res_num_inference_steps: int = 7,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prior_latents: Float[Tensor, "N D"] | None = None,
        decoder_latents: Float[Tensor, "N 3 h h"] | None = None,
        super_res_latents: Float[Tensor, "N 3 H H"] | None = None,
        text_model_output: Any = None,
        text_attention_mask: Tensor | None = None,
        prior_guidance_scale: float | None = None,
        decoder_guidance_scale: float = 8.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images from prompts.

        Args:
            prompt: one, or P.
            num_images_per_prompt: images for each.
            prior_num_inference_steps: of a stock prior, 25 by default. Without effect on the others, with a warning.
            decoder_num_inference_steps: of the first stage.
            super_res_num_inference_steps: of the second stage.
            generator: one for each of the N images, or one from which each image's own is drawn in turn. None draws a fresh seed.
            prior_latents: the noise of the prior.
            decoder_latents: the initial noise of the first stage.
            super_res_latents: the initial noise of the second stage.
            text_model_output: instead of prompts, what the text encoder returns for them: pooled embeddings [P, D] and states [P, T, D].
            text_attention_mask: its mask [P, T].
            prior_guidance_scale: of a stock prior, 4 by default. Without effect on the others, with a warning.
            decoder_guidance_scale: of the first stage; 1 is off.
            output_type: "pil" (images of Pillow), "np" (array [N, H, H, 3]) or "pt" (tensor [N, 3, H, H]), the latter two in [0, 1].
            return_dict: diffusers' output class, or a tuple.

        Raises:
            UserError: arguments of another type, or numbers that do not fit.
            NonFiniteError: the model computes NaN or infinity.
        """
        if output_type not in OUTPUTS:
            raise UserError(f"output_type {output_type!r} is unknown. Known: {', '.join(OUTPUTS)}.")
        features = self._features(prompt, text_model_output, text_attention_mask)
        number = arguments.whole(num_images_per_prompt, "num_images_per_prompt", 1)
        features = features[[i for i in range(len(features)) for _ in range(number)]]
        generators = one_each(check_generator(generator), len(features))
        prior = self._configured(prior_num_inference_steps, prior_guidance_scale)
        steps = arguments.whole(decoder_num_inference_steps, "decoder_num_inference_steps", 1, TIMESTEPS)
        fine = arguments.whole(super_res_num_inference_steps, "super_res_num_inference_steps", 1, TIMESTEPS)
        sampling = Sampling(
            steps=steps,
            guidance_scale=arguments.number(decoder_guidance_scale, "decoder_guidance_scale", 0),
            options={SUPER_RES_STEPS.name: fine},
        )
        with self.progress_bar(total=prior.steps + steps + fine) as bar:  # pyright: ignore[reportCallIssue] (decorated)
            embeddings = self._predicted(features, generators, prior_latents, prior, bar.update)
            check_finite(embeddings, "image embeddings")
            images = self._karlo().generate(
                Guide(embeddings, features),
                generators,
                sampling=sampling,
                on_step=lambda _: bar.update(),
                latents=(decoder_latents, super_res_latents),
            )
        self.maybe_free_model_hooks()
        found = _as_asked(images, output_type)
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    def _features(self, prompt: Any, output: Any, mask: Any) -> TextFeatures:
        """What prior and decoder read, a row for each prompt."""
        device = self._execution_device
        if prompt is not None:
            if output is not None or mask is not None:
                raise UserError("prompt and text_model_output are both given: give one of the two.")
            return read_texts(self.text_encoder, self.tokenizer, check_texts(prompt), device)
        if output is None or mask is None:
            raise UserError("give a prompt, or text_model_output together with its text_attention_mask.")
        return TextFeatures(output[1].float(), mask.bool(), output[0].float()).to(device)

    def _configured(self, steps: int | None, scale: float | None) -> PriorSampling:
        """How the prior is sampled; a single step of one that predicts in one pass."""
        asked: dict[str, Any] = {}
        if steps is not None:
            asked["steps"] = arguments.whole(steps, "prior_num_inference_steps", 1, TIMESTEPS)
        if scale is not None:
            asked["guidance_scale"] = arguments.number(scale, "prior_guidance_scale", 0)
        if isinstance(self.prior, DiffusionPrior):
            own = as_scheduled(settings_of(self.prior_scheduler), "the prior_scheduler")
            return parse(PriorSampling, own.model_dump() | asked, "the call")
        given = {"prior_num_inference_steps": steps, "prior_guidance_scale": scale}
        without = [name for name, value in given.items() if value not in (None, STOCK[name])]
        if without:
            warnings.warn(
                f"{' and '.join(without)}: no effect on this prior, which predicts in one pass without guidance.",
                stacklevel=4,
            )
        return PriorSampling(steps=1)

    def _predicted(
        self,
        features: TextFeatures,
        generators: Sequence[torch.Generator],
        noise: Any,
        sampling: PriorSampling,
        count: Callable[[], Any],
    ) -> Float[Tensor, "N D"]:
        """Image embeddings. The noise of each comes from its own generator, before that of the decoder."""
        if noise is None:
            noise = per_sample_noise(features.pooled.shape[1:], generators, self._execution_device)
        if not isinstance(self.prior, DiffusionPrior):
            found = self.prior.predict(features, noise=noise)
            count()
            return found

        def on_step(step: int, timestep: int, latents: Tensor, scale: float) -> tuple[Tensor, float]:
            count()
            return latents, scale

        prior = SampledPrior(self.prior, self._empty(), sampling, "cosine")
        return prior.predict(features, noise=noise, on_step=on_step)

    def _empty(self) -> TextFeatures:
        return read_texts(self.text_encoder, self.tokenizer, [""], self._execution_device)

    def _karlo(self) -> KarloDecoder:
        """The decoder of these components."""
        return KarloDecoder(
            projection=self.text_proj,
            unet=self.decoder,
            fine_first=self.super_res_first,
            fine_last=self.super_res_last,
            base_steps=Ancestral.from_settings(settings_of(self.decoder_scheduler), "the decoder_scheduler"),
            fine_steps=Ancestral.from_settings(settings_of(self.super_res_scheduler), "the super_res_scheduler"),
            empty=self._empty(),
            device=self._execution_device,
        )


def _scheduler(path: Path | None) -> Any:
    settings: Mapping[str, Any] = {} if path is None else artifacts.read_json(path)
    return None if path is None else UnCLIPScheduler.from_config(settings)


def _as_asked(images: Float[Tensor, "N 3 H W"], output_type: str) -> Any:
    if output_type == "pil":
        return to_pil(images)
    check_finite(images, "images")
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).float().cpu().numpy()
