"""`open_source`: what a user may write, and what each kind of source gives."""

from collections.abc import Callable
from pathlib import Path

import pytest

from syzygy.core.errors import UserError
from syzygy.data.pair import RawPair, Unused
from syzygy.data.sources import SourceOptions, expand, open_source


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("{a}{}", ["{a}{}"]),
        ("x{,y}", ["x", "xy"]),
    ],
)
def test_braces_mean_what_they_mean_in_a_shell(text: str, expected: list[str]) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize("text", ["{0..99999999}", "{0..999}{0..9999}"])
def test_braces_do_not_fill_the_memory(text: str) -> None:
    with pytest.raises(UserError, match="more than 1,000,000 files"):
        expand(text)


def names(text: str | Path, **options: object) -> list[str]:
    return [shard.name for shard in open_source(str(text), SourceOptions(**options)).shards]


def test_names_are_the_same_wherever_the_source_lies(
    tmp_path: Path, write_tar: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.tar", "a/0.tar", "b/0.tar"):
        write_tar(tmp_path / "x" / name, [])
    assert names(tmp_path / "x" / "a") == ["0.tar", "1.tar"]
    assert names(tmp_path / "x" / "{b,a}" / "0.tar") == ["b/0.tar", "a/0.tar"]
    (tmp_path / "x").rename(tmp_path / "y")
    monkeypatch.chdir(tmp_path)
    assert names("y/{b,a}/0.tar") == ["b/0.tar", "a/0.tar"]
    assert names("y/a/0.tar") == ["0.tar"]


def test_what_is_no_source(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    write_tar(tmp_path / "sub" / "0.tar", [])
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").write_bytes(b"")
    (tmp_path / "b.parquet").write_bytes(b"")
    for text, message in (
        ("{0..3}.tar", r"there is no .*0\.tar \(4 of 4 are missing\)\. A source is"),
        ("sub/{0..3}.tar", r"there is no .*1\.tar \(3 of 4 are missing\)\."),
        ("none", r"there is no .*none\. A source is img2dataset's tars"),
        ("empty", r"empty holds no pairs\. A source is"),
        ("a.zip", "is not a source of pairs"),
        ("{sub,b.parquet}", r"several kinds \(parquet, tar\)"),
        ("sub/{0,0}.tar", r"0\.tar is named twice"),
    ):
        with pytest.raises(UserError, match=message):
            names(tmp_path / text)
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(
        UserError, match=r"holds no pairs itself, but folders in it do: sub\. Name one of them, such as .*sub;"
    ):
        names(tmp_path)


def test_an_option_without_effect_is_an_error(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(UserError, match="--image-column is for parquet; this source is of kind tar"):
        names(tmp_path, image_column="image")
    with pytest.raises(UserError, match="--image-norm is for ready-made embeddings; this source is of kind tar"):
        names(tmp_path, image_norm=20.0)


def test_pairs_that_a_folder_of_tars_holds_besides_are_counted(
    tmp_path: Path, write_tar: Callable, picture: Callable
) -> None:
    for name in ("00000.tar", "00001.tar", "deep/00000.tar", ".hidden/00000.tar"):
        write_tar(tmp_path / name, [(name[-5], {"png": picture(), "txt": b"a"})])
    for name in ("00000.parquet", "other.parquet", "deep/metadata.jsonl", "pairs/a.png", "pairs/b.png", "pairs/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("a", "b"):
        (tmp_path / "pairs" / f"{name}.txt").write_text(name)
    first, last = (list(shard.read()) for shard in open_source(str(tmp_path), SourceOptions()).shards)
    assert [type(sample) for sample in (*first, *last)] == [RawPair, RawPair, Unused, Unused]
    files, pictures = last[1:]
    assert isinstance(files, Unused)
    assert isinstance(pictures, Unused)
    # img2dataset's table next to its tar, and what is hidden, are no pairs that are left out
    assert (files.key, files.number) == ("other.parquet", 3)
    assert (pictures.key, pictures.number) == (str(Path("pairs/a.png")), 2)
    named = open_source(str(tmp_path / "0000{0..1}.tar"), SourceOptions()).shards
    assert [type(sample) for shard in named for sample in shard.read()] == [RawPair, RawPair]
