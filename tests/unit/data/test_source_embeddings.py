"""Ready-made embeddings in clip-retrieval's layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.data.pair import Bad
from syzygy.data.sources import SourceOptions, open_source
from syzygy.data.store import EmbeddingStore

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(folder: Path, name: str, images: np.ndarray, **columns: Any) -> Path:
    for inner in ("img_emb", "metadata", "text_emb"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    np.save(folder / "img_emb" / f"img_emb_{name}.npy", images)
    np.save(folder / "text_emb" / f"text_emb_{name}.npy", images)
    table = {
        "image_path": [f"{i}" for i in range(len(images))],
        "caption": [f"c{name} {i}" for i in range(len(images))],
    }
    parquet.write_table(arrow.table(table | columns), folder / "metadata" / f"metadata_{name}.parquet")
    return folder


def unit(rows: int, seed: int = 0, dtype: Any = np.float16) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, 4))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


def test_unit_length_is_brought_to_raw_scale(tmp_path: Path, encoder: Any, make_store: Callable) -> None:
    images = [unit(3, 0), unit(2, 1), unit(4, 2)]
    for name, x in zip(("0", "2", "10"), images, strict=True):
        write(tmp_path / "in", name, x, similarity=[0.5] * len(x), width=[640] * len(x))
    options = SourceOptions(image_norm=20.0)
    manifest = make_store(tmp_path / "in", tmp_path / "store", encoder, options=options)
    store = EmbeddingStore.open(tmp_path / "store")
    assert [shard["source"] for shard in manifest["shards"]] == ["img_emb_0", "img_emb_2", "img_emb_10"]
    expected = torch.from_numpy(np.concatenate(images).astype(np.float32) * 20).half()
    assert torch.equal(store.images(range(9)), expected)
    assert abs(store.statistics.mean_norm - 20) < 0.05
    assert store.texts([0, 3, 8]) == ["c0 0", "c2 0", "c10 3"]
    assert torch.equal(store.captions([3]).states, encoder.encode_text(["c2 0"]).states[0].half())
    assert store.column("similarity").tolist() == [0.5] * 9
    assert store.column("width").tolist() == [640] * 9
    assert store.column("height").isnan().all()
    assert encoder.batches[-1] == 1  # this test's own
    assert manifest["options"]["image_norm"] == 20


def test_raw_embeddings_are_taken_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32) * 9
    found = list(open_source(str(write(tmp_path, "0", x)), SourceOptions()).shards[0].read())
    assert np.array_equal(np.stack([pair.embedding for pair in found]), x)


@pytest.mark.parametrize(
    ("scale", "norm", "message"),
    [
        (1, None, "have unit length, and priors learn raw ones: give --image-norm"),
        (9, 20.0, "have a norm of 9 and are used as they are"),
    ],
)
def test_the_scale_must_be_clear(tmp_path: Path, scale: int, norm: float | None, message: str) -> None:
    write(tmp_path, "0", unit(50) * scale)
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path), SourceOptions(image_norm=norm))


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path, "0", unit(5) * 9)
    np.save(tmp_path / "img_emb" / "img_emb_1.npy", unit(5))
    with pytest.raises(UserError, match=r"metadata_1\.parquet is missing"):
        open_source(str(tmp_path), SourceOptions())
    (tmp_path / "img_emb" / "img_emb_1.npy").unlink()
    for rows, says in ((4, "has 4 rows and .* more"), (6, "has 6 rows and .* 5: they do not belong together")):
        np.save(tmp_path / "img_emb" / "img_emb_0.npy", unit(rows) * 9)
        with pytest.raises(UserError, match=says):
            list(open_source(str(tmp_path), SourceOptions()).shards[0].read())
    (tmp_path / "img_emb" / "img_emb_0.npy").unlink()
    with pytest.raises(UserError, match=r"holds no img_emb_0\.npy"):
        open_source(str(tmp_path), SourceOptions())


def test_damaged_arrays(tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        write(tmp_path, name, unit(50) * 9)
    path = tmp_path / "img_emb" / "img_emb_1.npy"
    path.write_bytes(path.read_bytes()[:-10])
    np.save(tmp_path / "img_emb" / "img_emb_2.npy", np.arange(5))
    whole, cut, wrong = (list(shard.read()) for shard in open_source(str(tmp_path), SourceOptions()).shards)
    assert len(whole) == 50
    for found, reason in (
        (cut, "img_emb_1.npy cannot be read as an array"),
        (wrong, "img_emb_2.npy holds int64 of shape (5,)"),
    ):
        (bad,) = found
        assert isinstance(bad, Bad)
        assert reason in bad.reason


def test_values_that_are_not_finite_are_bad(tmp_path: Path, encoder: Any, make_store: Callable) -> None:
    x = unit(4, dtype=np.float32) * 9
    x[1, 2], x[3, 0] = np.nan, 1e6
    manifest = make_store(write(tmp_path / "in", "0", x), tmp_path / "store", encoder, max_bad=0.5)
    assert (manifest["pictures"], manifest["bad"]) == (2, 2)
    assert EmbeddingStore.open(tmp_path / "store").keys([0, 1]) == ["00000000", "00000002"]


def test_another_clips_embeddings(tmp_path: Path, encoder: Any, make_store: Callable) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32) * 9
    with pytest.raises(UserError, match="embeddings are 5 wide and the encoder's 4, so another CLIP made them"):
        make_store(write(tmp_path / "in", "0", x), tmp_path / "store", encoder)


def test_files_of_both_scales_are_refused_by_name(tmp_path: Path) -> None:
    for name, x in (("0", unit(50, 0) * 9), ("1", unit(50, 1)), ("2", unit(50, 2))):
        write(tmp_path, name, x)
    says = r"mixes embeddings of unit length \(img_emb_1\.npy, img_emb_2\.npy\) with raw ones \(img_emb_0\.npy\)"
    for norm in (None, 20.0):
        with pytest.raises(UserError, match=says):
            open_source(str(tmp_path), SourceOptions(image_norm=norm))


def test_rows_of_zeros_are_bad(tmp_path: Path, encoder: Any, make_store: Callable) -> None:
    x = unit(5, dtype=np.float32)
    x[1] = 0
    options = SourceOptions(image_norm=20.0)
    manifest = make_store(write(tmp_path / "in", "0", x), tmp_path / "store", encoder, max_bad=0.5, options=options)
    assert (manifest["pictures"], manifest["bad"]) == (4, 1)
    assert "the image embedding is all zeros" in (tmp_path / "store" / "bad.jsonl").read_text()


def test_a_lone_column_of_another_name_holds_no_captions(tmp_path: Path) -> None:
    write(tmp_path, "0", unit(5) * 9)
    parquet.write_table(arrow.table({"image_path": ["a"] * 5}), tmp_path / "metadata" / "metadata_0.parquet")
    with pytest.raises(UserError, match=r"name it with --caption-column\. It has: image_path"):
        open_source(str(tmp_path), SourceOptions())
