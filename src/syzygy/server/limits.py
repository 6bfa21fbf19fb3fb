"""Limits of a single request and of the queue."""

from pydantic import Field

from syzygy.core.config import Config


class Limits(Config):
    """Most are options of `syzygy serve`. A request beyond a limit is refused before anything is computed."""

    prompt: int = Field(default=2000, ge=1)
    """Characters of a prompt or negative prompt."""
    number: int = Field(default=8, ge=1)
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
    """Pixels of an uploaded picture or mask, read from its header before it is decoded."""
    upload_seconds: float = Field(default=30.0, gt=0)
    """Seconds that a body may take to arrive."""
