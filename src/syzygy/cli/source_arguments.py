"""Pictures and texts as arguments of a command: they are read, recorded, and shown on a contact sheet."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syzygy.core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from syzygy.cli.image_folder import Cell
    from syzygy.generation.subjects import Subject

NUMERIC = re.compile(r"[-+.,\d%]*\d[-+.,\d%]*|[-+]?(nan|inf(inity)?)", re.IGNORECASE)
"""What counts as a weight after the last @."""


@dataclass(frozen=True)
class Given:
    """A source as it was given."""

    text: str | None
    """None for a picture."""
    file: Path | None
    """None for a text."""
    image: "Image.Image | None"
    weight: float | None = None
    """None where none was given."""

    @property
    def source(self) -> "str | Image.Image":
        """What the model reads."""
        found = self.text if self.image is None else self.image
        assert found is not None
        return found

    @property
    def name(self) -> str:
        """A name for files made from it."""
        return (self.text or "") if self.file is None else self.file.stem

    @property
    def about(self) -> dict[str, Any]:
        """Its entry in a record: the text; or the file and the first sixteen hex digits of its SHA-256."""
        if self.file is None:
            return {"text": self.text}
        import hashlib

        with self.file.open("rb") as file:
            return {"picture": str(self.file), "sha256": hashlib.file_digest(file, "sha256").hexdigest()[:16]}

    def cell(self, share: str = "") -> "Cell":
        """Its place on a contact sheet."""
        from syzygy.generation.image_files import card

        if self.image is None:
            return card(f"“{self.text}”"), share or "text"
        assert self.file is not None
        return self.image, " · ".join(filter(None, [self.file.name, share]))


def picture(file: Path) -> Given:
    """Open a picture file.

    Raises:
        UserError: it cannot be read as a picture.
    """
    from syzygy.generation.image_files import open_picture

    return Given(None, file, open_picture(file))


def source(argument: str) -> Given:
    """Read an argument `TEXT`, `FILE`, `TEXT@WEIGHT` or `FILE@WEIGHT`.

    `mixing.read_source` tells files from texts. If the whole argument names no file, what follows its last @ is a weight if it looks
    like a number, or if what precedes the @ names a file.

    Raises:
        UserError: a picture that is missing or cannot be read, an empty text, a weight that is no number.
    """
    from syzygy.generation.mixing import check_there, read_source
    from syzygy.generation.request import check_texts

    read, weight = read_source(argument), None
    what, at, tail = argument.rpartition("@")
    if at and isinstance(read, str) and (NUMERIC.fullmatch(tail) or isinstance(read_source(what), Path)):
        read = read_source(what)
        weight = _number(tail, read, argument)
    if isinstance(read, Path):
        return Given(None, read, picture(check_there(read)).image, weight)
    check_texts([read])
    return Given(read, None, None, weight)


def _number(text: str, read: str | Path, argument: str) -> float:
    try:
        return float(text)
    except ValueError:
        other = "" if isinstance(read, Path) else f" If it belongs to the text, add the weight after it: {argument}@1"
        raise UserError(f"{text!r} after {str(read)!r} is not a weight; allowed: 0 to 1, such as 0.6.{other}") from None


def weights(given: Sequence[Given]) -> list[float]:
    """Their weights; equal ones where none was given.

    Raises:
        UserError: some have one and others not; or as `mixing.shares`.
    """
    from syzygy.generation.mixing import shares

    without = [one for one in given if one.weight is None]
    if without and len(without) < len(given):
        raise UserError(
            f"{without[0].text or str(without[0].file)!r} has no weight, others have: give every source one, or none for equal parts."
        )
    found = [1.0 if one.weight is None else one.weight for one in given]
    shares(found)
    return found


@dataclass(frozen=True)
class GivenSubject:
    """A subject as it was given."""

    subject: "Subject"
    """With its picture on white."""
    file: Given

    @property
    def about(self) -> dict[str, Any]:
        """Its entry in a record: word, file and hash."""
        return {"word": self.subject.word, **self.file.about}

    def cell(self) -> "Cell":
        """Its place on a contact sheet."""
        return self.file.cell(self.subject.word)


def subject_pictures(arguments: Sequence[str], prompts: Sequence[str]) -> list[GivenSubject]:
    """Read arguments `WORD=PICTURE`, before a model is loaded.

    Raises:
        UserError: no "=", a picture that cannot be read or is white, a word twice, or one that a prompt does not contain.
    """
    if not arguments:
        return []
    from PIL import Image

    from syzygy.generation.subjects import Subject, check_subjects, check_words

    found = []
    for argument in arguments:
        word, equals, name = argument.partition("=")
        if not (equals and word.strip() and name):
            raise UserError(f"--subject {argument!r} must be WORD=PICTURE, such as --subject dog=rex.png.")
        image = Subject(word.strip(), Path(name)).cut_out()
        assert isinstance(image, Image.Image), "that of a file"
        found.append(GivenSubject(Subject(word.strip(), image), Given(None, Path(name), image)))
    given = [one.subject for one in found]
    check_subjects(given)
    check_words(given, prompts)
    return found


def pixel_pictures(*, image: Path | None, mask: Path | None, depth: Path | None) -> dict[str, Given]:
    """The pictures that a decoder reads pixel by pixel, by name. A mask is black where it is transparent.

    Raises:
        UserError: one cannot be read as a picture.
    """
    found = {name: picture(file) for name, file in (("image", image), ("depth", depth)) if file is not None}
    if mask is None:
        return found
    from syzygy.core.image_reading import as_mask, open_file
    from syzygy.generation.pipeline import to_pil

    grey = as_mask(open_file(mask))
    return found | {"mask": Given(None, mask, to_pil(grey.expand(1, 3, -1, -1))[0])}


def layout_picture(file: Path) -> Given:
    """The edges of a layout picture.

    Raises:
        UserError: it cannot be read, or has no edges; OpenCV is missing.
    """
    from syzygy.generation.layout_edges import edge_map

    return Given(None, file, edge_map(file))
