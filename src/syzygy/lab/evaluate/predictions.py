"""What was read in the pictures of an evaluation: painted candidate by candidate, kept on disk as it comes, compared prompt by prompt."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field

from syzygy.core import artifacts
from syzygy.core.config import Config
from syzygy.core.errors import UserError
from syzygy.generation.image_files import to_tensor
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.bootstrap import Interval, difference, interval
from syzygy.lab.evaluate.composition import COUNTED
from syzygy.lab.world.description import check_facts
from syzygy.lab.world.prompts import Prompt
from syzygy.lab.world.reader import Prediction, Reader
from syzygy.lab.world.scene import Thing

BATCH = 32
FILE = "readings.jsonl"
ALL, SEEN, HELD_OUT = "all", "seen", "held out"

Values = list[list[float]]
"""A score of every picture: a row a prompt, a column a picture of it."""


class Sampled(Config):
    """What every evaluation that paints is told."""

    steps: int = Field(default=10, gt=0)
    """Sampling steps."""
    guidance_scale: float = Field(default=3.0, ge=0, allow_inf_nan=False)
    """Guidance; 1 means off. With a style: the text's."""
    seed: int = 0
    """Prompts, scenes and noise follow from it."""


@dataclass(frozen=True)
class Series:
    """Pictures that one candidate makes."""

    name: str
    number: int
    paint: Callable[[Sequence[int]], Sequence[Image.Image]]
    """Of these rows, which begin at a multiple of `BATCH`."""


class Kept:
    """Readings by candidate and row, in a file that grows with each batch: an evaluation that was interrupted goes on where it was.

    The file's first line says of which model and settings they are.
    """

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        """Without a folder nothing is written.

        Raises:
            UserError: the folder holds readings of another model or other settings.
        """
        self._path = None if folder is None else folder / FILE
        self._found: dict[tuple[str, int], list[Prediction]] = {}
        if self._path is None:
            return
        plain = json.loads(json.dumps(about))
        lines = _lines(self._path) if self._path.is_file() else []
        if lines and lines[0] != plain:
            differ = [key for key in {**lines[0], **plain} if lines[0].get(key) != plain.get(key)]
            raise UserError(
                f"{self._path} holds readings of another evaluation ({', '.join(differ)} differ): choose another folder for --out, "
                "or delete that file."
            )
        for line in lines[1:]:
            self._found[line["candidate"], line["start"]] = [_reading(one) for one in line["readings"]]
        # Written anew: the end of a line that a killed process began would spoil the next one.
        artifacts.write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in (lines or [plain])).encode())

    def get(self, candidate: str, start: int) -> list[Prediction] | None:
        """Of the batch from this row on, if they are there."""
        return self._found.get((candidate, start))

    def put(self, candidate: str, start: int, readings: list[Prediction]) -> None:
        """Keep those of one batch."""
        self._found[candidate, start] = readings
        if self._path is None:
            return
        line = {"candidate": candidate, "start": start, "readings": [asdict(one) for one in readings]}
        with artifacts.writing("readings", self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> list[dict[str, Any]]:
    """Those that were written to their end."""
    try:
        return [
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"
        ]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, or choose another folder for --out.") from None


def _reading(plain: Mapping[str, Any]) -> Prediction:
    return Prediction(tuple(Thing(**one) for one in plain["things"]), plain["style"], tuple(plain["confidence"]))


def about(model: TextToImage, reader: Reader, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides all readings: weights and settings."""
    parts = model.fingerprints() | {"reader": artifacts.fingerprint(reader.state_dict())}
    return {**settings, "fingerprints": parts}


def read(
    series: Sequence[Series], reader: Reader, kept: Kept, progress: Callable[[int], None] = lambda done: None
) -> dict[str, list[Prediction]]:
    """Paint and read every candidate's pictures, but for what is kept already."""
    found: dict[str, list[Prediction]] = {}
    for one in series:
        found[one.name] = []
        for start in range(0, one.number, BATCH):
            rows = range(start, min(start + BATCH, one.number))
            readings = kept.get(one.name, start)
            if readings is None:
                pictures = torch.stack([to_tensor(image) for image in one.paint(rows)])
                readings = reader.read(pictures.to(next(reader.parameters()).device))
                kept.put(one.name, start, readings)
            found[one.name] += readings
            progress(len(rows))
    return found


def facts(prompt: Prompt, reading: Prediction) -> float:
    """Part of what the prompt names that the picture bears out."""
    atoms = check_facts(prompt.description, reading, exact_counts=prompt.category == COUNTED)
    return sum(atom.holds for atom in atoms) / len(atoms)


def agrees(prompt: Prompt, reading: Prediction) -> float:
    """1 where all that the prompt names is right, else 0."""
    return float(facts(prompt, reading) == 1)


def groups(wanted: Sequence[Prompt]) -> dict[tuple[str, str], list[int]]:
    """(category or all, seen, held out or all) → the rows of its prompts, where there are any; the whole first."""
    found: dict[tuple[str, str], list[int]] = {}
    for category in (ALL, *dict.fromkeys(prompt.category for prompt in wanted)):
        for side in (ALL, SEEN, HELD_OUT):
            rows = [
                row
                for row, prompt in enumerate(wanted)
                if category in (ALL, prompt.category) and (side == ALL or prompt.unseen == (side == HELD_OUT))
            ]
            if rows:
                found[category, side] = rows
    return found


def table(
    scores: Mapping[str, Mapping[str, Values]],
    wanted: Sequence[Prompt],
    against: Mapping[str, Mapping[str, str]],
    paired: str = "agreement",
) -> list[dict[str, Any]]:
    """A row a candidate and group: the interval of each of its measures, and `paired` less that of others on the same prompts and noise.

    Args:
        scores: candidate → measure → values, a row a prompt.
        against: candidate → name of the difference → candidate that it is to.
    """
    rows = []
    for candidate, measures in scores.items():
        for (category, side), chosen in groups(wanted).items():
            row: dict[str, Any] = {"candidate": candidate, "category": category, "side": side}
            row |= {name: interval([values[i] for i in chosen]) for name, values in measures.items()}
            for name, other in against.get(candidate, {}).items():
                own, theirs = ([scores[one][paired][i] for i in chosen] for one in (candidate, other))
                row[name] = difference(own, theirs)
            rows.append(row)
    return rows


def plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same as JSON values, to four digits."""
    return [
        {
            key: {name: round(x, 4) for name, x in asdict(value).items()} if isinstance(value, Interval) else value
            for key, value in row.items()
        }
        for row in rows
    ]


def points(value: Interval) -> str:
    """A difference in points, with its sign."""
    return f"{100 * value.mean:+.0f} [{100 * value.low:+.0f}, {100 * value.high:+.0f}]"
