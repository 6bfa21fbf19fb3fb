"""`syzygy world`: an image folder that can be trusted, and scenes of captions."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from syzygy.cli.main import cli
from syzygy.core.errors import UserError
from syzygy.generation.image_files import read_record
from syzygy.lab.commands import world_commands
from syzygy.lab.world import scene_source as source
from syzygy.lab.world.language import language


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["world", *map(str, args)])


def refused(*args: str | Path) -> str:
    """The message of the `UserError`."""
    result = run(*args)
    assert isinstance(result.exception, UserError), result
    assert result.stdout == ""
    return str(result.exception)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_sample_writes_the_pairs_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_commands, "BATCH_PIXELS", 3 * 32 * 32)
    result = run("sample", "--num", "7", "--out", tmp_path / "a", "--seed", "5", "--size", "32", "--json")
    pairs = source.pairs(5, 0, 7)
    names = [f"{i:08}.png" for i in range(7)]
    assert sorted(contents(tmp_path / "a")) == [*names, "metadata.jsonl", "sample.json"]
    summary = json.loads(result.stdout)
    assert summary["pictures"] == 7
    assert summary["settings"] == {"num": 7, "seed": 5, "size": 32, "unseen": "include", "length": "short"}
    assert [row["file_name"] for row in rows(tmp_path / "a")] == names
    for row, pair, picture in zip(rows(tmp_path / "a"), pairs, source.pictures(pairs, 32), strict=True):
        assert row["text"] == pair.caption.text
        assert row["style"] == pair.scene.style
        assert [(t["shape"], t["colour"], t["texture"]) for t in row["things"]] == [
            t.appearance for t in pair.scene.things
        ]
        assert [t["x"] for t in row["things"]] == [t.x for t in pair.scene.things]
        assert [m["count"] for m in row["description"]["mentions"]] == [
            m.count for m in pair.caption.description.mentions
        ]
        for span in row["spans"]:
            mention = row["description"]["mentions"][span["mention"]]
            assert mention["shape"] in row["text"][span["start"] : span["stop"]]
        with Image.open(tmp_path / "a" / row["file_name"]) as image:
            pixels = torch.tensor(list(image.tobytes())).view(32, 32, 3).permute(2, 0, 1)
        assert (pixels / 255 - picture).abs().max() <= 0.51 / 255


def test_sample_settings_take_effect(tmp_path: Path) -> None:
    result = run("sample", "--num", "12", "--out", tmp_path / "a", "--unseen", "exclude", "--length", "long")
    assert "12 images (0 with an unseen composition)" in result.stdout
    assert all(len(row["text"].split()) >= 100 for row in rows(tmp_path / "a"))
    run("sample", "--num", "12", "--out", tmp_path / "b")
    assert [row["things"] for row in rows(tmp_path / "a")] != [row["things"] for row in rows(tmp_path / "b")]


def test_an_interrupted_sample_is_finished_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "sample", "--num", "6", "--size", "16", "--out"
    run(*command, tmp_path / "whole")
    monkeypatch.setattr(world_commands, "BATCH_PIXELS", 2 * 16 * 16)
    replace, moved = os.replace, []

    def failing(source: Path, target: Path) -> None:
        moved.append(target)
        if len(moved) == 5:  # settings and three pictures are in place
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        assert "No space left on device. Free some space" in refused(*command, tmp_path / "cut")
    assert not (tmp_path / "cut" / "metadata.jsonl").exists()
    for _ in range(2):  # finish it; do it again
        assert run(*command, tmp_path / "cut").exit_code == 0
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_sample_keeps_its_hands_off_other_folders(tmp_path: Path) -> None:
    run("sample", "--num", "2", "--size", "16", "--out", tmp_path / "a")
    before = contents(tmp_path / "a")
    message = refused("sample", "--num", "2", "--size", "16", "--seed", "1", "--out", tmp_path / "a")
    assert message.endswith("contains a sample with other settings (seed 0). Choose another folder.")
    assert contents(tmp_path / "a") == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("mine")
    assert "contains other files" in refused("sample", "--num", "2", "--out", tmp_path / "b")
    assert list(contents(tmp_path / "b")) == ["letter.txt"]
    assert "cannot write to" in refused("sample", "--num", "2", "--out", tmp_path / "b" / "letter.txt")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num", "0"], "0 is out of range; allowed: at least 1."),
        (["--num", "1", "--size", "15"], "15 is out of range; allowed: from 16 to 1024."),
        (["--num", "1", "--unseen", "only"], "'only' is not one of 'include', 'exclude'."),
        ([], "Missing option '--num'."),
    ],
)
def test_wrong_settings_write_nothing(tmp_path: Path, args: list[str], message: str) -> None:
    result = run("sample", *args, "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "a").exists()


def test_show_renders_what_it_understood(tmp_path: Path) -> None:
    caption = "a striped red circle left of two blue stars in night style"
    result = run("show", caption, "--out", tmp_path / "new" / "a.png", "--size", "96", "--seed", "3")
    understood, path = result.stdout.splitlines()
    assert understood == (
        "understood: striped red circle, 2 × blue star; striped red circle left of 2 × blue star; night style"
    )
    assert result.stderr == ""
    assert read_record(Path(path)) == {"prompt": caption, "seed": 3, "size": 96, "num": 1}
    with Image.open(path) as image:
        assert image.size == (96, 96)
        assert max(image.getpixel((0, 0))) < 90  # night


def test_show_grid_and_what_is_there_already(tmp_path: Path) -> None:
    command = "show", "three circles", "--size", "16", "--out", tmp_path / "a.png"
    first = run(*command, "--num", "5").stdout.splitlines()[-1]
    with Image.open(first) as image:
        assert image.size == (3 * 18 - 2, 2 * 18 - 2)
        cells = [image.crop((18 * (i % 3), 18 * (i // 3), 18 * (i % 3) + 16, 18 * (i // 3) + 16)) for i in range(6)]
        one = run(*command).stdout.splitlines()[-1]
        assert one == str(tmp_path / "a-2.png")
        with Image.open(one) as alone:
            assert cells[0].tobytes() == alone.tobytes()
    assert len({cell.tobytes() for cell in cells}) == 6
    assert set(cells[5].tobytes()) == {255}
    before = Path(first).read_bytes()
    assert run(*command, "--num", "5").stdout.splitlines()[-1] == first
    assert Path(first).read_bytes() == before


def test_show_warns_of_words_without_effect(tmp_path: Path) -> None:
    result = run("show", "a purpel red blue circle above", "--out", tmp_path / "a.png")
    assert result.exit_code == 0
    assert result.stdout.startswith("understood: blue circle\n")
    lines = result.stderr.splitlines()
    assert lines[0].startswith(
        "warning: this world does not know the word 'purpel'; the nearest known words are purple, "
    )
    assert lines[1:] == [
        f"warning: {word!r} belongs to no object of the caption and is ignored." for word in ("red", "above")
    ]


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("", "the text is empty. Describe"),
        ("a dog", "'a dog' names no object of this world in English."),
        ("three circles and two stars", "names more than 4 objects. Name fewer."),
    ],
)
def test_captions_without_a_scene(tmp_path: Path, caption: str, message: str) -> None:
    assert message in refused("show", caption, "--out", tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_show_writes_png_only(tmp_path: Path) -> None:
    assert "does not end in .png" in refused("show", "a circle", "--out", tmp_path / "a.jpg")


def test_what_is_said_of_a_scene_can_be_shown(tmp_path: Path) -> None:
    for pair in source.pairs(1, 0, 5, length="medium"):
        result = run("show", pair.caption.text, "--size", "16", "--out", tmp_path / "a.png")
        assert (result.exit_code, result.stderr) == (0, "")
        assert language("en").parse(pair.caption.text).unknown == {}
