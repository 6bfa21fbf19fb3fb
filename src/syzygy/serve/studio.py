"""A loaded model as a server uses it: from one thread, orders of equal shape in, PNG files out."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.api import TextToImage
from syzygy.diffusion.latents import LatentDecoder
from syzygy.diffusion.samplers import SAMPLERS
from syzygy.pictures import png_bytes
from syzygy.pipeline import to_pil
from syzygy.serve.orders import Order
from syzygy.types import Progress


@dataclass(frozen=True)
class Studio:
    """A model, and the settings that it was started with."""

    model: TextToImage
    record: Mapping[str, Any]
    """What decides pictures besides orders, in the terms of `syzygy generate`'s records."""

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
        decoder, conditions = model.pipeline.decoder, model.pipeline.conditions
        size = self.own_size
        encoders = decoder.encoders if isinstance(decoder, LatentDecoder) else {}
        defaults = {name: self.record.get(name) for name in ("steps", "guidance_scale", "sampler", "negative_prompt")}
        return {
            "size": size and f"{size[1]}x{size[0]}",
            "defaults": defaults,
            "samplers": sorted(SAMPLERS) if isinstance(decoder, LatentDecoder) else None,
            "conditions": list(conditions),
            "languages": list(model.languages),
            "regions": bool(set(conditions) - {"image"}) and (not model.adapter or bool(encoders)),
            "style": {"image", "text"} <= set(conditions),
            "variations": "image" in decoder.conditions,
            "partial_images": self.previews,
        }

    @torch.inference_mode()
    def paint(
        self, orders: Sequence[Order], seeds: Sequence[int], on_step: Callable[[Progress], None]
    ) -> list[Image.Image]:
        """A picture for each of these orders, which are of one shape and may repeat, from its seed.

        Raises:
            UserError: what the model refuses; `on_step`'s own errors end the sampling.
        """
        first, model = orders[0], self.model
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if first.source is not None:
            embedding = model.blender.embedded(first.source.image)
            model.pipeline.noise(
                generators
            )  # each starts from the noise that a prompt's picture of its seed starts from
            return model.pipeline.paint(
                embedding.expand(len(orders), -1),
                generators,
                negative_prompt=first.negative_prompt,
                how=first.how,
                callback=on_step,
            ).images
        return model.pipeline(
            [order.prompt or "" for order in orders],
            negative_prompt=first.negative_prompt,
            how=first.how,
            generator=generators,
            conditions=self.record.get("conditions"),
            regions=[order.regions for order in orders] if first.regions else None,
            style=None if first.style is None else model.blender.embedded(first.style.image),
            callback=on_step,
        ).images

    @torch.inference_mode()
    def preview(self, denoised: Float[Tensor, "B C H W"]) -> list[Image.Image]:
        """Pictures of what the decoder sees already."""
        decoder = self.model.pipeline.decoder
        assert isinstance(decoder, LatentDecoder), "only such a decoder tells latents of its autoencoder"
        return to_pil(decoder.autoencoder.decode(denoised))

    def png(self, image: Image.Image, order: Order, seed: int) -> bytes:
        """The file, with its record inside."""
        return png_bytes(image, {**order.record(self.record), "seed": seed})


def plain_png(image: Image.Image) -> bytes:
    """A file without a record."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
