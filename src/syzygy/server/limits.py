"""Limits of a single request, of the queue and of connections."""

from pydantic import Field

from syzygy.core.config import Config


class Limits(Config):
    """Most are options of `syzygy serve`. A request beyond a limit is refused before anything is computed."""

    prompt: int = Field(default=2000, ge=1)
    """Characters of a prompt or negative prompt."""
    number: int = Field(default=10, ge=1)
    """Images per request."""
    steps: int = Field(default=100, ge=1)
    """Sampling steps."""
    pixels: int = Field(default=2**20, ge=1)
    """Pixels of a generated image."""
    regions: int = Field(default=16, ge=1)
    """Regions per request."""
    sources: int = Field(default=8, ge=1)
    """Texts and pictures of a mixture."""
    queue: int = Field(default=32, ge=1)
    """Waiting requests; further ones get status 429 and may try again later."""
    upload: int = Field(default=8 * 2**20, ge=1024)
    """Bytes of a request's body."""
    upload_pixels: int = Field(default=2**24, ge=1)
    """Pixels of all pictures and masks of a request together, read from their headers before any of them is decoded."""
    upload_seconds: float = Field(default=30.0, gt=0)
    """Seconds that a body may take to arrive."""
    head_seconds: float = Field(default=10.0, gt=0)
    """Seconds that the line and the headers of a request may take to arrive."""
    connections: int = Field(default=512, ge=1)
    """Open connections. Above, the oldest one whose request has not arrived is closed."""

    @property
    def held(self) -> int:
        """Bytes of the large bodies that are received or wait to be decoded at a time."""
        return 8 * self.upload

    @property
    def stored(self) -> int:
        """Bytes of the images that are kept for their URLs: those of at least four requests, each with as many and as large images as
        are allowed, which compression did not make smaller."""
        return 4 * self.number * (4 * self.pixels + 2**21)

    @property
    def values(self) -> int:
        """Values in a request's JSON, and in the record of an uploaded picture: several times as many as the largest request has."""
        return 256 + 8 * (self.regions + self.sources)
