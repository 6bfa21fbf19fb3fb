"""An encoder that costs nothing, pictures of one colour, and tars of them."""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.data import store_building
from syzygy.data.embed_shard import embed_shard
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import SourceOptions, open_source

WIDTH, POSITIONS = 4, 8


class FakeEncoder:
    """A picture's embedding is its mean colour and 1; a caption's states are its words' hashes.

    A pure blue picture gives NaN, the word `nan` too, and `huge` what fp16 cannot hold.
    """

    width, positions = WIDTH, POSITIONS

    def __init__(self, fingerprint: str = "fake") -> None:
        self.fingerprint = fingerprint
        self.batches: list[int] = []
        self.preparation = SimpleNamespace(prepare=self.prepare)

    @staticmethod
    def prepare(image: Image.Image) -> torch.Tensor:
        if image.width > 100 * image.height:
            raise UserError("the picture is too long.")
        colour = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
        return torch.tensor(colour, dtype=torch.float32).view(3, 1, 1) / 255

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pixels))
        found = torch.cat([pixels.mean((2, 3)), torch.ones(len(pixels), 1)], 1)
        found[(found[:, :3] == torch.tensor([0.0, 0.0, 1.0])).all(1)] = math.nan
        return found

    def encode_text(self, texts: list[str]) -> TextFeatures:
        self.batches.append(len(texts))
        rows = [["<", *text.split(), ">"][:POSITIONS] for text in texts]
        states = torch.full((len(rows), max(map(len, rows)), WIDTH), 7.0)
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        for i, words in enumerate(rows):
            states[i, : len(words)] = torch.stack([word_state(word) for word in words])
            mask[i, : len(words)] = True
        pooled = torch.stack([states[i, : len(words)].mean(0) for i, words in enumerate(rows)])
        return TextFeatures(states, mask, pooled)

    def token_spans(self, texts: list[str]) -> torch.Tensor:
        rows = [[(0, 0), *(word.span() for word in re.finditer(r"\S+", text)), (0, 0)][:POSITIONS] for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [(0, 0)] * (longest - len(row)) for row in rows])

    def identity(self) -> Any:
        values = {
            "source": "somewhere",
            "fingerprint": self.fingerprint,
            "dtype": "float32",
            "versions": {"torch": "1"},
        }
        return SimpleNamespace(to_config=lambda: values)


def word_state(word: str) -> torch.Tensor:
    if word in ("nan", "huge"):
        return torch.full((WIDTH,), math.nan if word == "nan" else 1e5)
    return torch.tensor([byte / 16 for byte in hashlib.blake2b(word.encode(), digest_size=WIDTH).digest()])


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def make_encoder() -> Callable[..., FakeEncoder]:
    return FakeEncoder


def picture_bytes(
    colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (4, 3), kind: str = "PNG"
) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """An encoded picture of one colour."""
    return picture_bytes


def fill(
    source: Path | str, out: Path, encoder: Any, *, max_bad: float = 0.05, options: Any = None, **settings: Any
) -> dict[str, Any]:
    chosen = EmbedSettings(**{"batch_size": 3, **settings})
    options = options or SourceOptions()
    found = open_source(str(source), options)
    plan = store_building.begin(out, found, options, chosen, encoder.identity().to_config(), "syzygy embed SOURCE")
    done = {record["number"] for record in store_building.finished(out, plan)}
    for number, shard in enumerate(found.shards):
        if number not in done:
            embed_shard(shard, number, encoder, chosen, out)
    return store_building.finish(out, plan, max_bad)


@pytest.fixture
def make_store() -> Callable[..., dict[str, Any]]:
    """(source, out, encoder, settings) → the manifest of the finished store."""
    return fill


@pytest.fixture
def tars(tmp_path: Path, write_tar: Callable[..., Path]) -> Path:
    """A folder of three tars with 5, 1 and 4 pictures; every third has two captions."""
    number = 0
    for shard, count in enumerate((5, 1, 4)):
        samples = []
        for _ in range(count):
            captions = [f"picture {number}", "the same words"] if number % 3 == 0 else [f"picture {number} is here"]
            metadata = {"caption": captions, "score": number / 2, "fine": number % 2 == 0, "site": f"s{number}"}
            text = json.dumps(metadata).encode()
            samples.append(
                (f"{number:04}", {"png": picture_bytes((number * 20, 10, 0), (4 + number, 3)), "json": text})
            )
            number += 1
        write_tar(tmp_path / "tars" / f"{shard:05}.tar", samples)
    return tmp_path / "tars"
