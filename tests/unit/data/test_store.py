"""Reading a store."""

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.packed_attention import PackedText
from syzygy.data import store_files
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_files import write_tensors
from syzygy.data.store_part import Part, write_part
from tests.closeness import assert_close


@pytest.fixture
def store(tmp_path: Path, tars: Path, encoder: Any, make_store: Callable) -> EmbeddingStore:
    make_store(tars, tmp_path / "store", encoder, shard_size=3)
    return EmbeddingStore.open(tmp_path / "store")


def test_any_index_in_its_order(store: EmbeddingStore, encoder: Any) -> None:
    index = [13, 0, 7, 7, 2, 13]
    expected = encoder.encode_text(store.texts(index))
    for form in (index, torch.tensor(index), np.array(index)):
        found = store.captions(form)
        assert torch.equal(found.padded().states[expected.mask], expected.states[expected.mask].half())
        assert torch.equal(found.lengths, expected.mask.sum(1))
        assert torch.equal(found.pooled, expected.pooled.half())
    tokens = store.tokens(index)
    assert torch.equal(tokens.states, found.padded().states)
    assert torch.equal(tokens.mask, found.padded().mask)


def test_pictures_of_captions(store: EmbeddingStore) -> None:
    # 10 pictures; those numbered 0, 3, 6, 9 have two captions
    expected = [0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9]
    assert (len(store), store.number_of_images) == (14, 10)
    assert store.image_of(range(14)).tolist() == expected
    index = [13, 0, 5, 5]
    assert torch.equal(store.images_of(index), store.images([9, 0, 3, 3]))
    assert store.keys(store.image_of(index)) == ["0009", "0000", "0003", "0003"]


def test_ids_are_equal_where_words_are(store: EmbeddingStore) -> None:
    texts = store.texts(range(14))
    ids = store.ids(range(14)).tolist()
    assert [ids.index(i) for i in ids] == [texts.index(text) for text in texts]
    assert len(set(ids)) == 11


def test_columns_have_types(store: EmbeddingStore) -> None:
    assert store.columns == {"fine": "boolean", "height": "number", "score": "number", "width": "number"}
    assert store.column("score").tolist() == [i / 2 for i in range(10)]
    assert store.column("score").dtype == torch.float64
    assert store.column("fine").tolist() == [i % 2 == 0 for i in range(10)]
    assert store.column("fine").dtype == torch.bool
    assert store.column("width").tolist() == [4 + i for i in range(10)]
    with pytest.raises(UserError, match=r"unknown column of .* 'scores'. Did you mean 'score'?"):
        store.column("scores")


def test_columns_that_are_not_everywhere(
    tmp_path: Path, encoder: Any, make_store: Callable, write_tar: Callable, picture: Callable
) -> None:
    metadata = [b'{"a": true, "b": 1, "t": "x"}', b'{"a": false, "b": true, "t": 5}', b"{}", b'{"c": true, "b": "no"}']
    for i, text in enumerate(metadata):
        write_tar(tmp_path / "tars" / f"{i}.tar", [("k", {"png": picture(), "txt": b"a", "json": text})])
    from syzygy.data.sources import SourceOptions

    make_store(tmp_path / "tars", tmp_path / "store", encoder, options=SourceOptions(keep=("t",)))
    store = EmbeddingStore.open(tmp_path / "store")
    nan = math.nan
    assert store.columns["t"] == "text"
    assert store.column("t") == ["x", "5", "", ""]
    for name, expected in (("a", [1, 0, nan, nan]), ("b", [1, 1, nan, nan]), ("c", [nan, nan, nan, 1])):
        assert store.columns[name] == "number"
        torch.testing.assert_close(store.column(name), torch.tensor(expected, dtype=torch.float64), equal_nan=True)


def test_statistics_are_those_of_the_stored_embeddings(store: EmbeddingStore) -> None:
    images = store.images(range(10)).double()
    found = store.statistics
    assert found.number == 10
    assert_close(found.mean, images.mean(0))
    torch.testing.assert_close(found.std, images.std(0), atol=1e-8, rtol=1e-6)
    assert found.mean_norm == pytest.approx(images.norm(dim=1).mean().item())
    assert store.width == 4


def test_what_may_be_asked(store: EmbeddingStore) -> None:
    for index in ([14], [-1]):
        with pytest.raises(IndexError, match=r"captions have numbers from 0 to 13; got"):
            store.captions(index)
    with pytest.raises(IndexError, match=r"pictures have numbers from 0 to 9; got"):
        store.images([10])
    with pytest.raises(UserError, match=r"unknown feature set of .* 'llm'. Known: clip"):
        EmbeddingStore.open(store.path, features="llm")


def test_a_store_can_be_sent_to_other_processes(store: EmbeddingStore) -> None:
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert torch.equal(pickle.loads(sent).captions([3]).states, store.captions([3]).states)


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no embedding store .*none"):
        EmbeddingStore.open(tmp_path / "none")
    with pytest.raises(UserError, match=r"is not an embedding store. `syzygy embed` makes one"):
        EmbeddingStore.open(tmp_path)


def test_missing_and_truncated_files(store: EmbeddingStore) -> None:
    path = store.path / "shards" / "00002-000.clip.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    says = rf"00002-000\.clip\.safetensors has {len(data) - 1:,} bytes instead of {len(data):,}\. Copy it again; or delete .*00002\.json"
    with pytest.raises(UserError, match=says):
        EmbeddingStore.open(store.path)
    path.unlink()
    with pytest.raises(UserError, match=r"00002-000\.clip\.safetensors is missing\. Copy it again"):
        EmbeddingStore.open(store.path)
    path.write_bytes(b"\xff" * len(data))
    with pytest.raises(UserError, match=r"00002-000\.clip\.safetensors is truncated or not safetensors"):
        EmbeddingStore.open(store.path).captions([8])


def test_files_of_a_newer_schema(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.path / "shards" / "00000-000.pairs.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"syzygy_schema":"1"', b'"syzygy_schema":"2"'))
    with pytest.raises(UserError, match=r"has schema 2; this version reads up to 1. Install a newer syzygy"):
        EmbeddingStore.open(store.path).captions([0])


def test_equal_tensors_are_equal_files(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3), "a": torch.ones(3).bfloat16(), "c": torch.zeros(0, 4), "d": torch.tensor([True])}
    one = write_tensors(tmp_path / "1" / "x.safetensors", tensors)
    two = write_tensors(tmp_path / "2" / "x.safetensors", dict(reversed(tensors.items())))
    assert one == two
    assert (tmp_path / "1" / "x.safetensors").stat().st_size == one["size"]
    from safetensors.torch import load_file

    found = load_file(tmp_path / "1" / "x.safetensors")
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in tensors.items())


def part(captions: int, width: int, tokens: int = 13) -> Part:
    lengths = torch.full((captions,), tokens)
    states = torch.zeros(captions * tokens, width, dtype=torch.float16)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Part(
        keys=[f"{i:09}" for i in range(captions)],
        columns=[{"width": 256.0, "height": 256.0, "similarity": 0.3}] * captions,
        contents=list(range(captions)),
        images=torch.ones(captions, width, dtype=torch.float16),
        captions=[f"a caption of usual length, number {i}" for i in range(captions)],
        image_of_caption=list(range(captions)),
        text=PackedText(states, offsets, torch.zeros(captions, width, dtype=torch.float16)),
    )


def test_files_are_hardly_larger_than_what_they_hold(tmp_path: Path) -> None:
    made = part(500, 64)
    record = write_part(made, tmp_path, 0, 0)
    tensors: list[Tensor] = [made.images, made.text.states, made.text.pooled]
    payload = sum(x.numel() * x.element_size() for x in tensors)
    payload += sum(len(text) for text in made.captions + made.keys) + 3 * 8 * 500
    size = record["pairs"]["size"] + record["features"]["clip"]["size"]
    assert size <= 1.05 * payload


def test_a_store_is_hardly_larger_than_what_it_holds(
    tmp_path: Path, make_encoder: Callable, make_store: Callable, write_tar: Callable, picture: Callable
) -> None:
    """All files, the empty text's and those of JSON included; embeddings 128 wide, of published CLIPs they are 512 to 1280."""
    encoder, width = make_encoder(), 128
    narrow_text, narrow_pixels = encoder.encode_text, encoder.encode_pixels

    def encode_text(texts: list[str]) -> TextFeatures:
        found = narrow_text(texts)
        return TextFeatures(found.states.repeat(1, 1, width // 4), found.mask, found.pooled.repeat(1, width // 4))

    encoder.width, encoder.positions = width, 8
    encoder.encode_text = encode_text
    encoder.encode_pixels = lambda pixels: narrow_pixels(pixels).repeat(1, width // 4)
    for shard in range(2):
        numbers = range(500 * shard, 500 * shard + 500)
        pictures = {i: picture((i % 256, i // 256, 0)) for i in numbers}
        samples = [
            (f"{i:09}", {"png": pictures[i], "txt": f"a caption of words, number {i}".encode()}) for i in numbers
        ]
        write_tar(tmp_path / "tars" / f"{shard}.tar", samples)
    make_store(tmp_path / "tars", tmp_path / "store", encoder, batch_size=50)
    store = EmbeddingStore.open(tmp_path / "store")
    tokens = store.manifest["features"]["clip"]["tokens"]
    vectors = 2 * width * (tokens + len(store) + store.number_of_images)
    columns = 8 * len(store.columns) * store.number_of_images
    texts = sum(map(len, store.texts(range(1000)) + store.keys(range(1000))))
    size = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert size <= 1.05 * (vectors + columns + texts)


MEMORY = """
import sys
from syzygy.data.store import EmbeddingStore

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

def read(path):
    store = EmbeddingStore.open(path)
    for start in range(0, len(store), 64):
        index = range(start, min(start + 64, len(store)))
        store.captions(index), store.images_of(index), store.ids(index), store.texts(index)
    return store

kept = [read(sys.argv[1])]
before = anonymous()
kept.append(read(sys.argv[2]))
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    """After reading all of a small store, all of a large one (40 MB) is read in less than 3 MB of the process's own."""
    for name, parts in (("small", 1), ("large", 40)):
        records = [write_part(part(200, 192), tmp_path / name, i, 0) for i in range(parts)]
        shards = [{"number": i, "source": f"{i}", "fingerprint": 0, "parts": [r]} for i, r in enumerate(records)]
        images = {"number": 2, "width": 192, "mean_norm": 1.0, "mean": [0.0], "std": [1.0]}
        features = {"clip": {"encoder": {}, "dtype": "fp16", "tokens": 0, "images": images}}
        from syzygy.core import artifacts

        manifest = store_files.stamped({"columns": {}, "features": features, "shards": shards})
        artifacts.write_json(tmp_path / name / "manifest.json", manifest)
    size = sum(path.stat().st_size for path in (tmp_path / "large").rglob("*.safetensors"))
    assert size > 40e6
    command = [sys.executable, "-c", MEMORY, tmp_path / "small", tmp_path / "large"]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 3_000
