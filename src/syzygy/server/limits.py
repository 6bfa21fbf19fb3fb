"""What one request, and all of them together, may ask of a server."""

from pydantic import Field

from syzygy.core.config import Config


class Limits(Config):
    """Each is a flag of `syzygy serve`; a request beyond one is refused before anything is computed."""

    prompt: int = Field(default=2000, ge=1)
    """Characters of a prompt, and of a negative one."""
    number: int = Field(default=8, ge=1)
    """Pictures a request."""
    steps: int = Field(default=100, ge=1)
    """Sampling steps."""
    pixels: int = Field(default=2**20, ge=1)
    """Pixels of a picture to paint."""
    regions: int = Field(default=16, ge=1)
    """ImageReady phrases a request."""
    sources: int = Field(default=8, ge=1)
    """Texts and pictures of a mixture."""
    queue: int = Field(default=32, ge=1)
    """Requests that wait; the next one is told to come again (429)."""
    upload: int = Field(default=8 * 2**20, ge=1024)
    """Bytes of a request's body."""
    upload_pixels: int = Field(default=2**24, ge=1)
    """Pixels of an uploaded picture or mask, told by its header before it is decoded."""
    upload_seconds: float = Field(default=30.0, gt=0)
    """How long a body may take to arrive."""
