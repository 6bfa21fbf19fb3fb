"""What computes images for the server: requests of equal shape go in, images come out. `Engine` is a loaded model in this process."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.clip.image_processing import Preparation
from syzygy.clip.tokenization import collected_truncations
from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Progress
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.decoder.samplers import SAMPLERS
from syzygy.generation.mixing import mixed
from syzygy.generation.pipeline import to_pil
from syzygy.generation.request import notes
from syzygy.generation.subjects import Subject
from syzygy.generation.text_to_image import TextToImage
from syzygy.server.problems import field_errors
from syzygy.server.requests import ImageRequest, Upload


class Interrupted(Exception):
    """The batch was given up, because the server stops."""


@dataclass(frozen=True)
class Step:
    """A sampling step of a batch is done."""

    step: int
    steps: int
    previews: Sequence[tuple[int, int, Image.Image]] = ()
    """Row of the batch, number of the preview from 0, and what the image looks like so far."""


class Generated(NamedTuple):
    """The images of a batch."""

    images: list[Image.Image]
    truncated: list[tuple[str, str]]
    """Each text that an encoder cut, and the sentence about it."""


@dataclass(frozen=True)
class Description:
    """What the server must know of a model besides its images. It can be sent from where the model is loaded."""

    name: str
    """The model's id for clients."""
    record: Mapping[str, Any]
    """The settings that determine images when a request gives none, with the names of `syzygy generate`'s records."""
    own_size: tuple[int, int] | None
    """Height and width of all its images; None where a request may choose."""
    default_size: tuple[int, int] | None
    """Height and width of images where a request chooses none; a decoder that takes pictures says it."""
    capabilities: Mapping[str, Any]
    """What the model can do, as `GET /v1/models` shows it."""
    preparation: Preparation
    """Of pictures, for the image encoder."""
    languages: Sequence[str] | None
    """Those of a model that is limited to the embedded world; None for others."""

    def notes(self, text: str, subjects: Sequence[Subject] = ()) -> list[str]:
        """What the model does not understand in a prompt, one sentence each, apart from the words of subjects."""
        return notes(text, self.languages, subjects)

    def prepared(self, image: Image.Image, data: bytes) -> Upload:
        """A client's picture, prepared for the image encoder. Raises `UserError` if it is too long for its width."""
        return Upload.of(self.preparation.prepare(image), data)

    def file(self, image: Image.Image, request: ImageRequest, index: int) -> bytes:
        """The file of the request's image `index`; a PNG with its record inside."""
        return request.format.encoded(image, request.record(self.record, index))


class ImageEngine(Protocol):
    """What the server needs of a model. `Engine` computes in this process, `RayEngine` in replicas on a cluster."""

    @property
    def about(self) -> Description:
        """The model."""
        ...

    @property
    def lanes(self) -> int:
        """How many batches it computes at a time, each asked for by a thread of its own."""
        ...

    def generate(
        self, requests: Sequence[ImageRequest], seeds: Sequence[int], on_step: Callable[[Step], None]
    ) -> Generated:
        """An image from its seed for each of these requests, which are of one shape and may repeat.

        Raises:
            UserError: the model refuses the request. Errors that `on_step` raises end the sampling.
            Interrupted: `interrupt` was called.
        """
        ...

    def ready(self) -> bool:
        """Whether it can compute now. It may take seconds."""
        ...

    def interrupt(self) -> None:
        """Give up the batches whose `generate` may wait for something other than the next step."""
        ...


@dataclass(frozen=True)
class Engine:
    """A model in this process, and the settings that the server was started with."""

    model: TextToImage
    record: Mapping[str, Any]
    """The settings that determine images when a request gives none, with the names of `syzygy generate`'s records."""
    about: Description = field(init=False)
    """The model."""

    @classmethod
    def of(cls, model: TextToImage, record: Mapping[str, Any]) -> "Engine":
        """Keep only the last part of folders in the record, because it is sent to clients."""
        return cls(model, {key: last_part(value) if isinstance(value, str) else value for key, value in record.items()})

    def __post_init__(self) -> None:
        model = self.model
        about = Description(
            last_part(model.name),
            self.record,
            self.own_size,
            self.default_size,
            self.capabilities(),
            model.clip.preparation,
            model.limited_to,
        )
        object.__setattr__(self, "about", about)

    @property
    def lanes(self) -> int:
        """One: the model computes in one thread."""
        return 1

    def ready(self) -> bool:
        """It is loaded."""
        return True

    def interrupt(self) -> None:
        """Nothing is left to do: `generate` only waits for the next step, and `on_step` ends it there."""

    @property
    def own_size(self) -> tuple[int, int] | None:
        """Height and width of all its images; None where a request may choose."""
        decoder = self.model.pipeline.decoder
        if not isinstance(decoder, LatentDecoder):
            return None
        shape = decoder.autoencoder.decode(torch.zeros(1, *decoder.autoencoder.latent_shape, device=decoder.device))
        return shape.shape[2], shape.shape[3]

    @property
    def default_size(self) -> tuple[int, int] | None:
        """Height and width of images where a request chooses none; None where the decoder does not say it."""
        decoder, (height, width) = self.model.pipeline.decoder, (self.record.get("height"), self.record.get("width"))
        return decoder.fixed_size or ((height, width) if height and width else decoder.defaults.size)

    @property
    def previews(self) -> bool:
        """Whether it can show images before they are finished."""
        return isinstance(self.model.pipeline.decoder, LatentDecoder)

    def capabilities(self) -> dict[str, Any]:
        """What the model can do, as `GET /v1/models` shows it."""
        model = self.model
        decoder, conditions = model.pipeline.decoder, self.record.get("conditions") or model.pipeline.conditions
        size, ours, words = self.own_size, isinstance(decoder, LatentDecoder), set(conditions) - {"image"}
        style = "text" in conditions and "image" in decoder.conditions
        controlled = "image" in conditions and getattr(model.pipeline.prior, "takes_subjects", False)
        defaults = {name: self.record.get(name) for name in ("steps", "guidance_scale", "sampler", "negative_prompt")}
        strength = model.defaults["region_strength"]
        defaults |= {"region_strength": strength, "style_guidance": model.defaults["style_guidance"]}
        defaults["strength"] = model.defaults["strength"]
        defaults["painting"] = strength  # the old name, for one release
        return {
            "size": size and f"{size[1]}x{size[0]}",
            "defaults": defaults,
            "samplers": self.samplers,
            "options": {option.name: option.json_schema() for option in getattr(decoder, "options", ())},
            "conditions": list(conditions),
            "languages": list(model.languages),
            "regions": bool(words) and not (model.adapter and ("text" in words or not ours)),
            "style": style,
            "style_guidance": style and ours,
            "subjects": controlled and not model.adapter,
            "layout": controlled,
            "image": decoder.takes_image,
            "mask": decoder.takes_mask,
            "depth": decoder.takes_depth,
            "variations": "image" in decoder.conditions,
            "mixes": "image" in decoder.conditions and model.pipeline.prior is not None,
            "partial_images": self.previews,
        }

    @property
    def samplers(self) -> list[str]:
        """Those that a request may name."""
        decoder = self.model.pipeline.decoder
        if isinstance(decoder, LatentDecoder):
            return sorted(SAMPLERS)
        return [] if decoder.defaults.sampler is None else sorted(diffusers_schedulers.SCHEDULERS)

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[ImageRequest], seeds: Sequence[int], on_step: Callable[[Step], None]
    ) -> Generated:
        """An image from its seed for each of these requests, which are of one shape and may repeat.

        Raises:
            UserError: the model refuses the request. Errors that `on_step` raises end the sampling.
        """
        first = requests[0].generation
        batch: dict[str, Any] = {
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "callback": lambda progress: on_step(self._step(requests, progress)),
        }
        if first.mixtures:
            mixture = [(self._embedded(what), weight) for what, weight in first.mixtures[0]]
            batch["mixtures"] = [mixture] * len(requests)
        else:
            batch["prompts"] = [text for request in requests for text in request.generation.prompts]
            batch["regions"] = [request.regions for request in requests] if first.regions else None
            batch["style"] = None if first.style is None else self._style(first.style)
            batch["subjects"] = [replace(one, image=self._embedded(one.image)) for one in first.subjects]
            batch["layout"] = None if first.layout is None else self._embedded(first.layout)
        with collected_truncations() as truncated, field_errors("sources") if first.mixtures else nullcontext():
            return Generated(self.model.generate(replace(first, **batch)).images, truncated)

    def _embedded(self, what: Any) -> Any:
        """A text as it is; an upload's pixels as their image embedding [1, D]."""
        return what if isinstance(what, str) else self.model.clip.encode_pixels(what[None])

    def _style(self, pixels: Any) -> Float[Tensor, "1 D"]:
        """The embedding of one style picture [3, S, S], or the mean (`mixed`) of several [K, 3, S, S]."""
        if pixels.ndim == 3:
            return self._embedded(pixels)
        with field_errors("style"):
            return mixed(torch.stack([self._embedded(one) for one in pixels]), [1.0] * len(pixels))

    def _step(self, requests: Sequence[ImageRequest], progress: Progress) -> Step:
        numbers = [preview_at(progress.step, progress.steps, request.previews) for request in requests]
        rows = [row for row, number in enumerate(numbers) if number is not None]
        if not rows or progress.denoised is None:
            return Step(progress.step, progress.steps)
        images = self._preview(progress.denoised[rows])
        shown = [
            (row, number, image)
            for row, image in zip(rows, images, strict=True)
            if (number := numbers[row]) is not None
        ]
        return Step(progress.step, progress.steps, shown)

    def _preview(self, denoised: Float[Tensor, "B C H W"]) -> list[Image.Image]:
        """Images of the denoised estimates."""
        decoder = self.model.pipeline.decoder
        assert isinstance(decoder, LatentDecoder), "only this decoder reports latents of its autoencoder"
        return to_pil(decoder.autoencoder.decode(denoised))


def preview_at(step: int, steps: int, previews: int) -> int | None:
    """Number of the preview to show after this step (from 0), or None. Previews are spread evenly over the steps before the last."""
    shown = min(previews, steps - 1)
    places = [(number + 1) * steps // (shown + 1) for number in range(shown)]
    return places.index(step) if step in places else None


def last_part(place: str) -> str:
    """The name of a folder without its path; anything else as it is."""
    return Path(place).resolve().name if Path(place).is_dir() else place
