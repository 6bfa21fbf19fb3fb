"""What a request asks to be painted, and which requests can be painted together."""

import base64
import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from syzygy.canvas import recorded
from syzygy.types import Region, Sampling

KEPT_BYTES = 256 * 2**10
"""An uploaded picture of at most so many bytes is kept whole in the record of what was painted after it."""


@dataclass(frozen=True)
class Upload:
    """A client's picture."""

    image: Image.Image
    data: bytes
    """As it came."""

    @property
    def digest(self) -> str:
        """The first sixteen hex digits of its SHA-256."""
        return hashlib.sha256(self.data).hexdigest()[:16]

    @property
    def about(self) -> dict[str, Any]:
        """For a record."""
        kept = {"data": base64.b64encode(self.data).decode("ascii")} if len(self.data) <= KEPT_BYTES else {}
        return {"sha256": self.digest, **kept}


@dataclass(frozen=True)
class Order:
    """One request: a prompt, or a picture to paint anew, painted once a seed."""

    prompt: str | None
    """None paints `source` anew."""
    seeds: tuple[int, ...]
    exact: bool
    """Painted one by one, so that equal seeds give equal bytes whatever else is painted; else in batches, equal to one grey level."""
    how: Sampling
    negative_prompt: str | None = None
    regions: tuple[Region, ...] = ()
    style: Upload | None = None
    source: Upload | None = None
    previews: int = 0
    """Pictures to show before the end."""

    @property
    def shape(self) -> Hashable:
        """Orders of equal shape can share a batch."""
        how = self.how
        sampling = (how.steps, how.guidance_scale, how.style_guidance, how.sampler, how.size, how.painting)
        pictures = tuple(one and one.digest for one in (self.style, self.source))
        masks = tuple(sorted({tuple(region.mask.shape) for region in self.regions}))
        return sampling, tuple(sorted(how.options.items())), self.negative_prompt, masks, pictures

    def record(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """How its pictures are made, but for the seed; `own` is what the server was started with."""
        how = self.how
        said = {
            "steps": how.steps,
            "guidance_scale": how.guidance_scale,
            "sampler": how.sampler,
            "painting": how.painting,
            "style_guidance": how.style_guidance,
            "height": how.size and how.size[0],
            "width": how.size and how.size[1],
        }
        found = {**own, **{name: value for name, value in said.items() if value is not None}}
        found["negative_prompt"] = self.negative_prompt
        if self.prompt is not None:
            found["prompt"] = self.prompt
        if self.regions:
            found["regions"] = [recorded(region) for region in self.regions]
        found |= {name: one.about for name, one in (("style", self.style), ("image", self.source)) if one is not None}
        return found
