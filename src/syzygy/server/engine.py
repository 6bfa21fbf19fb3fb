"""A loaded model as a server uses it: from one thread, orders of equal shape in, PNG files out."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Progress
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.decoder.samplers import SAMPLERS
from syzygy.generation.image_files import png_bytes
from syzygy.generation.pipeline import to_pil
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.server.problems import about
from syzygy.server.requests import Order, Upload


@dataclass(frozen=True)
class Studio:
    """A model, and the settings that it was started with."""

    model: TextToImage
    record: Mapping[str, Any]
    """What decides pictures besides orders, in the terms of `syzygy generate`'s records."""

    @classmethod
    def of(cls, model: TextToImage, record: Mapping[str, Any]) -> "Studio":
        """With the places of folders left out of the record, which goes to clients: of a path they learn its last part."""
        return cls(model, {key: last_part(value) if isinstance(value, str) else value for key, value in record.items()})

    @property
    def name(self) -> str:
        """What clients call the model."""
        return last_part(self.model.name)

    @property
    def own_size(self) -> tuple[int, int] | None:
        """Height and width of all that it paints; None where a request may choose."""
        decoder = self.model.pipeline.decoder
        if not isinstance(decoder, LatentDecoder):
            return None
        shape = decoder.autoencoder.decode(torch.zeros(1, *decoder.autoencoder.latent_shape, device=decoder.device))
        return shape.shape[2], shape.shape[3]

    @property
    def previews(self) -> bool:
        """Whether it can show pictures before they are done."""
        return isinstance(self.model.pipeline.decoder, LatentDecoder)

    def about(self) -> dict[str, Any]:
        """What it can do, for clients that offer it to people."""
        model = self.model
        decoder, conditions = model.pipeline.decoder, self.record.get("conditions") or model.pipeline.conditions
        size, ours, words = self.own_size, isinstance(decoder, LatentDecoder), set(conditions) - {"image"}
        style = {"image", "text"} <= set(conditions)
        defaults = {name: self.record.get(name) for name in ("steps", "guidance_scale", "sampler", "negative_prompt")}
        defaults |= {"painting": model.defaults["region_strength"], "style_guidance": model.defaults["style_guidance"]}
        return {
            "size": size and f"{size[1]}x{size[0]}",
            "defaults": defaults,
            "samplers": self.samplers,
            "conditions": list(conditions),
            "languages": list(model.languages),
            "regions": bool(words) and not (model.adapter and ("text" in words or not ours)),
            "style": style,
            "style_guidance": style and ours,
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

    def seen(self, image: Image.Image, data: bytes) -> Upload:
        """A client's picture, made ready for the image encoder.

        Raises:
            UserError: it is too long for its width.
        """
        return Upload.of(self.model.clip.preparation.prepare(image), data)

    @torch.inference_mode()
    def paint(
        self, orders: Sequence[Order], seeds: Sequence[int], on_step: Callable[[Progress], None]
    ) -> list[Image.Image]:
        """A picture for each of these orders, which are of one shape and may repeat, from its seed.

        Raises:
            UserError: what the model refuses; `on_step`'s own errors end the sampling.
        """
        first = orders[0]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        subject: dict[str, Any] = {}
        if first.prompt is None:
            subject["mixtures"] = [[(self._embedded(one.what), one.weight) for one in first.sources]] * len(orders)
        else:
            subject = {
                "prompts": [order.prompt or "" for order in orders],
                "conditions": self.record.get("conditions"),
                "regions": [order.regions for order in orders] if first.regions else None,
                "style": None if first.style is None else self._embedded(first.style),
            }
        request = GenerationRequest(
            **subject,
            negative_prompt=first.negative_prompt,
            sampling=first.sampling,
            generator=generators,
            callback=on_step,
        )
        with about("sources") if first.prompt is None else nullcontext():
            return self.model.generate(request).images

    def _embedded(self, what: str | Upload) -> Any:
        """A text as it is; a client's picture as its image embedding [1, D]."""
        return what if isinstance(what, str) else self.model.clip.encode_pixels(what.pixels[None])

    @torch.inference_mode()
    def preview(self, denoised: Float[Tensor, "B C H W"]) -> list[Image.Image]:
        """Pictures of what the decoder sees already."""
        decoder = self.model.pipeline.decoder
        assert isinstance(decoder, LatentDecoder), "only such a decoder tells latents of its autoencoder"
        return to_pil(decoder.autoencoder.decode(denoised))

    def png(self, image: Image.Image, order: Order, index: int) -> bytes:
        """The file of the order's picture `index`, with its record inside."""
        return png_bytes(image, order.record(self.record, index))


def plain_png(image: Image.Image) -> bytes:
    """A file without a record."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def last_part(place: str) -> str:
    """Of a folder, its own name; anything else as it is."""
    return Path(place).resolve().name if Path(place).is_dir() else place
