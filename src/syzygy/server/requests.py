"""What a request asks to be painted, and which requests can be painted together."""

import base64
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Region, Sampling
from syzygy.regions.canvas import recorded

KEPT_BYTES = 256 * 2**10
"""Uploaded pictures of at most so many bytes together are kept whole in the record of what was painted after them."""


@dataclass(frozen=True, eq=False)
class Upload:
    """A client's picture, as little of it as is needed: many may wait."""

    pixels: Float[Tensor, "3 S S"]
    """Prepared for the image encoder."""
    digest: str
    """The first sixteen hex digits of its file's SHA-256."""
    data: bytes | None
    """The file, unless it is too large to be kept."""

    @classmethod
    def of(cls, pixels: Float[Tensor, "3 S S"], data: bytes) -> "Upload":
        """The picture of this file."""
        return cls(pixels, hashlib.sha256(data).hexdigest()[:16], data if len(data) <= KEPT_BYTES else None)


@dataclass(frozen=True, eq=False)
class Source:
    """A part of a mixture: a text, or a picture."""

    what: str | Upload
    weight: float
    """From 0 to 1; only proportions count."""


@dataclass(frozen=True, eq=False)
class Order:
    """One request: a prompt, or a mixture, painted once a seed."""

    prompt: str | None
    """None paints `sources`."""
    seeds: tuple[int, ...]
    exact: bool
    """Painted one by one, so that equal seeds give equal bytes whatever else is painted; else in batches, equal to one grey level."""
    sampling: Sampling
    negative_prompt: str | None = None
    regions: tuple[Region, ...] = ()
    style: Upload | None = None
    sources: tuple[Source, ...] = ()
    """A single picture is painted anew."""
    previews: int = 0
    """Pictures to show before the end."""
    notes: tuple[str, ...] = ()
    """What was understood of the request and might surprise: for `warnings` of the answer."""

    @cached_property
    def shape(self) -> Hashable:
        """Orders of equal shape can share a batch."""
        own = self.sampling
        sampling = (own.steps, own.guidance_scale, own.style_guidance, own.sampler, own.size, own.region_strength)
        masks = tuple(sorted({tuple(region.mask.shape) for region in self.regions}))
        sources = tuple((isinstance(one.what, str), _name(one.what), one.weight) for one in self.sources)
        style = None if self.style is None else self.style.digest
        return sampling, tuple(sorted(own.options.items())), self.negative_prompt, masks, style, sources

    @property
    def texts(self) -> list[str]:
        """What it says in words."""
        return [
            *([] if self.prompt is None else [self.prompt]),
            *(o.what for o in self.sources if isinstance(o.what, str)),
        ]

    @property
    def uploads(self) -> list[Upload]:
        """Its pictures, in the order in which a record keeps them."""
        pictures = [one.what for one in self.sources if isinstance(one.what, Upload)]
        return [*([] if self.style is None else [self.style]), *pictures]

    @cached_property
    def kept(self) -> Sequence[Upload]:
        """Those that its record holds whole: the first ones, as far as `KEPT_BYTES` reach."""
        found, room = [], KEPT_BYTES
        for one in self.uploads:
            if one.data is not None and len(one.data) <= room:
                found.append(one)
                room -= len(one.data)
        return found

    @cached_property
    def painted(self) -> Sequence[Mapping[str, Any]]:
        """Its regions as a record holds them."""
        return [recorded(region) for region in self.regions]

    def record(self, own: Mapping[str, Any], index: int) -> dict[str, Any]:
        """How picture `index` is made; `own` is what the server was started with."""
        sampling = self.sampling
        said = {
            "steps": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
            "sampler": sampling.sampler,
            "region_strength": sampling.region_strength,
            "style_guidance": sampling.style_guidance,
            "height": sampling.size and sampling.size[0],
            "width": sampling.size and sampling.size[1],
        }
        found = {**own, **{name: value for name, value in said.items() if value is not None}}
        found |= {"negative_prompt": self.negative_prompt, **self._subject}
        return found | {"seed": self.seeds[index], "number": len(self.seeds), "index": index}

    @cached_property
    def _subject(self) -> Mapping[str, Any]:
        """What its pictures are of, for a record."""
        if self.prompt is None:
            parts = [{"text": o.what} if isinstance(o.what, str) else self._told(o.what) for o in self.sources]
            if len(self.uploads) == len(parts) == 1:
                return {"variation_of": parts[0]}
            return {"sources": [{**part, "weight": o.weight} for part, o in zip(parts, self.sources, strict=True)]}
        regions = {"regions": self.painted} if self.regions else {}
        style = {} if self.style is None else {"style": self._told(self.style)}
        return {"prompt": self.prompt, **regions, **style}

    def _told(self, upload: Upload) -> dict[str, str]:
        data = upload.data if upload in self.kept else None
        return {"sha256": upload.digest} | ({} if data is None else {"data": base64.b64encode(data).decode("ascii")})


def _name(what: str | Upload) -> str:
    return what if isinstance(what, str) else what.digest
