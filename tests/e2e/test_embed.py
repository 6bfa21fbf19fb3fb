"""`syzygy embed` and `syzygy store`: from tars to a store that can be read."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from syzygy.data.store import EmbeddingStore
from syzygy.hub.clip import Clip
from syzygy.world import source


@pytest.fixture(scope="module")
def pairs() -> list[tuple[bytes, str]]:
    """Pictures (PNG) and captions."""
    found = source.pairs(0, 0, 24)
    encoded = []
    for pair, picture in zip(found, source.pictures(found, 32), strict=True):
        data = io.BytesIO()
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(data, "PNG")
        encoded.append((data.getvalue(), pair.caption.text))
    return encoded


def write_tar(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_from_tars_to_a_store(
    tmp_path: Path, pairs: list[tuple[bytes, str]], tiny_model: Path, syzygy: Callable
) -> None:
    for shard in range(2):
        rows = list(enumerate(pairs))[12 * shard : 12 * shard + 12]
        members = [
            (f"{i:05}", {"png": p, "txt": t.encode(), "json": json.dumps({"n": i}).encode()}) for i, (p, t) in rows
        ]
        write_tar(tmp_path / "tars" / f"{shard:05}.tar", members)
    command = ["embed", tmp_path / "tars", "--encoder", tiny_model, "--out", tmp_path / "store", "--device", "cpu"]
    answer = syzygy(*command, "--batch-size", 5, "--threads", 1, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["pictures"] == 24
    store = EmbeddingStore.open(tmp_path / "store")
    everything = list(range(24))
    assert store.texts(everything) == [text for _, text in pairs]
    assert store.column("n").tolist() == everything
    assert store.column("width").tolist() == [32] * 24
    clip = Clip.from_pretrained(tiny_model / "clip")
    pixels = torch.stack([clip.preparation.prepare(Image.open(io.BytesIO(picture))) for picture, _ in pairs])
    torch.testing.assert_close(store.images(everything).float(), clip.encode_pixels(pixels), rtol=2e-3, atol=1e-4)
    text = clip.encode_text([text for _, text in pairs])
    found = store.captions(everything).padded()
    assert torch.equal(found.mask, text.mask)
    torch.testing.assert_close(found.pooled.float(), text.pooled, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(found.states.float()[text.mask], text.states[text.mask], rtol=2e-3, atol=1e-3)
