"""`verify` finds what has changed in a store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from syzygy.core import artifacts
from syzygy.data.store_building import files_in
from syzygy.data.store_checking import verify
from syzygy.data.store_files import mapped, write_tensors

FILES = ["00000-000.pairs.safetensors", "00002-000.clip.safetensors", "00000-empty.clip.safetensors"]


@pytest.fixture
def path(tmp_path: Path, tars: Path, encoder: Any, make_store: Callable) -> Path:
    make_store(tars, tmp_path / "store", encoder)
    return tmp_path / "store"


def test_a_whole_store(path: Path) -> None:
    done: list[int] = []
    assert verify(path, done.append) == []
    assert sum(done) == 14


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit(path: Path, name: str) -> None:
    file = path / "shards" / name
    data = file.read_bytes()
    for place in range(0, len(data), 97):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        assert verify(path) == [f"{name} has another checksum: its contents have changed"], place
    file.write_bytes(data[:-1])
    assert verify(path) == [f"{name} has {len(data) - 1:,} bytes instead of {len(data):,}"]
    file.unlink()
    assert verify(path) == [f"{name} is missing"]


def rewrite(path: Path, name: str, **changes: Any) -> None:
    """Change tensors of a file, and its size and checksum in the manifest."""
    file = path / "shards" / name
    tensors = {key: x.clone() for key, x in mapped(file).items()}
    record = write_tensors(file, {key: changes.get(key, lambda x: x)(x) for key, x in tensors.items()})
    manifest = json.loads((path / "manifest.json").read_text())
    for found in files_in(manifest):
        if found["name"] == name:
            found.update(record)
    artifacts.write_json(path / "manifest.json", manifest)


def poisoned(x: torch.Tensor) -> torch.Tensor:
    x[-1, -1] = torch.inf
    return x


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (FILES[1], {"states": poisoned}, "states holds NaN or infinity"),
        (FILES[1], {"image": poisoned}, "image holds NaN or infinity"),
        (FILES[1], {"pooled": poisoned}, "pooled holds NaN or infinity"),
        (FILES[1], {"pooled": lambda x: x[1:]}, "pooled has 5 rows instead of 6"),
        (FILES[1], {"image": lambda x: x[1:]}, "image has 3 rows instead of 4"),
        (FILES[1], {"states": lambda x: x[1:]}, "states has "),
        (FILES[1], {"offsets": lambda x: x.flip(0)}, "offsets do not lead through its token states"),
        (FILES[1], {"offsets": lambda x: x + (x == x[2]) * 100}, "offsets do not lead through its token states"),
        (FILES[2], {"states": poisoned}, "states holds NaN or infinity"),
        (FILES[2], {"pooled": lambda x: x.repeat(2, 1)}, "pooled has 2 rows instead of 1"),
        (FILES[2], {"offsets": lambda x: x * 0}, "offsets do not lead through its token states"),
        (FILES[0], {"image_of_caption": lambda x: x.flip(0)}, "captions do not belong to its pictures in order"),
        (FILES[0], {"image_of_caption": lambda x: x.clamp(max=3)}, "captions do not belong to its pictures in order"),
        (FILES[0], {"text_hash": lambda x: x + 1}, "hashes are not those of the captions"),
        (FILES[0], {"caption/offsets": lambda x: x * 2}, "offsets do not lead through its captions"),
    ],
)
def test_numbers_that_do_not_fit(path: Path, name: str, changes: dict[str, Any], says: str) -> None:
    rewrite(path, name, **changes)
    problems = verify(path)
    assert problems
    assert problems[0].startswith(f"{name}: {says}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pictures": 11}, "manifest.json: 11 pictures, but its shards have 10"),
        ({"captions": 11}, "manifest.json: 11 captions, but its shards have 14"),
        ({"features": {"tokens": 1}}, "manifest.json: 1 tokens of clip, but its shards have "),
        (
            {"features": {"images": {"mean_norm": 5.0}}},
            "manifest.json: its statistics are not those of the image embeddings",
        ),
    ],
)
def test_totals_that_do_not_fit(path: Path, change: dict[str, Any], says: str) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    features = change.pop("features", {})
    manifest["features"]["clip"]["images"] |= features.pop("images", {})
    manifest["features"]["clip"] |= features
    artifacts.write_json(path / "manifest.json", manifest | change)
    (problem,) = verify(path)
    assert problem.startswith(says)
