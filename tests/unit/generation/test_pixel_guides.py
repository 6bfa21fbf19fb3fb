"""Images, masks and depth maps: how they are read, and what our own decoder does with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from syzygy.core.errors import UserError
from syzygy.core.known_latents import KnownLatents
from syzygy.generation.image_files import to_tensor
from syzygy.generation.pixel_guides import fitted, fitted_mask
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage

PROMPT = "a red circle left of a blue star"
SIDE = 32
LEVEL = 1.5 / 255


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImage:
    return TextToImage.from_pretrained(tiny_model)


def picture(height: int = SIDE, width: int = SIDE, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def half() -> Tensor:
    mask = torch.zeros(SIDE, SIDE)
    mask[:, : SIDE // 2] = 1
    return mask


def made(model: TextToImage, **settings: Any) -> Tensor:
    found = model(PROMPT, generator=[torch.Generator().manual_seed(5)], num_inference_steps=10, **settings)
    return to_tensor(found.images[0])


def reconstructed(model: TextToImage, image: Tensor) -> Tensor:
    autoencoder = model.pipeline.decoder.autoencoder  # pyright: ignore[reportAttributeAccessIssue]
    return autoencoder.decode(autoencoder.encode(image[None]))[0]


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().mean())


def test_pictures_are_resized_as_by_diffusers() -> None:
    from diffusers.image_processor import VaeImageProcessor

    image = Image.fromarray((picture(40, 50) * 255).byte().permute(1, 2, 0).numpy())
    theirs = VaeImageProcessor(resample="bicubic", reducing_gap=1).preprocess(image, 32, 24) / 2 + 0.5
    torch.testing.assert_close(fitted(image, (32, 24)), theirs[0])
    assert torch.equal(fitted(picture(), (SIDE, SIDE)), picture())
    assert fitted(picture(40, 50), (32, 24)).shape == (3, 32, 24)


def test_masks_are_white_where_the_image_is_repainted(tmp_path: Path) -> None:
    grey = np.zeros((8, 8), np.uint8)
    grey[:, 4:] = 200
    Image.fromarray(grey).save(tmp_path / "mask.png")
    opaque = Image.new("LA", (8, 8), (255, 0))
    opaque.paste((255, 255), (4, 0, 8, 8))
    expected = torch.tensor([0.0, 0, 1, 1]).expand(4, 4)
    tensor = torch.from_numpy(grey) / 255
    for mask in (tmp_path / "mask.png", Image.fromarray(grey), opaque, tensor):
        assert torch.equal(fitted_mask(mask, (4, 4)), expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 4), "the mask is nowhere white"),
        (torch.full((4, 4), 2.0), "numbers from 0 to 1"),
        (torch.ones(3, 4, 4), "a tensor .height, width. of numbers"),
        (3, "a mask is a file's name, a Pillow image or a tensor"),
    ],
)
def test_masks_that_say_nothing_are_refused(mask: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitted_mask(mask, (4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.5}, "strength has no effect without an image"),
        ({"mask": half()}, "mask has no effect without an image"),
        ({"image": picture(), "strength": 0}, r"strength must be above 0 and at most 1, got 0\."),
        ({"image": picture(), "strength": 1.5}, r"at most 1, got 1\.5"),
        ({"image": picture(), "strength": "half"}, "strength must be a finite number"),
        ({"strenght": 0.5}, "Did you mean 'strength'"),
    ],
)
def test_settings_without_effect_or_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationRequest.from_keywords(prompts=[PROMPT], **settings)


def test_variations_take_no_image() -> None:
    with pytest.raises(UserError, match="image, mask: the decoder reads the image embedding of a mixture"):
        GenerationRequest.from_keywords(mixtures=[[(picture(), 1.0)]], image=picture(), mask=half())


@pytest.mark.parametrize(("strength", "skipped"), [(1.0, 0), (0.6, 4), (0.3, 7), (0.1, 9), (0.19, 9)])
def test_strength_is_the_share_of_the_steps(strength: float, skipped: int) -> None:
    assert KnownLatents(latents=torch.zeros(1, 4, 2, 2), strength=strength).skipped(10) == skipped


def test_the_more_strength_the_less_is_left_of_the_image(model: TextToImage) -> None:
    image = picture()
    kept = [difference(made(model, image=image, strength=s), reconstructed(model, image)) for s in (0.1, 0.5, 1.0)]
    assert kept == sorted(kept)
    assert kept[0] < kept[2] / 3
    assert torch.equal(made(model, image=image), made(model, image=image, strength=0.6))
    seen = []
    made(model, image=image, strength=0.35, callback=seen.append)
    assert [(one.step, one.steps) for one in seen] == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(UserError, match=r"strength 0\.05 leaves none of 10 steps"):
        made(model, image=image, strength=0.05)


@pytest.mark.parametrize("sampler", ["dpm++2m", "euler", "heun"])
def test_what_the_mask_leaves_out_is_kept(sampler: str, model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    image, autoencoder = picture(), model.pipeline.decoder.autoencoder  # pyright: ignore[reportAttributeAccessIssue]
    latents = autoencoder.encode(image[None])
    seen: list[Tensor] = []
    decode = type(autoencoder).decode
    monkeypatch.setattr(type(autoencoder), "decode", lambda self, x: (seen.append(x), decode(self, x))[1])
    whole = made(model, image=image, mask=half(), sampler=sampler)
    torch.testing.assert_close(seen[-1][..., 4:], latents[..., 4:])
    assert difference(seen[-1][..., :4], latents[..., :4]) > 0.1
    assert difference(whole, made(model, image=image, mask=half(), strength=0.3, sampler=sampler)) > LEVEL


def test_batches_and_candidates_share_the_image(model: TextToImage) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 4, "image": picture(), "mask": half()}
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    images = model([PROMPT] * 3, generator=seeds, batch_size=2, **settings).images
    again = model(PROMPT, generator=[torch.Generator().manual_seed(7)], **settings).images
    assert difference(to_tensor(images[2]), to_tensor(again[0])) < LEVEL
    assert model(PROMPT, best_of=2, **settings).scores is not None


def test_our_own_models_read_no_depth_map(model: TextToImage) -> None:
    with pytest.raises(UserError, match=r"cannot read a depth map.*kandinsky-2\.2-controlnet-depth"):
        made(model, depth=picture())
