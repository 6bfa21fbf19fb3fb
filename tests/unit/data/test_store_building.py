"""A store's life: claimed, interrupted, continued, finished; and what stops it."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syzygy.core.errors import UserError
from syzygy.core.image_reading import READING
from syzygy.data import store_building
from syzygy.data.embed_shard import embed_shard
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import SourceOptions, open_source
from syzygy.data.store import EmbeddingStore


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin(tars: Path, out: Path, encoder: Any, *, options: Any = None, **settings: Any) -> store_building.Plan:
    options = options or SourceOptions()
    source, chosen = open_source(str(tars), options), EmbedSettings(**{"batch_size": 3, **settings})
    return store_building.begin(out, source, options, chosen, encoder.identity().to_config(), "syzygy embed SOURCE")


def embed(tars: Path, out: Path, encoder: Any, number: int, **settings: Any) -> None:
    shard = open_source(str(tars), SourceOptions()).shards[number]
    embed_shard(shard, number, encoder, EmbedSettings(**{"batch_size": 3, **settings}), out)


def test_any_order_and_any_interruption_give_the_same_bytes(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable
) -> None:
    make_store(tars, tmp_path / "whole", encoder)
    cut = tmp_path / "cut"
    begin(tars, cut, encoder)
    embed(tars, cut, encoder, 2)
    embed(tars, cut, encoder, 0)
    (cut / "shards" / "00000.json").unlink()  # as if killed just before its record
    (cut / "shards" / ".writing.00001-000.clip.safetensors.x").write_bytes(b"half")
    plan = begin(tars, cut, encoder)
    assert [record["number"] for record in store_building.finished(cut, plan)] == [2]
    make_store(tars, cut, encoder)
    assert contents(cut) == contents(tmp_path / "whole")


def test_a_full_disk_leaves_finished_shards_and_the_work_goes_on(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tars, tmp_path / "whole", encoder)
    whole, cut = contents(tmp_path / "whole"), tmp_path / "cut"
    sync = os.fsync

    def full(file: int) -> None:
        if (cut / "shards" / "00000.json").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        says = r"cannot write a shard to .*00001-000\.pairs\.safetensors: No space left on device\. Free some space"
        with pytest.raises(UserError, match=says):
            make_store(tars, cut, encoder)
    left = contents(cut)
    assert left.keys() == {name for name in whole if name.startswith("shards/00000")} | {"store.json"}
    assert all(whole[name] == data for name, data in left.items())
    make_store(tars, cut, encoder)
    assert contents(cut) == whole


def test_a_store_whose_first_file_was_never_finished_is_begun(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable
) -> None:
    make_store(tars, tmp_path / "whole", encoder)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ".writing.store.json.x").write_text("{")  # killed there
    make_store(tars, tmp_path / "cut", encoder)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_shard_with_a_damaged_file_is_unfinished(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable
) -> None:
    make_store(tars, tmp_path / "s", encoder)
    before = contents(tmp_path / "s")
    path = tmp_path / "s" / "shards" / "00001-000.clip.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "s" / "shards" / "00002-000.pairs.safetensors").unlink()
    plan = begin(tars, tmp_path / "s", encoder)
    assert [record["number"] for record in store_building.finished(tmp_path / "s", plan)] == [0]
    make_store(tars, tmp_path / "s", encoder)
    assert contents(tmp_path / "s") == before


def test_unfinished_stores_say_what_is_missing_and_how_to_go_on(tmp_path: Path, tars: Path, encoder: Any) -> None:
    plan = begin(tars, tmp_path / "a store", encoder)
    embed(tars, tmp_path / "a store", encoder, 1)
    says = rf"2 of its 3 shards are missing\. Finish it with: syzygy embed SOURCE --out '{tmp_path}/a store'"
    with pytest.raises(UserError, match=says):
        EmbeddingStore.open(tmp_path / "a store")
    with pytest.raises(
        UserError, match=r"is not finished: 2 of its 3 shards are missing. Finish it with: syzygy embed SOURCE"
    ):
        store_building.finish(tmp_path / "a store", plan, 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batch_size": 4},
            "begun with batch_size 3, not 4. Choose another --out, or continue it with: syzygy embed SOURCE --out",
        ),
        ({"dtype": "bf16"}, 'begun with dtype "fp16", not "bf16"'),
        ({"device": "cuda"}, 'begun with device "cpu", not "cuda"'),
        ({"options": SourceOptions(keep=("a",))}, r'begun with keep \[\], not \["a"\]'),
        ({"fingerprint": "other"}, "begun with another encoder: its fingerprint was 'fake', now it is 'other'"),
        ({"grown": True}, "begun with a source of 3 shards, not 4"),
        ({"renamed": True}, "begun with another source: its shards had 00001.tar where there is 00002.tar now"),
        (
            {"changed": True},
            "begun with another 00001.tar: it had 10,240 bytes, now 10,241. Choose another --out to embed what",
        ),
    ],
)
def test_another_source_encoder_or_setting_is_refused_by_name(
    tmp_path: Path, tars: Path, encoder: Any, make_encoder: Callable, change: dict[str, Any], message: str
) -> None:
    begin(tars, tmp_path / "s", encoder)
    before = contents(tmp_path / "s")
    if change.pop("grown", False):
        (tars / "00003.tar").write_bytes(b"")
    if change.pop("renamed", False):
        (tars / "00001.tar").unlink()
    if change.pop("changed", False):
        (tars / "00001.tar").write_bytes((tars / "00001.tar").read_bytes() + b"\0")
    encoder = make_encoder(change.pop("fingerprint", "fake"))
    with pytest.raises(UserError, match=message):
        begin(tars, tmp_path / "s", encoder, **change)
    assert contents(tmp_path / "s") == before


def test_where_an_encoder_lies_and_versions_do_not_matter(tmp_path: Path, tars: Path, encoder: Any) -> None:
    begin(tars, tmp_path / "s", encoder)
    encoder.identity().to_config().update(source="elsewhere", versions={}, revision="abc")
    values = encoder.identity().to_config()
    assert store_building.encoder_difference(values, {**values, "source": "here", "versions": {"torch": "9"}}) is None


def test_folders_of_others_are_left_alone(tmp_path: Path, tars: Path, encoder: Any) -> None:
    with pytest.raises(UserError, match=r"holds other files. Choose a new or empty folder"):
        begin(tars, tars, encoder)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "store.json").write_text('{"kind": "letter"}')
    with pytest.raises(UserError, match=r"is not part of an embedding store"):
        begin(tars, tmp_path / "x", encoder)


@pytest.mark.parametrize("name", ["manifest.json", "store.json", "shards/00001.json"])
def test_newer_schemas_are_refused(tmp_path: Path, tars: Path, encoder: Any, make_store: Callable, name: str) -> None:
    make_store(tars, tmp_path / "s", encoder)
    path = tmp_path / "s" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 4}))
    with pytest.raises(UserError, match=r"has schema 4; this version reads up to 3. Install a newer syzygy"):
        EmbeddingStore.open(tmp_path / "s") if name == "manifest.json" else make_store(tars, tmp_path / "s", encoder)


def test_too_many_bad_samples() -> None:
    first = [f"{i}: broken" for i in range(7)]
    store_building.check_bad(100, 5, first, 0.05, at_end=True)
    store_building.check_bad(999, 999, first, 0.05, at_end=False)
    store_building.check_bad(0, 0, [], 0.0, at_end=True)
    with pytest.raises(store_building.TooManyBad) as error:
        store_building.check_bad(1000, 51, first, 0.05, at_end=False)
    assert str(error.value) == (
        "51 of 1,000 samples cannot be used, more than --max-bad 0.05 allows: 0: broken; 1: broken; 2: broken; 3: broken; "
        "4: broken (and 46 more). Finished parts are kept. Correct the source and choose another --out, or repeat the command "
        "with a larger --max-bad."
    )
    with pytest.raises(store_building.TooManyBad):
        store_building.check_bad(99, 5, first, 0.05, at_end=True)


def test_a_larger_max_bad_goes_on_without_embedding_again(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable, write_tar: Callable, picture: Callable
) -> None:
    write_tar(tars / "00003.tar", [("a", {"png": b"?", "txt": b"a"}), ("b", {"png": picture(), "txt": b"b"})])
    with pytest.raises(
        store_building.TooManyBad, match=r"1 of 12 samples cannot .* 00003.tar a: the picture cannot be read"
    ):
        make_store(tars, tmp_path / "s", encoder)
    assert not (tmp_path / "s" / "manifest.json").exists()
    assert [json.loads(line)["key"] for line in (tmp_path / "s" / "bad.jsonl").read_text().splitlines()] == ["a"]
    encoder.batches.clear()
    manifest = make_store(tars, tmp_path / "s", encoder, max_bad=0.1)
    assert encoder.batches == []
    assert (manifest["pictures"], manifest["bad"]) == (11, 1)


def test_nothing_to_store(tmp_path: Path, encoder: Any, make_store: Callable, write_tar: Callable) -> None:
    write_tar(tmp_path / "0.tar", [("a", {"png": b"?", "txt": b"a"})])
    with pytest.raises(
        UserError, match=r"would be empty, because no pair of the source can be used. .*bad.jsonl says why"
    ):
        make_store(tmp_path / "0.tar", tmp_path / "s", encoder, max_bad=1.0)


def test_a_shard_without_pairs_is_no_obstacle(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable, write_tar: Callable
) -> None:
    write_tar(tars / "00000.tar", [])
    manifest = make_store(tars, tmp_path / "s", encoder)
    assert [len(shard["parts"]) for shard in manifest["shards"]] == [0, 1, 1]
    assert EmbeddingStore.open(tmp_path / "s").keys([0]) == ["0005"]


def as_read_by_the_first_version(store: Path) -> None:
    """As a version wrote it that recorded no way of reading pictures."""
    for name in ("store.json", "manifest.json"):
        if (store / name).is_file():
            values = json.loads((store / name).read_text())
            del values["picture_reading"]
            (store / name).write_text(json.dumps(values))


def test_a_store_records_how_its_pictures_were_read(
    tmp_path: Path, tars: Path, encoder: Any, make_store: Callable
) -> None:
    make_store(tars, tmp_path / "new", encoder)
    for name in ("store.json", "manifest.json"):
        assert json.loads((tmp_path / "new" / name).read_text())["picture_reading"] == READING
    as_read_by_the_first_version(tmp_path / "new")
    assert len(EmbeddingStore.open(tmp_path / "new")) == 14, "it opens as before"


def test_a_store_of_pictures_read_otherwise_is_not_continued(tmp_path: Path, tars: Path, encoder: Any) -> None:
    store = tmp_path / "store"
    begin(tars, store, encoder)
    as_read_by_the_first_version(store)
    with pytest.raises(UserError, match=r"begun by another version of Syzygy.*EXIF orientation.*choose another --out"):
        begin(tars, store, encoder)


def test_ready_made_embeddings_are_not_read_as_pictures() -> None:
    assert store_building.reading_of({"kind_of_source": "embeddings"}) is None
    assert store_building.reading_of({"kind_of_source": "embeddings", "picture_reading": None}) is None
    assert store_building.reading_of({"kind_of_source": "tar"}) == {"version": 1}
    assert store_building.reading_of({"kind_of_source": "merged stores", "picture_reading": None}) is None
