"""Images for which an answer has a URL: in memory, for an hour, under names that nobody can guess."""

import secrets
import time
from typing import NamedTuple

from starlette.responses import Response

from syzygy.server.page_assets import HEADERS
from syzygy.server.problems import Problem

SECONDS = 3600.0
"""How long an image is kept."""


class StoredImage(NamedTuple):
    """A file."""

    data: bytes
    kind: str
    """Its media type."""
    end: float
    """When it is dropped, on the clock of `time.monotonic`."""


class StoredImages:
    """The newest images, up to a number of bytes. It belongs to the event loop, so it needs no lock."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: bytes of all images; when there are more, the oldest ones are dropped. A single image is kept in any case.
        """
        self.most = most
        self._images: dict[str, StoredImage] = {}
        """The oldest first."""
        self.held = 0
        """Bytes of all images."""

    def put(self, data: bytes, kind: str) -> str:
        """The image's name: 43 letters, digits, hyphens and underscores, from 256 random bits."""
        name = secrets.token_urlsafe(32)
        self._images[name] = StoredImage(data, kind, time.monotonic() + SECONDS)
        self.held += len(data)
        self._drop_old()
        return name

    def response(self, name: str) -> Response:
        """The image as an answer.

        Raises:
            Problem: 404 if there is none of this name (any more).
        """
        self._drop_old()
        found = self._images.get(name)
        if found is None:
            text = (
                "This image does not exist. Images are kept for an hour, or for a shorter time when many are generated."
            )
            raise Problem(404, text, code="image_not_found")
        return Response(found.data, media_type=found.kind, headers={**HEADERS, "Cache-Control": "private, no-store"})

    def _drop_old(self) -> None:
        """Drop images whose time is over, and the oldest ones where all have too many bytes."""
        while self._images:
            name, oldest = next(iter(self._images.items()))
            crowded = self.held > self.most and len(self._images) > 1
            if not crowded and oldest.end > time.monotonic():
                return
            self.held -= len(self._images.pop(name).data)
