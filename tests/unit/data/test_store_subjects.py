"""Subjects in a store: what is written and read, what is lost and counted, and that bytes do not depend on interruptions."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from syzygy.core.errors import UserError
from syzygy.data import store_building
from syzygy.data.embed_shard import embed_shard
from syzygy.data.encoding import EmbedSettings
from syzygy.data.sources import SourceOptions, open_source
from syzygy.data.store import EmbeddingStore
from syzygy.data.store_checking import verify
from syzygy.data.store_files import mapped, write_tensors
from syzygy.data.store_merging import merge

WITH = SourceOptions(subject_column="subjects")
LEFT, RIGHT = (200, 0, 0), (0, 200, 0)
BOX_LEFT, BOX_RIGHT = [0, 0, 4, 4], [4, 0, 8, 4]


def halves(shade: int = 0) -> Image.Image:
    """Red on the left, green on the right."""
    image = Image.new("RGB", (8, 4), (LEFT[0], shade, 0))
    image.paste((0, RIGHT[1], shade), (4, 0, 8, 4))
    return image


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def folder_of(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A folder with one image for each row, which differ."""
    folder.mkdir(parents=True)
    lines = []
    for i, row in enumerate(rows):
        halves(i + 1).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", **row}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    dog, cat = {"phrase": "Dog", "box": BOX_LEFT}, {"phrase": "red cat", "relative_box": [0.5, 0, 1, 1]}
    return folder_of(
        tmp_path / "source",
        [
            {"text": ["a dog and a red cat", "a dog, my dog", "nothing"], "subjects": [dog, cat]},
            {"text": "two dogs", "subjects": [dog]},
            {"text": "no subject"},
            {"text": "one dog here", "subjects": [dog, {"phrase": "dog", "box": BOX_RIGHT}, {"phrase": "dog"}]},
            {"text": "a dog far away", "subjects": [{"phrase": "dog", "box": [0, 0, 99, 9]}]},
            {"text": "a b c d e f g h dog", "subjects": [dog]},
        ],
    )


def test_subjects_are_stored_at_the_tokens_of_their_phrase(
    tmp_path: Path, source: Path, encoder: Any, make_store: Any
) -> None:
    manifest = make_store(source, tmp_path / "store", encoder, options=WITH, subjects=True, max_bad=0.0)
    store = EmbeddingStore.open(tmp_path / "store")
    assert verify(store.path) == []
    assert len(store) == 8
    found = store.references(range(8))
    assert found is not None
    assert found.control is None
    assert found.offsets.tolist() == [0, 2, 3, 3, 3, 3, 4, 4, 4]
    # Start token, a, dog, and, a, red, cat. Every occurrence counts; "dogs" is another word.
    positions = [
        found.positions[a:b].tolist() for a, b in zip(found.position_offsets, found.position_offsets[1:], strict=False)
    ]
    assert positions == [[2], [5, 6], [2, 4], [2]]
    assert found.embeddings.dtype == torch.float16
    red = torch.tensor([200 / 255, 1 / 255, 0, 1]).half()
    green = torch.tensor([0, 200 / 255, 1 / 255, 1]).half()
    assert torch.equal(found.embeddings[:3], torch.stack([red, green, red]))
    assert store.zero_image is not None
    assert store.zero_image.tolist() == [[0, 0, 0, 1]]
    about = manifest["subjects"]
    assert {name: about[name] for name in ("number", "captions", "bad", "edges")} == {
        "number": 3,
        "captions": 3,
        "bad": 5,
        "edges": False,
    }
    lines = [json.loads(line) for line in (store.path / "bad.jsonl").read_text().splitlines()]
    assert [(line["key"], line["phrase"], line["reason"]) for line in lines] == [
        ("1.png", "Dog", "its phrase is in none of the captions"),
        ("3.png", "dog", "another subject of the image has the same phrase"),
        ("3.png", "dog", "it needs one of box, relative_box and mask; it has phrase"),
        ("4.png", "dog", "its box [0, 0, 99, 9] reaches beyond the image of 8 × 4 pixels"),
        ("5.png", "Dog", "the text encoder reads none of its phrase's tokens: the caption is cut before it"),
    ]
    assert {line["lost"] for line in lines} == {"subject"}
    assert (manifest["pictures"], manifest["bad"]) == (6, 0)


def test_any_order_of_captions_is_read(tmp_path: Path, source: Path, encoder: Any, make_store: Any) -> None:
    make_store(source, tmp_path / "store", encoder, options=WITH, subjects=True, shard_size=3)
    store = EmbeddingStore.open(tmp_path / "store")
    everything = store.references(range(8))
    assert everything is not None
    index = torch.tensor([5, 0, 2, 0, 7, 1])
    found, expected = store.references(index), everything[index]
    assert found is not None
    for name in ("embeddings", "offsets", "positions", "position_offsets"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    none = store.references([2, 7])
    assert none is not None
    assert (len(none), none.embeddings.shape, len(none.positions)) == (2, (0, 4), 0)


def test_without_the_option_a_store_is_as_before(tmp_path: Path, source: Path, encoder: Any, make_store: Any) -> None:
    manifest = make_store(source, tmp_path / "store", encoder)
    store = EmbeddingStore.open(tmp_path / "store")
    assert "subjects" not in manifest
    assert store.references([0]) is None
    assert store.zero_image is None
    text = (tmp_path / "store" / "store.json").read_text() + (tmp_path / "store" / "manifest.json").read_text()
    assert "subject" not in text
    assert "edges" not in text
    make_store(source, tmp_path / "with", encoder, options=WITH, subjects=True)
    for kind in ("pairs", "clip"):
        name = f"shards/00000-000.{kind}.safetensors"
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "with" / name).read_bytes()


def test_nothing_is_read_before_subjects_are_asked_for(
    tmp_path: Path, source: Path, encoder: Any, make_store: Any
) -> None:
    make_store(source, tmp_path / "store", encoder, options=WITH, subjects=True)
    store = EmbeddingStore.open(tmp_path / "store")
    for path in (tmp_path / "store" / "shards").glob("*.subjects.*"):
        path.unlink()
    assert len(store.captions([0]).states) == 8
    assert store.images_of([0]).shape == (1, 4)
    with pytest.raises(UserError, match="is missing"):
        store.references([0])
    with pytest.raises(UserError, match=r"subjects\.safetensors is missing\. Copy it again; or delete"):
        EmbeddingStore.open(tmp_path / "store")


def test_a_store_whose_subjects_all_failed_holds_none(tmp_path: Path, encoder: Any, make_store: Any) -> None:
    folder = folder_of(tmp_path / "in", [{"text": "a cat", "subjects": [{"phrase": "dog", "box": BOX_LEFT}]}])
    manifest = make_store(folder, tmp_path / "store", encoder, options=WITH, subjects=True)
    assert manifest["subjects"]["number"] == 0
    assert verify(tmp_path / "store") == []
    assert EmbeddingStore.open(tmp_path / "store").references([0]) is None


@pytest.fixture
def edges() -> None:
    pytest.importorskip("cv2")


@pytest.mark.usefixtures("edges")
def test_edges_belong_to_the_picture_of_a_caption(tmp_path: Path, source: Path, encoder: Any, make_store: Any) -> None:
    make_store(source, tmp_path / "store", encoder, options=WITH, subjects=True, edges=True)
    store = EmbeddingStore.open(tmp_path / "store")
    found = store.references(range(8))
    assert found is not None
    assert found.control is not None
    expected = encoder.encode_pixels(torch.stack([encoder.prepare(edges_image(i)) for i in (0, 0, 0, 1, 2, 3, 4, 5)]))
    assert torch.equal(found.control, expected.half())
    assert verify(tmp_path / "store") == []


def edges_image(i: int) -> Image.Image:
    from syzygy.core.edge_maps import edges_of

    return Image.fromarray(edges_of(np.asarray(halves(i + 1))))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("edges")
@pytest.mark.parametrize("stop", range(1, 7))
def test_wherever_it_stops_the_bytes_are_the_same(
    tmp_path: Path, source: Path, encoder: Any, make_store: Any, stop: int
) -> None:
    settings = {"subjects": True, "edges": True, "shard_size": 2, "batch_size": 2}
    make_store(source, tmp_path / "whole", encoder, options=WITH, **settings)

    def watch(progress: Any) -> None:
        if progress.seen >= stop:
            raise KeyboardInterrupt

    found, chosen, out = open_source(str(source), WITH), EmbedSettings(**settings), tmp_path / "cut"
    store_building.begin(out, found, WITH, chosen, encoder.identity().to_config(), "syzygy embed SOURCE")
    with pytest.raises(KeyboardInterrupt):
        embed_shard(found.shards[0], 0, encoder, chosen, out, watch)
    make_store(source, tmp_path / "cut", encoder, options=WITH, **settings)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    make_store(source, tmp_path / "threads", encoder, options=WITH, **settings, threads=4)
    name = "shards/00000-000.subjects.safetensors"
    assert contents(tmp_path / "threads")[name] == contents(tmp_path / "whole")[name]


def test_the_same_cut_out_is_encoded_once(tmp_path: Path, encoder: Any, make_store: Any) -> None:
    """One row for each caption is a common layout: picture and subjects are repeated."""
    folder = folder_of(tmp_path / "in", [{"text": "x"}])
    dog = {"phrase": "dog", "box": BOX_LEFT}
    rows = [{"file_name": "0.png", "text": f"dog {i}", "subjects": [dog]} for i in range(5)]
    rows.append({"file_name": "0.png", "text": "beast", "subjects": [{"phrase": "beast", "box": BOX_LEFT}]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = make_store(folder, tmp_path / "store", encoder, options=WITH, subjects=True, batch_size=1)
    assert (manifest["pictures"], manifest["captions"]) == (1, 6)
    assert (manifest["subjects"]["number"], manifest["subjects"]["captions"]) == (2, 6)
    assert (
        len([n for n in encoder.batches if n == 1]) == 1 + 1 + 1 + 1 + 6
    )  # empty text, zeros, picture, cut-out, captions


@pytest.mark.parametrize("change", ["subjects", "column", "edges"])
def test_a_store_is_not_continued_with_other_subjects(
    tmp_path: Path, source: Path, encoder: Any, make_store: Any, change: str
) -> None:
    make_store(source, tmp_path / "store", encoder, options=WITH, subjects=True)
    options = {"subjects": SourceOptions(), "column": SourceOptions(subject_column="text"), "edges": WITH}[change]
    settings = {"subjects": change != "subjects", "edges": change == "edges"}
    expected = {
        "subjects": "was begun with subjects, not without --subjects",
        "column": 'was begun with subject_column "subjects", not "text"',
        "edges": "was begun with no edges, not with --edges",
    }[change]
    with pytest.raises(UserError, match=expected):
        make_store(source, tmp_path / "store", encoder, options=options, **settings)


def test_an_edited_mask_is_another_source(tmp_path: Path, encoder: Any, make_store: Any) -> None:
    folder = folder_of(tmp_path / "in", [{"text": "dog", "subjects": [{"phrase": "dog", "mask": "masks/a.png"}]}])
    (folder / "masks").mkdir()
    Image.new("L", (8, 4), 255).save(folder / "masks" / "a.png")
    manifest = make_store(folder, tmp_path / "store", encoder, options=WITH, subjects=True)
    assert manifest["subjects"]["number"] == 1
    assert (tmp_path / "store" / "bad.jsonl").read_text() == ""  # the mask is no picture without a caption
    (folder / "masks" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="have changed"):
        make_store(folder, tmp_path / "store", encoder, options=WITH, subjects=True)


SUBJECTS = [{"phrase": "dog", "box": BOX_RIGHT}]


def test_tar_parquet_and_csv_name_subjects_too(
    tmp_path: Path, encoder: Any, make_store: Any, write_tar: Callable[..., Path]
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture, text = png(halves()), json.dumps(SUBJECTS)
    mask = png(Image.new("L", (8, 4), 255))
    row = json.dumps({"caption": "a dog", "subjects": SUBJECTS}).encode()
    write_tar(tmp_path / "a.tar", [("a", {"png": picture, "json": row})])
    parquet.write_table(
        arrow.table({"image": [picture], "text": ["a dog"], "subjects": [text]}), tmp_path / "a.parquet"
    )
    structs = [[{"phrase": "dog", "box": [4.0, 0.0, 8.0, 4.0], "mask": None}]]
    parquet.write_table(
        arrow.table({"image": [picture], "text": ["a dog"], "subjects": structs}), tmp_path / "b.parquet"
    )
    masked = [[{"phrase": "dog", "mask": mask}]]
    parquet.write_table(
        arrow.table({"image": [picture], "text": ["a dog"], "subjects": masked}), tmp_path / "c.parquet"
    )
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "a.png").write_bytes(picture)
    quoted = text.replace('"', '""')
    (tmp_path / "csv" / "metadata.csv").write_text(f'file_name,text,subjects\na.png,a dog,"{quoted}"\n')
    green = torch.tensor([0, 200 / 255, 0, 1]).half()
    for name in ("a.tar", "a.parquet", "b.parquet", "csv", "c.parquet"):
        manifest = make_store(tmp_path / name, tmp_path / f"{name}-store", encoder, options=WITH, subjects=True)
        found = EmbeddingStore.open(tmp_path / f"{name}-store").references([0])
        assert found is not None, name
        assert found.positions.tolist() == [2]
        assert name == "c.parquet" or torch.equal(found.embeddings[0], green)
        assert manifest["text_left"] == {}


def test_a_missing_column_is_refused(tmp_path: Path, source: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    with pytest.raises(UserError, match=r"has no column 'things', from which --subjects reads\. It has: .*subjects"):
        open_source(str(source), SourceOptions(subject_column="things"))
    parquet.write_table(arrow.table({"image": [b"x"], "text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has no column 'subjects'"):
        open_source(str(tmp_path / "a.parquet"), WITH)


def test_sources_without_metadata_or_pixels_are_refused(tmp_path: Path) -> None:
    halves().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dog")
    with pytest.raises(
        UserError, match=r"--subjects cannot be used with this source: a caption file names no subjects"
    ):
        open_source(str(tmp_path), WITH)
    (tmp_path / "img_emb").mkdir()
    with pytest.raises(UserError, match=r"ready-made embeddings have no pixels to cut subjects from"):
        open_source(str(tmp_path), WITH)


@pytest.mark.usefixtures("edges")
def test_stores_with_subjects_are_merged(tmp_path: Path, source: Path, encoder: Any, make_store: Any) -> None:
    for name in ("a", "b"):
        make_store(source, tmp_path / name, encoder, options=WITH, subjects=True, edges=True, shard_size=3)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert verify(tmp_path / "merged") == []
    assert (merged["subjects"]["number"], merged["subjects"]["bad"]) == (6, 10)
    one, both = (EmbeddingStore.open(tmp_path / name) for name in ("a", "merged"))
    assert torch.equal(both.zero_image, one.zero_image)  # pyright: ignore[reportArgumentType]
    assert len(list((tmp_path / "merged" / "shards").glob("*-zero.*"))) == 1
    found, expected = both.references(range(8, 16)), one.references(range(8))
    assert found is not None
    assert expected is not None
    for name in ("embeddings", "offsets", "positions", "position_offsets", "control"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_stores_with_and_without_are_not_merged(tmp_path: Path, source: Path, encoder: Any, make_store: Any) -> None:
    make_store(source, tmp_path / "a", encoder, options=WITH, subjects=True)
    make_store(source, tmp_path / "b", encoder)
    for stores in (["a", "b"], ["b", "a"]):
        with pytest.raises(UserError, match=r"a was embedded with --subjects and .*b without\. Embed both alike"):
            merge([tmp_path / name for name in stores], tmp_path / "merged")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"positions": torch.tensor([2, 5, 6, 2, 99, 2], dtype=torch.int32)},
            "token positions lie outside their captions",
        ),
        ({"subject": torch.tensor([0, 1, 0, 7], dtype=torch.int32)}, "captions name subjects that it does not hold"),
        ({"offsets": torch.tensor([0, 2, 3, 3, 3, 3, 4, 4, 5])}, "offsets do not lead through its subjects"),
        ({"embeddings": torch.full((3, 4), torch.nan).half()}, "embeddings hold NaN or infinity"),
        ({"control": torch.zeros(6, 4).half()}, "controls do not belong to its pictures"),
    ],
)
def test_damage_that_checksums_do_not_see_is_found(
    tmp_path: Path, source: Path, encoder: Any, make_store: Any, change: dict[str, torch.Tensor], problem: str
) -> None:
    make_store(source, tmp_path / "store", encoder, options=WITH, subjects=True)
    path = tmp_path / "store" / "shards" / "00000-000.subjects.safetensors"
    tensors = {name: x.clone() for name, x in mapped(path).items()}
    file = write_tensors(path, tensors | change)
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    manifest["shards"][0]["parts"][0]["subjects"] |= file
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    assert verify(tmp_path / "store") == [f"{path.name}: {problem}"]


def test_a_changed_byte_is_found(tmp_path: Path, source: Path, encoder: Any, make_store: Any) -> None:
    make_store(source, tmp_path / "store", encoder, options=WITH, subjects=True)
    for name in ("00000-000.subjects.safetensors", "00000-zero.clip.safetensors"):
        shutil.copytree(tmp_path / "store", tmp_path / name)
        path = tmp_path / name / "shards" / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert verify(tmp_path / name) == [f"{name} has another checksum: its contents have changed"]


def test_without_opencv_edges_are_refused_before_the_work(
    tmp_path: Path, source: Path, encoder: Any, make_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        UserError, match=r"computing the edges of images needs OpenCV: run pip install -e '\.\[edges\]'"
    ):
        make_store(source, tmp_path / "store", encoder, options=WITH, subjects=True, edges=True)
    assert not list((tmp_path / "store" / "shards").iterdir())
