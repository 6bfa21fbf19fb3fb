"""`syzygy world read` with the starter's reader: what was drawn is what is read; wrong files are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CAPTION = "a red striped circle left of a blue star, in night style"


@pytest.fixture
def drawn(syzygy: Callable[..., Any], tmp_path: Path) -> Path:
    answer = syzygy("world", "show", CAPTION, "--out", tmp_path / "scene.png")
    assert answer.code == 0, answer.err
    return tmp_path / "scene.png"


def test_what_was_drawn_is_read(syzygy: Callable[..., Any], drawn: Path) -> None:
    answer = syzygy("world", "read", drawn, "--says", CAPTION)
    assert answer.code == 0, answer.err
    head, first, second, verdict, *atoms = answer.out.splitlines()
    assert head == f"{drawn}: 2 objects, night style"
    assert "red striped circle" in first
    assert "blue" in second
    assert verdict.strip() == "agrees with the caption"
    assert all(line.split()[0] == "yes" for line in atoms)
    assert [line.split()[1] for line in atoms] == [
        "shape:",
        "colour:",
        "texture:",
        "shape:",
        "colour:",
        "relation:",
        "style:",
    ]


def test_a_wrong_caption_is_told_and_what_it_leaves_out(syzygy: Callable[..., Any], drawn: Path) -> None:
    answer = syzygy("world", "read", drawn, drawn, "--says", "a green circle", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)["pictures"]
    assert len(found) == 2
    assert not found[0]["agrees"]
    assert {(a["kind"], a["holds"]) for a in found[0]["atoms"]} == {("shape", True), ("colour", False)}
    assert found[0]["extra"] == 1
    assert [thing["shape"] for thing in found[0]["things"]] == ["circle", "star"]
    assert found[0]["things"][0]["x"] < found[0]["things"][1]["x"]


def test_pictures_of_any_size_and_mode(syzygy: Callable[..., Any], drawn: Path, tmp_path: Path) -> None:
    with Image.open(drawn) as image:
        image.resize((200, 200), Image.Resampling.BICUBIC).convert("RGBA").save(tmp_path / "big.png")
        image.convert("L").save(tmp_path / "grey.png")
    answer = syzygy("world", "read", tmp_path / "big.png", tmp_path / "grey.png", "--json")
    assert answer.code == 0, answer.err
    big, grey = json.loads(answer.out)["pictures"]
    assert [thing["shape"] for thing in big["things"]] == ["circle", "star"]
    assert "things" in grey


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "folder", "no object"])
def test_wrong_input(kind: str, syzygy: Callable[..., Any], drawn: Path, tmp_path: Path) -> None:
    path, caption = tmp_path / "x.png", "a star"
    if kind == "truncated":
        path.write_bytes(drawn.read_bytes()[:200])
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "folder":
        path.mkdir()
    elif kind == "no object":
        path, caption = drawn, "a storm"
    answer = syzygy("world", "read", path, "--says", caption)
    assert (answer.code, answer.out) == (2, "")
    assert ("storm" if kind == "no object" else "x.png") in answer.err
    assert len(answer.err.splitlines()) <= 2


def test_the_starters_classifiers_read_well_enough_and_agree(syzygy: Callable[..., Any]) -> None:
    answer = syzygy("evaluate", "reader", "--num", 300, "--prompts", 1, "--steps", 4, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    for name in ("reader", "judge"):
        scores = found[name]["accuracy"]
        assert scores.keys() == {"clean", "blur", "noise", "mottle", "shift", "autoencoder"}
        assert min(scores["clean"][kind] for kind in ("attributes", "count", "style")) >= 0.98
        assert min(one["attributes"] for one in scores.values()) >= 0.93
        assert found[name]["count"]["clean"].keys() == {"1", "2", "3", "4"}
    assert found["reader"]["fingerprint"] != found["judge"]["fingerprint"]
    both = found["agreement"]
    assert both["images"] >= 12
    assert both["style"] >= 0.8
    assert abs(both["prompt_accuracy"]["reader"] - both["prompt_accuracy"]["judge"]) <= 1 - both["verdict"] + 1e-3
    table = syzygy("evaluate", "reader", "--num", 40, "--prompts", 0).out
    assert "judge, shape: true values in rows, predictions in columns" in table
    assert "missed" in table
    assert "agree" not in table
