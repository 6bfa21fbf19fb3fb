"""What the files of a source are recognised by, so that a changed source is not taken for the old one."""

import hashlib
import os
from pathlib import Path

from syzygy.core.errors import UserError

WHOLE = 16 * 2**20
"""Files up to this size are hashed whole."""
BLOCK, BLOCKS = 64 * 2**10, 64
"""Of larger ones, so many blocks of so many bytes, evenly spread, the first and the last included: 4 MiB, some milliseconds."""


def file_fingerprint(path: Path) -> str:
    """16 hex digits over a file's size and content; of a large file, over a sample of its content.

    Times of change are left out on purpose: a copy of a source is the same source. What is edited in a large file without
    changing its size may stay unseen.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    try:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            if size <= WHOLE:
                digest.update(file.read())
            else:
                for block in range(BLOCKS):
                    file.seek(block * (size - BLOCK) // (BLOCKS - 1))
                    digest.update(file.read(BLOCK))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1
