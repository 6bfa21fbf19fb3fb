"""Ready-made image embeddings in clip-retrieval's layout: `img_emb/img_emb_0.npy` with `metadata/metadata_0.parquet`.

Its `text_emb` is not read: token states are needed, so captions go through the encoder, which gives pooled embeddings too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from syzygy.core.errors import UserError
from syzygy.core.wording import shortlist
from syzygy.data.pair import WHOLE_FILE, Bad, Sample, file_fingerprint
from syzygy.data.source_parquet import Columns, choose_columns, pair_in, rows

IMAGES, METADATA = "img_emb", "metadata"
SHOWN = 3
"""Names of files that an error lists."""
PROBED = 1000
"""Rows whose norms are computed."""
UNIT = 0.01
"""How close to 1 the norms of normalised embeddings are, also in fp16."""


@dataclass(frozen=True)
class EmbeddingShard:
    """The embeddings of one file, with the rows of their metadata."""

    images: Path
    metadata: Path
    name: str
    size: int
    """Bytes of both files."""
    fingerprint: str
    """Of both files."""
    columns: Columns
    samples: int | None = None
    """None for a damaged file."""
    scale: float = 1.0
    """The factor that brings the embeddings to raw scale."""

    def read(self) -> Iterator[Sample]:
        """Stream both files. Raises `UserError` if one is gone, or they have different numbers of rows."""
        if not self.images.is_file():
            raise UserError(f"{self.images} is gone.")
        try:
            images = _load(self.images)
        except UserError as error:
            yield Bad(WHOLE_FILE, str(error))
            return
        count, damaged = 0, False
        for number, row in rows(self.metadata, self.columns):
            if isinstance(row, str):
                damaged = True
                yield Bad(WHOLE_FILE, row)
                continue
            count = number + 1
            if count > len(images):
                break
            embedding = images[number].astype(np.float32) * np.float32(self.scale)
            yield pair_in(f"{number:08}", row, self.columns, embedding=embedding)
        if count != len(images) and not damaged:
            raise UserError(
                f"{self.images} has {len(images):,} rows and {self.metadata} {'more' if count > len(images) else f'{count:,}'}: "
                "they do not belong together. Take both from one run of clip-retrieval."
            )


def _load(path: Path) -> Float[np.ndarray, "N D"]:
    """The array in a .npy file, mapped into memory. Raises `UserError` if it is damaged, or no matrix of floating-point numbers."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path.name} cannot be read as an array of numbers: {str(error).splitlines()[0]}.") from None
    if found.ndim != 2 or found.dtype.kind != "f":
        raise UserError(f"{path.name} holds {found.dtype} of shape {found.shape}, not a matrix of embeddings.")
    return found


def embedding_shards(
    folder: Path, captions: tuple[str, ...], keep: tuple[str, ...], image_norm: float | None
) -> list[EmbeddingShard]:
    """All pairs of files in clip-retrieval's folder, by number.

    Args:
        image_norm: mean norm of the encoder's raw image embeddings, if those in the folder have unit length.

    Raises:
        UserError: a file has no partner; embeddings have unit length and `image_norm` is missing, or the other way round.
    """
    files = sorted((folder / IMAGES).glob(f"{IMAGES}_*.npy"), key=_number)
    partners = [folder / METADATA / f"{METADATA}_{path.stem.removeprefix(f'{IMAGES}_')}.parquet" for path in files]
    missing = [path for path in partners if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing: the captions of {IMAGES} are there. Copy the folder whole.")
    if not files:
        raise UserError(f"{folder / IMAGES} holds no {IMAGES}_0.npy: it is not a folder of clip-retrieval.")
    columns = choose_columns(partners[0], None, captions, keep, pictures=False)
    _check_norms(files, image_norm)
    return [
        EmbeddingShard(
            images,
            metadata,
            images.stem,
            images.stat().st_size + metadata.stat().st_size,
            f"{file_fingerprint(images)}-{file_fingerprint(metadata)}",
            columns,
            _rows(images),
            image_norm or 1.0,
        )
        for images, metadata in zip(files, partners, strict=True)
    ]


def _number(path: Path) -> tuple[int, str]:
    digits = path.stem.removeprefix(f"{IMAGES}_")
    return (int(digits) if digits.isdecimal() else -1), digits


def _check_norms(files: Sequence[Path], image_norm: float | None) -> None:
    """Check that all files have unit length and `image_norm` is given, or all are raw and it is not."""
    norms = {path: norm for path in files if (norm := _typical_norm(path)) is not None}
    unit = [path.name for path, norm in norms.items() if abs(norm - 1) < UNIT]
    raw = [path.name for path, norm in norms.items() if abs(norm - 1) >= UNIT]
    if not norms:
        return  # reading the files says what is wrong with them
    folder = files[0].parent
    if unit and raw:
        raise UserError(
            f"{folder} mixes embeddings of unit length ({shortlist(unit, SHOWN)}) with raw ones ({shortlist(raw, SHOWN)}). "
            "Put them into two folders, embed each (unit length with --image-norm), then `syzygy store merge`."
        )
    if unit and image_norm is None:
        raise UserError(
            f"the embeddings in {folder} have unit length, and priors learn raw ones: give --image-norm, the mean norm of "
            "this CLIP's raw image embeddings. To measure it, embed a few hundred pictures and run `syzygy store info`."
        )
    if raw and image_norm is not None:
        raise UserError(
            f"--image-norm is for embeddings of unit length; those in {folder} have a norm of {max(norms.values()):.3g} and are "
            "used as they are. Omit it."
        )


def _rows(path: Path) -> int | None:
    try:
        return len(_load(path))
    except UserError:
        return None


def _typical_norm(path: Path) -> float | None:
    """The median norm of the first thousand rows, without rows that are zero or not finite. None if there is none."""
    try:
        sample = np.asarray(_load(path)[:PROBED], np.float32)
    except UserError:
        return None
    norms = np.linalg.norm(sample, axis=1)
    norms = norms[np.isfinite(norms) & (norms > 0)]
    return float(np.median(norms)) if len(norms) else None
