"""Images, masks and depth maps by command line and HTTP, on tiny random models."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from syzygy.generation.image_files import open_picture, read_record
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained.families import family
from tests.conftest import Answer
from tests.hub_cache import COMMIT, add_snapshot
from tests.tiny_unclip import Tiny

PROMPT = "a red circle left of a blue star"
SIDE = 64


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, a mask of its left half (transparent elsewhere), and a depth map."""
    folder = tmp_path_factory.mktemp("pictures")
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    colours = np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[:, None], (1, SIDE)), np.full((SIDE, SIDE), 90)], -1)
    Image.fromarray(colours.astype(np.uint8)).save(folder / "image.png")
    mask = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    mask.paste("white", (0, 0, SIDE // 2, SIDE))
    mask.save(folder / "mask.png")
    Image.fromarray(np.tile(ramp, (SIDE, 1))).save(folder / "depth.png")
    Image.new("L", (SIDE, SIDE)).save(folder / "black.png")
    return folder


@pytest.fixture
def run(syzygy: Callable[..., Answer], tmp_path: Path) -> Callable[..., Answer]:
    def run(model: Path | Tiny, *arguments: object) -> Answer:
        if isinstance(model, Path):
            parts: tuple[object, ...] = ("--model", model)
        else:
            parts = ("--model", model.decoder, "--clip", model.clip, "--prior", model.prior)
        common = ("--device", "cpu", "--steps", 4, "--seed", 7, "--json", "--out", tmp_path / "out")
        return syzygy("generate", PROMPT, *parts, *common, *arguments)

    return run


def first(answer: Answer) -> Path:
    assert (answer.code, answer.err) == (0, ""), answer.err
    return Path(json.loads(answer.out)["images"][0]["path"])


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(open_picture(path), int)


def test_image_to_image_is_recorded_and_is_the_call(
    run: Callable[..., Answer], pictures: Path, tiny_kandinsky: Tiny
) -> None:
    image = pictures / "image.png"
    found = first(run(tiny_kandinsky, "--image", image, "--strength", 0.5, "--num-images", 2))
    record = read_record(found)
    assert (record["image"], record["strength"]) == ({"picture": str(image), "sha256": sha(image)}, 0.5)
    assert "mask" not in record
    model = TextToImage.from_pretrained(tiny_kandinsky.decoder, clip=tiny_kandinsky.clip, prior=tiny_kandinsky.prior)
    made = model(PROMPT, image=image, strength=0.5, num_inference_steps=4, generator=[torch.Generator().manual_seed(7)])
    assert np.abs(pixels(found) - np.asarray(made.images[0], int)).max() <= 1
    assert np.abs(pixels(found) - pixels(first(run(tiny_kandinsky)))).mean() > 1
    default = first(run(tiny_kandinsky, "--image", image))
    assert read_record(default)["strength"] == 0.3


def test_inpainting_is_recorded(run: Callable[..., Answer], pictures: Path, tiny_kandinsky_inpaint: Tiny) -> None:
    image, mask = pictures / "image.png", pictures / "mask.png"
    found = first(run(tiny_kandinsky_inpaint, "--image", image, "--mask", mask))
    record = read_record(found)
    assert record["mask"] == {"picture": str(mask), "sha256": sha(mask)}
    assert "strength" not in record
    model = TextToImage.from_pretrained(
        tiny_kandinsky_inpaint.decoder, clip=tiny_kandinsky_inpaint.clip, prior=tiny_kandinsky_inpaint.prior
    )
    tensor = torch.zeros(32, 32)
    tensor[:, :16] = 1
    made = model(PROMPT, image=image, mask=tensor, num_inference_steps=4, generator=[torch.Generator().manual_seed(7)])
    assert np.abs(pixels(found) - np.asarray(made.images[0], int)).max() <= 1


def test_depth_maps_are_recorded(run: Callable[..., Answer], pictures: Path, tiny_kandinsky_depth: Tiny) -> None:
    depth, image = pictures / "depth.png", pictures / "image.png"
    found = first(run(tiny_kandinsky_depth, "--depth", depth))
    assert read_record(found)["depth"] == {"picture": str(depth), "sha256": sha(depth)}
    both = first(run(tiny_kandinsky_depth, "--depth", depth, "--image", image))
    assert np.abs(pixels(found) - pixels(both)).mean() > 1


def test_published_names_are_found_in_the_hubs_cache(
    cache: Path, tiny_kandinsky_inpaint: Tiny, tiny_kandinsky_depth: Tiny
) -> None:
    for name, tiny in (
        ("kandinsky-2.2-inpaint", tiny_kandinsky_inpaint),
        ("kandinsky-2.2-controlnet-depth", tiny_kandinsky_depth),
    ):
        add_snapshot(cache, tiny.decoder, family(name).hub_id or "", COMMIT, "main")
        model = TextToImage.from_pretrained(name, clip=tiny.clip, prior=tiny.prior)
        decoder = model.pipeline.decoder
        assert (decoder.takes_mask, decoder.takes_depth) == (name.endswith("inpaint"), name.endswith("depth"))


def test_our_own_model_takes_image_and_mask(run: Callable[..., Answer], pictures: Path, tiny_model: Path) -> None:
    image, mask = pictures / "image.png", pictures / "mask.png"
    assert read_record(first(run(tiny_model, "--image", image)))["strength"] == 0.6
    kept = pixels(first(run(tiny_model, "--image", image, "--mask", mask)))
    other = pixels(first(run(tiny_model, "--image", image, "--mask", mask, "--seed", 8)))
    # The autoencoder sees beyond the border of the mask, but not to the other end of the picture.
    assert np.abs(kept[:, -4:] - other[:, -4:]).mean() < np.abs(kept[:, :4] - other[:, :4]).mean() / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask", "mask.png"], "mask has no effect without an image"),
        (["--strength", 0.5], "strength has no effect without an image"),
        (["--image", "image.png", "--strength", 2], "strength must be above 0 and at most 1, got 2."),
        (["--image", "nowhere.png"], "there is no file"),
        (["--image", "image.png", "--mask", "black.png"], "the mask is nowhere white"),
        (["--depth", "depth.png"], "cannot read a depth map"),
    ],
)
def test_wrong_input_is_one_line(
    options: list[object], message: str, run: Callable[..., Answer], pictures: Path, tiny_model: Path
) -> None:
    said = run(tiny_model, *(pictures / one if str(one).endswith(".png") else one for one in options))
    flat = " ".join(said.err.split())
    assert (said.code, message in flat, "Traceback" in said.err) == (2, True, False), flat


def test_a_decoder_says_which_models_can(
    run: Callable[..., Answer], pictures: Path, tiny_stable_unclip: Tiny, tiny_kandinsky_inpaint: Tiny
) -> None:
    said = run(tiny_stable_unclip, "--image", pictures / "image.png")
    assert "Models that can: starter, kandinsky-2.2, kandinsky-2.2-controlnet-depth" in " ".join(said.err.split())
    said = run(tiny_kandinsky_inpaint)
    assert "repaints a part of an image: give an image and a mask" in " ".join(said.err.split())
