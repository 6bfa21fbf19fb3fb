"""A benchmark's prompts painted for its official judge, by one process or several, in one sitting or more.

Work is cut into batches once, by the running number of the pictures. Processes take whole batches, and a batch that lacks a
picture is painted whole again: what a picture is painted beside never changes, so neither processes nor interruptions change a byte.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from syzygy.core import artifacts, randomness
from syzygy.core.errors import UserError
from syzygy.generation.image_files import save_png
from syzygy.lab.benchmark_layouts import Layout, Place, Prompts

SETTINGS_FILE = "export-images.json"
"""Beside what the judges read: neither of them looks at files there."""
UNFINISHED = ".writing-"
"""Begins the names of unfinished files. They lie beside that file: in `samples/` a judge would take them for pictures."""
PAINTERS = ("model", "prior", "versions")
"""Settings that are told but not compared: fingerprints tell better what paints."""

Paint = Callable[[Sequence[str], Sequence[torch.Generator], Callable[[], None]], Sequence[Image.Image]]
"""Prompts, a generator each, what to call after each sampling step → a picture each."""


class Share(NamedTuple):
    """Which of the processes this one is."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its rank among those of this machine."""


class Picture(NamedTuple):
    """A picture to export."""

    prompt: str
    place: Place
    seed: int
    """Its own: `syzygy generate --seed` with it paints the same."""
    origin: Mapping[str, int]
    """What the seed was made from."""


@dataclass(frozen=True)
class Export:
    """What shall be in a folder."""

    folder: Path
    layout: Layout
    prompts: Prompts
    images_per_prompt: int
    seed: int
    painting: Mapping[str, Any]
    """Settings and fingerprints of what paints, as JSON has them."""

    def settings(self) -> dict[str, Any]:
        """All that decides what is in the folder."""
        digest = hashlib.sha256("\n".join(entry.source for entry in self.prompts.entries).encode()).hexdigest()
        own = {"layout": self.layout.name, "images_per_prompt": self.images_per_prompt, "seed": self.seed}
        number = len(self.prompts.entries)
        return json.loads(json.dumps({**own, "prompts": {"number": number, "sha256": digest}, **self.painting}))

    def pictures(self) -> list[Picture]:
        """All pictures; those of one prompt together."""
        found, images = [], self.images_per_prompt
        for i, entry in enumerate(self.prompts.entries):
            for j in range(images):
                origin = {"seed": self.seed, "prompt": i, "image": j}
                seed = randomness.seed_of(self.seed, "export-images", i, j)
                found.append(Picture(entry.text, self.layout.place(entry, i, j, images), seed, origin))
        return found


@dataclass(frozen=True)
class Work:
    """What one process has to do."""

    pictures: Sequence[Picture]
    """All of the export."""
    batches: Sequence[range]
    """Those that this process paints."""
    wanted: frozenset[int]
    """Pictures among these that are not there yet."""
    kept: int
    """Pictures of this process that are."""

    @property
    def to_paint(self) -> int:
        return sum(map(len, self.batches))


def share_of_environment() -> Share:
    """What `torchrun` says (RANK, WORLD_SIZE, LOCAL_RANK); one process without it.

    Raises:
        UserError: these are no rank among processes.
    """
    told = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if told["WORLD_SIZE"] in (None, "1"):
        return Share()
    try:
        rank, size = int(told["RANK"] or ""), int(told["WORLD_SIZE"] or "")
        share = Share(rank, size, int(told["LOCAL_RANK"] or rank))
    except ValueError:
        share = Share(-1)
    if not 0 <= share.rank < share.size or share.local < 0:
        said = ", ".join(f"{name}={value}" for name, value in told.items() if value is not None)
        raise UserError(f"{said} names no process of several: torchrun sets them; unset them to run one process.")
    return share


def planned(export: Export, share: Share, batch_size: int) -> Work:
    """What this process has to do: its batches that lack a picture.

    Raises:
        UserError: the folder was begun with other settings, or holds what is not of an export.
    """
    if not _begun(export) and export.layout.occupied(export.folder) and not _begun(export):  # a rank may begin between
        raise UserError(
            f"{export.folder} holds files that the judge would read, but no {SETTINGS_FILE}: choose another folder."
        )
    pictures = export.pictures()
    starts = range(0, len(pictures), batch_size)
    batches = [range(start, min(start + batch_size, len(pictures))) for start in starts][share.rank :: share.size]
    own = [i for batch in batches for i in batch]
    wanted = frozenset(i for i in own if not _whole(export.folder / pictures[i].place.picture))
    return Work(pictures, [batch for batch in batches if wanted & {*batch}], wanted, len(own) - len(wanted))


def export_images(export: Export, work: Work, share: Share, paint: Paint, advance: Callable[[int], None]) -> None:
    """Paint and write what is wanted. `advance` is told after each sampling step of how many pictures.

    Raises:
        UserError: what `paint` refuses, another setting of the folder, or no place to write.
    """
    for batch in work.batches:
        chosen = [work.pictures[i] for i in batch]
        generators = [torch.Generator().manual_seed(picture.seed) for picture in chosen]
        images = paint([picture.prompt for picture in chosen], generators, partial(advance, len(batch)))
        _begin(export, share)  # only now: settings that cannot paint must not stay in the folder
        for i, picture, image in zip(batch, chosen, images, strict=True):
            if i in work.wanted:
                _save(export, share, picture, image)


def missing(export: Export, work: Work) -> int:
    """Pictures of all processes that are not there."""
    return sum(not (export.folder / picture.place.picture).is_file() for picture in work.pictures)


def tidy(export: Export) -> None:
    """Remove unfinished files, which killed processes left. Only for when all pictures are there."""
    for path in export.folder.glob(f"*{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def _save(export: Export, share: Share, picture: Picture, image: Image.Image) -> None:
    path = export.folder / picture.place.picture
    with artifacts.writing("a picture", path):
        path.parent.mkdir(parents=True, exist_ok=True)
    for name, text in picture.place.beside.items():
        if not (export.folder / name).is_file():
            artifacts.write_bytes(export.folder / name, text.encode())
    record = {**export.painting, "prompt": picture.prompt, "seed": picture.seed, "origin": dict(picture.origin)}
    unfinished = _unfinished(export, share)
    save_png(image, unfinished, record)
    with artifacts.writing("a picture", path):
        os.replace(unfinished, path)


def _unfinished(export: Export, share: Share) -> Path:
    return export.folder / f"{UNFINISHED}{share.rank}-{os.getpid()}"


def _whole(path: Path) -> bool:
    """Whether a PNG is there with every byte: the checksums of its parts are right up to its end."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except Exception:  # decoders fail in many ways on broken files
        return False
    return True


def _begun(export: Export) -> bool:
    """Whether the folder was begun, with these settings.

    Raises:
        UserError: it was begun with others; each difference is named.
    """
    path = export.folder / SETTINGS_FILE
    if not path.is_file():
        return False
    there = artifacts.read_json(path)
    if differences := list(_differences(there, export.settings())):
        raise UserError(
            f"{export.folder} was begun with other settings: {'; '.join(differences)}. "
            "Give the same ones, or another folder."
        )
    return True


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        if not path and name in PAINTERS:
            continue
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{name}.")
        elif old != new:
            yield f"{path}{name} was {json.dumps(old)}, now {json.dumps(new)}"


def _begin(export: Export, share: Share) -> None:
    """Write the settings, once: the first of several processes does, the others compare."""
    if _begun(export):
        return
    path, unfinished = export.folder / SETTINGS_FILE, _unfinished(export, share)
    artifacts.write_json(unfinished, export.settings())
    with artifacts.writing("the settings", path):
        try:
            os.link(unfinished, path)  # unlike a rename it fails where another process was faster
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    _begun(export)
