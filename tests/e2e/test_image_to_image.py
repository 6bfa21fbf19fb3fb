"""Images, masks and depth maps by command line and HTTP, on tiny random models."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from syzygy.generation.image_files import RECORD_KEY, open_picture, read_record, record_of
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained.families import family
from syzygy.server.app import create_app
from syzygy.server.engine import Engine
from syzygy.server.http_server import serving
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
    options: list[Any], message: str, run: Callable[..., Answer], pictures: Path, tiny_model: Path
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


GENERATIONS, EDITS, RECIPES = (f"/v1/images/{name}" for name in ("generations", "edits", "recipes"))


@contextmanager
def served(model: TextToImage) -> Iterator[httpx.Client]:
    names = {"steps": "num_inference_steps", "guidance_scale": "guidance_scale", "sampler": "sampler"}
    own = {name: model.defaults[theirs] for name, theirs in names.items()}
    engine = Engine.of(
        model, {**own, "steps": 4, "conditions": list(model.pipeline.conditions), "negative_prompt": None}
    )
    with serving(create_app(engine)) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def loaded(
    tiny_kandinsky: Tiny, tiny_kandinsky_inpaint: Tiny, tiny_kandinsky_depth: Tiny, tiny_stable_unclip: Tiny
) -> dict[str, TextToImage]:
    tinies = {
        "plain": tiny_kandinsky,
        "inpaint": tiny_kandinsky_inpaint,
        "depth": tiny_kandinsky_depth,
        "unclip": tiny_stable_unclip,
    }
    return {
        name: TextToImage.from_pretrained(tiny.decoder, clip=tiny.clip, prior=tiny.prior)
        for name, tiny in tinies.items()
    }


def text_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def image_in(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))


def refusal(answer: httpx.Response) -> tuple[str, str]:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


def again(client: httpx.Client, image: Image.Image) -> Image.Image:
    """The image that the request of its record generates."""
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=_info(image))
    recipe = client.post(RECIPES, files={"image": file.getvalue()}).json()
    assert (recipe["missing"], recipe["notes"]) == ([], [])
    return image_in(client.post(recipe["request"]["path"], json=recipe["request"]["body"]))


def _info(image: Image.Image) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(RECORD_KEY, image.info[RECORD_KEY])
    return chunks


def inverted(pictures: Path) -> bytes:
    """The mask as OpenAI's API has it: transparent where it changes the image."""
    alpha = Image.open(pictures / "mask.png").getchannel("A")
    data = io.BytesIO()
    Image.merge("LA", (alpha, alpha.point(lambda level: 255 - level))).save(data, "PNG")
    return data.getvalue()


def test_generations_over_http_start_from_an_image(loaded: dict[str, TextToImage], pictures: Path) -> None:
    image = pictures / "image.png"
    with served(loaded["plain"]) as client:
        asked = {"prompt": PROMPT, "seed": 7, "image": text_of(image)}
        found = image_in(client.post(GENERATIONS, json={**asked, "strength": 0.5}))
        record = record_of(found, "it")
        assert (record["image"], record["strength"]) == ({"sha256": sha(image), "data": text_of(image)}, 0.5)
        assert again(client, found).tobytes() == found.tobytes()
        assert record_of(image_in(client.post(GENERATIONS, json=asked)), "it")["strength"] == 0.3
        big = image_in(client.post(GENERATIONS, json={**asked, "size": "64x48"}))
        assert big.size == (64, 48)
        made = loaded["plain"](
            PROMPT, image=image, strength=0.5, num_inference_steps=4, generator=[torch.Generator().manual_seed(7)]
        )
        assert np.abs(np.asarray(found, int) - np.asarray(made.images[0], int)).max() <= 1
        for more, param, message in (
            ({"image": None, "strength": 0.5}, "strength", "strength is for an image: give one"),
            ({"mask": text_of(image)}, "mask", "cannot inpaint: leave mask out"),
            ({"depth": text_of(image)}, "depth", "cannot read a depth map: leave depth out"),
            ({"strength": 0}, "strength", "> 0"),
            ({"image": "?"}, "image", "a picture's file in base64"),
        ):
            field, text = refusal(client.post(GENERATIONS, json={**asked, **more}))
            assert (field, message in text) == (param, True), text


def test_generations_over_http_inpaint_and_follow_depth(loaded: dict[str, TextToImage], pictures: Path) -> None:
    image, mask, depth = (pictures / f"{name}.png" for name in ("image", "mask", "depth"))
    asked = {"prompt": PROMPT, "seed": 7}
    with served(loaded["inpaint"]) as client:
        both = {**asked, "image": text_of(image), "mask": text_of(mask)}
        found = image_in(client.post(GENERATIONS, json=both))
        assert record_of(found, "it")["mask"]["sha256"] == sha(mask)
        assert "strength" not in record_of(found, "it")
        assert again(client, found).tobytes() == found.tobytes()
        black = {**both, "mask": text_of(pictures / "black.png")}
        assert refusal(client.post(GENERATIONS, json=black)) == (
            "mask",
            "the mask is nowhere white: make it white where the image should be repainted.",
        )
        assert "give an image and a mask" in refusal(client.post(GENERATIONS, json=asked))[1]
    with served(loaded["depth"]) as client:
        found = image_in(client.post(GENERATIONS, json={**asked, "depth": text_of(depth)}))
        assert record_of(found, "it")["depth"]["sha256"] == sha(depth)
        assert again(client, found).tobytes() == found.tobytes()
        can = client.get("/v1/models").json()["data"][0]["capabilities"]
        assert [can[name] for name in ("image", "mask", "depth")] == [True, False, True]


def test_edits_inpaint_where_the_model_can(loaded: dict[str, TextToImage], pictures: Path) -> None:
    image, mask = (pictures / "image.png").read_bytes(), inverted(pictures)
    with served(loaded["inpaint"]) as client:
        asked = {"prompt": PROMPT, "seed": "7", "input_fidelity": "high"}
        answer = client.post(EDITS, files={"image": image, "mask": mask}, data=asked)
        found = image_in(answer)
        assert answer.json()["warnings"] == []
        body = {"prompt": PROMPT, "seed": 7, "image": text_of(pictures / "image.png")}
        same = image_in(client.post(GENERATIONS, json={**body, "mask": text_of(pictures / "mask.png")}))
        assert found.tobytes() == same.tobytes()
        assert again(client, found).tobytes() == found.tobytes()
        alone = client.post(EDITS, files={"image": image}, data={"prompt": PROMPT})
        assert "give an image and a mask" in refusal(alone)[1]
        for more, files, param, message in (
            ({"region": "a blue star"}, {"mask": mask}, "region", "does not support regions"),
            ({"mask_blur": "0.1"}, {"mask": mask}, "mask_blur", "mask_blur is for a region"),
            ({"style_content": "a"}, {"mask": mask}, "style_content", "style_content is for a style"),
        ):
            answer = client.post(EDITS, files={"image": image, **files}, data={"prompt": PROMPT, **more})
            field, text = refusal(answer)
            assert (field, message in text) == (param, True), text
        two = [("image[]", image), ("image[]", image), ("mask", mask)]
        assert (
            "does not support a style reference: send one picture"
            in refusal(client.post(EDITS, files=two, data={"prompt": PROMPT}))[1]
        )


def test_edits_without_a_mask_start_from_the_image(
    loaded: dict[str, TextToImage], pictures: Path, tiny_model: Path
) -> None:
    files = {"image": (pictures / "image.png").read_bytes()}
    with served(loaded["plain"]) as client:
        answer = client.post(EDITS, files=files, data={"prompt": PROMPT})
        assert (record_of(image_in(answer), "it")["strength"], answer.json()["warnings"]) == (0.3, [])
        masked = client.post(EDITS, files={**files, "mask": inverted(pictures)}, data={"prompt": PROMPT})
        assert refusal(masked)[0] == "mask"
    with served(TextToImage.from_pretrained(tiny_model)) as client:
        answer = client.post(EDITS, files=files, data={"prompt": PROMPT, "strength": "0.5"})
        record = record_of(image_in(answer), "it")
        assert (record["strength"], "style" in record, answer.json()["warnings"]) == (0.5, False, [])
        answer = client.post(EDITS, files=files, data={"prompt": PROMPT})
        assert "style" in record_of(image_in(answer), "it")


def test_edits_are_a_style_reference_with_other_models(loaded: dict[str, TextToImage], pictures: Path) -> None:
    files = {"image": (pictures / "image.png").read_bytes(), "mask": inverted(pictures)}
    with served(loaded["unclip"]) as client:
        answer = client.post(EDITS, files=files, data={"prompt": PROMPT})
        record = record_of(image_in(answer), "it")
        assert ("style" in record, "image" in record, record["regions"][0]["phrase"]) == (True, False, PROMPT)
        assert "style reference of a new image" in answer.json()["warnings"][0]
        for name, value in {"input_fidelity": "high", "strength": "0.5"}.items():
            assert refusal(client.post(EDITS, files=files, data={"prompt": PROMPT, name: value}))[0] == name
