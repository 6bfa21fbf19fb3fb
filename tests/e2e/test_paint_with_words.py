"""Painting words from the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from syzygy.core import artifacts
from syzygy.core.contracts import Region
from syzygy.generation.image_files import read_record
from syzygy.generation.text_to_image import TextToImage
from syzygy.regions.region_bias import REGION_STRENGTH

PROMPT = "a red star and a blue ring"
REGIONS = ("--region", "#ff0000=red star", "--region", "#0000ff=blue ring")


@pytest.fixture
def canvas(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((4, 8, 27, 55), "red")
    draw.rectangle((36, 8, 59, 55), "blue")
    picture.save(tmp_path / "canvas.png")
    return tmp_path / "canvas.png"


def paint(syzygy, model: Path, out: Path, *arguments) -> tuple[bytes, dict]:
    answer = syzygy("generate", PROMPT, "--model", model, "--out", out, "--json", *arguments)
    assert answer.code == 0, answer.err
    path = Path(json.loads(answer.out)["images"][0]["path"])
    return Image.open(path).tobytes(), read_record(path)


def test_what_is_painted_is_painted_elsewhere(syzygy, tiny_model: Path, canvas: Path, tmp_path: Path) -> None:
    plain, _ = paint(syzygy, tiny_model, tmp_path / "plain")
    painted, record = paint(syzygy, tiny_model, tmp_path / "painted", "--canvas", canvas, *REGIONS)
    assert painted != plain
    assert [region["phrase"] for region in record["regions"]] == ["red star", "blue ring"]
    strong, record = paint(
        syzygy,
        tiny_model,
        tmp_path / "strong",
        "--canvas",
        canvas,
        "--region-strength",
        3,
        "--mask-blur",
        0.1,
        *REGIONS,
    )
    assert strong not in (plain, painted)
    assert record["region_strength"] == 3
    old, _ = paint(
        syzygy, tiny_model, tmp_path / "old", "--canvas", canvas, "--paint-strength=3", "--mask-blur", 0.1, *REGIONS
    )
    assert old == strong
    none, _ = paint(syzygy, tiny_model, tmp_path / "none", "--canvas", canvas, "--region-strength", 0, *REGIONS)
    assert max(abs(a - b) for a, b in zip(none, plain, strict=True)) <= 1


def test_a_model_has_strengths_of_its_own(syzygy, tiny_model: Path, canvas: Path, tmp_path: Path) -> None:
    own, none = tmp_path / "own", tmp_path / "none"
    for model, strengths in ((own, {"region_strength": 3.0, "style_guidance": 0.5}), (none, {"style_guidance": None})):
        shutil.copytree(tiny_model, model)
        index = artifacts.read_json(model / "model_index.json")
        artifacts.write_json(model / "model_index.json", index | {"defaults": index["defaults"] | strengths})
    told, _ = paint(syzygy, tiny_model, tmp_path / "t", "--canvas", canvas, "--region-strength", 3, *REGIONS)
    weak, usual = paint(syzygy, tiny_model, tmp_path / "w", "--canvas", canvas, *REGIONS)
    found, record = paint(syzygy, own, tmp_path / "o", "--canvas", canvas, *REGIONS)
    assert (record["region_strength"], usual["region_strength"]) == (3.0, REGION_STRENGTH)
    assert found == told != weak
    told, _ = paint(syzygy, tiny_model, tmp_path / "ts", "--style", canvas, "--style-guidance", 0.5)
    joint, usual = paint(syzygy, none, tmp_path / "js", "--style", canvas)
    found, record = paint(syzygy, own, tmp_path / "os", "--style", canvas)
    assert (record["style_guidance"], usual.get("style_guidance")) == (0.5, None)
    assert found == told != joint


def test_no_strength_is_unpainted_to_the_bit(tiny_model: Path) -> None:
    model, half = TextToImage.from_pretrained(tiny_model), torch.zeros(8, 8)
    half[:, :4] = 1

    def picture(**settings) -> bytes:
        return model(PROMPT, generator=torch.Generator().manual_seed(0), **settings).images[0].tobytes()

    region = [Region("red star", half)]
    assert picture(regions=region, region_strength=0.0) == picture(regions=[Region("red star", half, 0.0)]) == picture()
    assert picture(regions=region) != picture()
    assert picture(regions=[region]) == picture(regions=region)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--region", "#ff0000=red star"), "there is no canvas"),
        (("--canvas", "CANVAS"), "--canvas and --mask-blur are for regions"),
        (("--canvas", "CANVAS", "--region", "#ff0000=red star"), "#0000ff, which no region names"),
        (("--canvas", "CANVAS", *REGIONS[:3], "#0000ff=green ring"), "does not contain the phrase 'green ring'"),
        (("--canvas", "CANVAS", *REGIONS, "--mask-blur", "2"), "below 1"),
        (("--canvas", "CANVAS", *REGIONS, "--region-strength", "-1"), "at least 0"),
        (("--region-strength", "1"), "no effect without regions"),
        (("--canvas", "CANVAS", *REGIONS, "--conditions", "image"), "let it read the text"),
        (("--canvas", "nowhere.png", *REGIONS), "nowhere.png"),
    ],
)
def test_wrong_input(syzygy, tiny_model: Path, canvas: Path, tmp_path: Path, arguments, message: str) -> None:
    given = [canvas if one == "CANVAS" else one for one in arguments]
    answer = syzygy("generate", PROMPT, "--model", tiny_model, "--out", tmp_path / "out", *given)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


def test_experts_take_the_decoders_place(syzygy, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ("task.batch_size=4", "loop.steps=2", "loop.validate_every=2", "loop.checkpoint_every=2", "loop.warmup=0",
             "loop.lr=0.05", 'leaves=["E1_0","E1_1"]')  # fmt: skip
    for form in ("full", "lora"):
        answer = syzygy("train", "experts", "--model", tiny_model, "--out", run / form, f"form={form}", *small)
        assert answer.code == 0, answer.err
        plain, _ = paint(syzygy, tiny_model, tmp_path / form / "plain")
        expert, record = paint(syzygy, tiny_model, tmp_path / form / "experts", "--experts", run / form)
        assert expert != plain
        assert record["experts"] == str(run / form)
    answer = syzygy("generate", PROMPT, "--model", tiny_model, "--out", tmp_path, "--experts", tmp_path / "nowhere")
    assert (answer.code, answer.out) == (2, "")
    assert "holds no experts" in answer.err


def test_a_style_takes_the_priors_place(syzygy, tiny_model: Path, canvas: Path, tmp_path: Path) -> None:
    plain, _ = paint(syzygy, tiny_model, tmp_path / "plain")
    styled, record = paint(syzygy, tiny_model, tmp_path / "styled", "--style", canvas)
    assert styled != plain
    assert (record["style"]["picture"], len(record["style"]["sha256"])) == (str(canvas), 16)
    weighed, record = paint(syzygy, tiny_model, tmp_path / "weighed", "--style", canvas, "--style-guidance", 0)
    assert weighed not in (plain, styled)
    assert record["style_guidance"] == 0
    alone, record = paint(syzygy, tiny_model, tmp_path / "alone", "--style", canvas, "--style-content", "a blue ring")
    assert alone not in (plain, styled)
    assert record["style_content"] == "a blue ring"
    for arguments, message in (
        (("--style", "nowhere.png"), "nowhere.png"),
        (("--style-content", "a ring"), "--style-content describes a style reference"),
        (("--style", canvas, "--style-content", ""), "style_content is empty"),
        (("--style-guidance", "2"), "style_guidance has no effect without a style"),
        (("--style", canvas, "--style-guidance", "-1"), "at least 0"),
        (("--style", canvas, "--conditions", "image"), "a style is read with the text"),
    ):
        answer = syzygy("generate", PROMPT, "--model", tiny_model, "--out", tmp_path / "wrong", *arguments)
        assert (answer.code, answer.out) == (2, "")
        assert message in answer.err
