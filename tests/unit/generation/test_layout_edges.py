"""Edges of a layout picture: OpenCV's Canny with the authors' thresholds, or the picture itself where it is an edge map."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from syzygy.core.errors import UserError
from syzygy.generation.image_files import to_tensor
from syzygy.generation.layout_edges import edge_map


def drawing() -> Image.Image:
    """A grey disc and a red box on white, and a disc that is too faint for the thresholds."""
    image = Image.new("RGB", (60, 40), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, 30, 30), fill=(90, 90, 90))
    draw.rectangle((36, 8, 52, 30), fill=(220, 20, 20))
    draw.ellipse((40, 32, 46, 38), fill=(240, 240, 240))
    return image


def lines() -> Image.Image:
    image = Image.new("L", (60, 40))
    ImageDraw.Draw(image).rectangle((10, 10, 40, 30), outline=255, width=2)
    return image


def test_edges_are_those_of_canny_at_the_authors_thresholds() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed (pip install -e '.[edges]')")
    found = np.asarray(edge_map(drawing()))
    assert found.shape == (40, 60, 3)
    assert np.array_equal(found, cv2.Canny(np.asarray(drawing()), 100, 200)[..., None].repeat(3, 2))
    outline = found[..., 0] == 255
    assert outline[8:31, 34:54].sum() > 60  # the box
    assert not outline[12:26, 40:48].any()  # but not its inside
    assert not outline[32:39, 38:49].any()  # nor the faint disc
    assert np.array_equal(np.asarray(edge_map(to_tensor(drawing()))), found)
    assert np.array_equal(np.asarray(edge_map(edge_map(drawing()))), found)  # edges are not looked for twice


def test_a_white_shape_on_black_is_a_picture_and_no_edge_map() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (pip install -e '.[edges]')")
    shape = Image.new("RGB", (60, 40))
    ImageDraw.Draw(shape).rectangle((10, 10, 40, 30), fill="white")
    found = np.asarray(edge_map(shape))
    assert not found[14:26, 14:36].any()
    assert found.any()


def test_pictures_without_edges_are_refused() -> None:
    with pytest.raises(UserError, match="the layout picture has no edges"):
        edge_map(Image.new("RGB", (8, 8)))
    pytest.importorskip("cv2", reason="OpenCV is not installed (pip install -e '.[edges]')")
    for colour in ("white", "grey"):
        with pytest.raises(UserError, match="the layout picture has no edges"):
            edge_map(Image.new("RGB", (8, 8), colour))


def test_without_opencv_edge_maps_are_read_and_others_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    lines().save(tmp_path / "edges.png")
    assert np.array_equal(np.asarray(edge_map(tmp_path / "edges.png")), np.asarray(lines().convert("RGB")))
    with pytest.raises(UserError, match=r"needs OpenCV: run pip install -e '\.\[edges\]'.*white lines on black"):
        edge_map(drawing())


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        edge_map(tmp_path / "none.png")
    with pytest.raises(UserError, match=r"from 0 to 1; this one's are from 0 to 2"):
        edge_map(torch.linspace(0, 2, 3 * 4 * 4).view(3, 4, 4))
