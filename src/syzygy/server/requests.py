"""A `GenerationRequest` as HTTP has it: with seeds, uploaded pictures and the record that goes into each image."""

import base64
import hashlib
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from syzygy.core.contracts import Region
from syzygy.generation.image_files import png_bytes
from syzygy.generation.request import GenerationRequest
from syzygy.regions.canvas import recorded

KEPT_BYTES = 256 * 2**10
"""Uploaded pictures of at most so many bytes together are kept whole in the records of the images made from them."""


@dataclass(frozen=True, eq=False)
class Upload:
    """A client's picture. Only what is needed of it is kept, because many requests may wait."""

    pixels: Float[Tensor, "3 S S"] | Image.Image
    """Prepared for the image encoder; or a picture of the images' size, which the decoder reads pixel by pixel."""
    digest: str
    """The first sixteen hex digits of its file's SHA-256."""
    data: bytes | None
    """The file, unless it is too large to be kept."""

    @classmethod
    def of(cls, pixels: Float[Tensor, "3 S S"] | Image.Image, data: bytes) -> "Upload":
        """Keep the file unless it is too large."""
        return cls(pixels, hashlib.sha256(data).hexdigest()[:16], data if len(data) <= KEPT_BYTES else None)


LONGEST_SIDE = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
"""Pixels of an image's longer side that each file format can hold."""


@dataclass(frozen=True)
class FileFormat:
    """The format of the images' files."""

    name: Literal["png", "jpeg", "webp"] = "png"
    compression: int = 100
    """From 0 (smallest file) to 100 (best image). A PNG is lossless, so that it has no effect there."""

    def encoded(self, image: Image.Image, record: Mapping[str, Any] | None = None) -> bytes:
        """The file. Only a PNG holds the record."""
        if self.name == "png" and record is not None:
            return png_bytes(image, record)
        data = io.BytesIO()
        lossy = {} if self.name == "png" else {"quality": max(self.compression, 1)}
        image.save(data, self.name, **lossy)
        return data.getvalue()


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """What to generate from one prompt or one mixture, once for each seed."""

    generation: GenerationRequest
    """In place of a picture's embedding it has the `pixels` of an upload, and for a style those of one or several. The engine embeds them
    when the request's turn comes."""
    seeds: tuple[int, ...]
    exact: bool
    """Generate one image at a time, so that equal seeds give equal bytes. Otherwise batches change an image by up to one grey level."""
    uploads: tuple[Upload, ...] = ()
    """The pictures of `generation`, in order."""
    previews: int = 0
    """Unfinished images to show of each image."""
    notes: tuple[str, ...] = ()
    """How the request was understood where that may surprise: for `warnings` of the answer."""
    format: FileFormat = FileFormat()

    @property
    def prompt(self) -> str | None:
        """None for a mixture."""
        return self.generation.prompts[0] if self.generation.prompts else None

    @property
    def regions(self) -> Sequence[Region]:
        """Of the prompt."""
        return self.generation.regions[0] if self.generation.regions else ()

    @property
    def texts(self) -> list[str]:
        """The prompt, or the texts of the mixture; and the words for the style's content."""
        mixed = [what for mixture in self.generation.mixtures for what, _ in mixture if isinstance(what, str)]
        content = self.generation.style_content
        return [*self.generation.prompts, *mixed, *([content] if isinstance(content, str) else [])]

    @cached_property
    def shape(self) -> Hashable:
        """Requests of equal shape can share a batch."""
        asked, own = self.generation, self.generation.sampling
        sampling = (
            own.steps,
            own.guidance_scale,
            own.style_guidance,
            own.sampler,
            own.size,
            own.region_strength,
            own.strength,
        )
        masks = tuple(sorted({tuple(region.mask.shape) for region in self.regions}))
        sources = [(isinstance(what, str) and what, weight) for mixture in asked.mixtures for what, weight in mixture]
        digests = tuple(one.digest for one in self.uploads)
        options = tuple(sorted(own.options.items()))
        words = tuple(subject.word for subject in asked.subjects), asked.layout is None
        guided = asked.image is None, asked.mask is None, asked.depth is None
        texts = asked.negative_prompt, asked.style_content
        return sampling, options, texts, masks, tuple(sources), asked.style is None, words, guided, digests

    @cached_property
    def kept(self) -> Sequence[Upload]:
        """The uploads that a record holds whole: the first ones, up to `KEPT_BYTES`."""
        found, room = [], KEPT_BYTES
        for one in self.uploads:
            if one.data is not None and len(one.data) <= room:
                found.append(one)
                room -= len(one.data)
        return found

    @cached_property
    def region_records(self) -> Sequence[Mapping[str, Any]]:
        """Its regions as a record holds them."""
        return [recorded(region) for region in self.regions]

    def record(self, own: Mapping[str, Any], index: int) -> dict[str, Any]:
        """How image `index` is made; `own` are the settings that the server was started with."""
        sampling = self.generation.sampling
        said = {
            "steps": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
            "sampler": sampling.sampler,
            "region_strength": sampling.region_strength,
            "style_guidance": sampling.style_guidance,
            "strength": sampling.strength,
            "height": sampling.size and sampling.size[0],
            "width": sampling.size and sampling.size[1],
            **sampling.options,
        }
        found = {**own, **{name: value for name, value in said.items() if value is not None}}
        found |= {"negative_prompt": self.generation.negative_prompt, **self._subject}
        if self.generation.style_content is not None:
            found |= {"style_content": self.generation.style_content}
        return found | {"seed": self.seeds[index], "number": len(self.seeds), "index": index}

    @cached_property
    def _subject(self) -> Mapping[str, Any]:
        """The prompt, or the sources, for a record."""
        if self.prompt is None:
            pictures = iter(self.uploads)
            (mixture,) = self.generation.mixtures
            parts = [{"text": what} if isinstance(what, str) else self._recorded(next(pictures)) for what, _ in mixture]
            if len(self.uploads) == len(parts) == 1:
                return {"variation_of": parts[0]}
            return {"sources": [{**part, "weight": weight} for part, (_, weight) in zip(parts, mixture, strict=True)]}
        regions = {"regions": self.region_records} if self.regions else {}
        pictures = iter(self.uploads)
        subjects = [{"word": one.word, **self._recorded(next(pictures))} for one in self.generation.subjects]
        found = {"prompt": self.prompt, **regions} | ({"subjects": subjects} if subjects else {})
        if self.generation.layout is not None:
            found["layout"] = self._recorded(next(pictures))
        for name in ("image", "mask", "depth"):
            if getattr(self.generation, name) is not None:
                found[name] = self._recorded(next(pictures))
        styles = [self._recorded(one) for one in pictures]
        return found | ({"style": styles[0] if len(styles) == 1 else styles} if styles else {})

    def _recorded(self, upload: Upload) -> dict[str, str]:
        data = upload.data if upload in self.kept else None
        return {"sha256": upload.digest} | ({} if data is None else {"data": base64.b64encode(data).decode("ascii")})
