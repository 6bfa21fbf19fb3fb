"""Latents record how their pictures were read, and are not continued by a version that reads them otherwise."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.core.image_reading import READING
from syzygy.data.sources import SourceOptions, open_source
from syzygy.pretrained.latent_cache import ABOUT_FILE, Latents, encoded
from syzygy.pretrained.unet_training import MEAN, Pictures


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], Latents]:
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(photos / "a.jpg", exif=exif)
    (photos / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "text": "a red ring"}) + "\n")
    size = Pictures(1, lambda image: {MEAN: torch.tensor(image.size).float().view(2, 1, 1)}, lambda batch: batch, {})

    def latents() -> Latents:
        source = open_source(str(photos), SourceOptions())
        return encoded(source, size, tmp_path / "latents", {"size": 1}, max_bad=0.0, say=lambda line: None)

    return latents


def test_pictures_become_latents_upright(make: Callable[[], Latents]) -> None:
    assert make().sampled([0]).tolist() == [[[[20]], [[40]]]]


def test_unfinished_latents_of_another_reading_are_refused(make: Callable[[], Latents], tmp_path: Path) -> None:
    make()
    about = tmp_path / "latents" / ABOUT_FILE
    values = json.loads(about.read_text())
    assert values.pop("picture_reading") == READING
    about.write_text(json.dumps(values))
    assert len(make()) == 1, "finished ones fit each other"
    (tmp_path / "latents" / "00000.json").unlink()
    with pytest.raises(UserError, match=r"made differently \(picture_reading differ\)"):
        make()
