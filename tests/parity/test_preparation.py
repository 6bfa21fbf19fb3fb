"""Our preparation of pictures against transformers' own image processor, on the CPU with Pillow."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from syzygy.clip.image_processing import Preparation
from syzygy.core.errors import UserError

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
OPENAI = {  # openai/clip-vit-large-patch14 as published in 2021, smaller
    "crop_size": 24,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": MEAN,
    "image_std": STD,
    "resample": 3,
    "size": 24,
}
KANDINSKY = OPENAI | {  # as saved since 2023
    "crop_size": {"height": 24, "width": 24},
    "do_convert_rgb": True,
    "do_rescale": True,
    "image_processor_type": "CLIPImageProcessor",
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 24},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "openai": OPENAI,
    "kandinsky": KANDINSKY,
    "odd crop, bilinear": KANDINSKY | {"crop_size": 17, "resample": 2},
    "crop beyond the edge": KANDINSKY | {"size": {"shortest_edge": 18, "longest_edge": None}, "crop_size": 25},
    "squashed": KANDINSKY | {"size": {"height": 24, "width": 24}, "do_center_crop": False, "crop_size": None},
    "squashed and cropped": KANDINSKY | {"size": [30, 28]},
    "not resized": KANDINSKY | {"do_resize": False},
    "other levels": KANDINSKY | {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [0.5, 0.25, 2]},
    "not rescaled": KANDINSKY | {"do_rescale": False},
    "not normalised": KANDINSKY | {"do_normalize": False, "image_mean": None},
}
SIZES = [(24, 24), (64, 48), (31, 100), (100, 31), (5, 7), (1, 1), (2, 150), (150, 2), (25, 24), (24, 25), (333, 777)]
WHERE = Path("preprocessor_config.json")


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise over a gradient, so that every shift and every filter shows."""
    random = np.random.default_rng(width * 1000 + height)
    ramp = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    levels = (ramp + random.integers(0, 56, (height, width, 4))).astype(np.uint8)
    image = Image.fromarray(levels)
    if mode == "P":
        return image.convert("RGB").quantize(16)
    if mode == "P transparent":
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = 3
        return image
    if mode == "I;16":
        return Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    return image if mode == "RGBA" else image.convert(mode)


def theirs(config: dict[str, Any], image: Image.Image) -> torch.Tensor:
    processor = CLIPImageProcessorPil.from_dict(config)
    return processor(image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_equal_transformers_bit_for_bit(name: str) -> None:
    preparation = Preparation.from_config(CONFIGS[name], WHERE)
    for size in SIZES:
        found, wanted = preparation.prepare(picture(*size)), theirs(CONFIGS[name], picture(*size))
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted.float()), size


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "P transparent", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb_as_in_transformers(mode: str) -> None:
    preparation = Preparation.from_config(KANDINSKY, WHERE)
    found = preparation.prepare(picture(40, 30, mode))
    assert torch.equal(found, theirs(KANDINSKY, picture(40, 30, mode)))
    if mode == "RGBA":
        assert not torch.equal(found, preparation.prepare(picture(40, 30, mode).convert("RGB")))


def test_sixteen_bits_are_scaled_where_transformers_clips_them() -> None:
    preparation = Preparation.from_config(KANDINSKY, WHERE)
    deep, flat = picture(40, 30, "I;16"), Image.fromarray((np.array(picture(40, 30, "I;16")) // 257).astype(np.uint8))
    assert torch.equal(preparation.prepare(deep), theirs(KANDINSKY, flat))
    assert not torch.equal(preparation.prepare(deep), theirs(KANDINSKY, deep))


def test_a_photograph_is_prepared_upright() -> None:
    preparation, image = Preparation.from_config(KANDINSKY, WHERE), picture(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.info["exif"] = exif.tobytes()
    assert torch.equal(preparation.prepare(turned), theirs(KANDINSKY, image))


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_survives_a_round_trip(name: str) -> None:
    preparation = Preparation.from_config(CONFIGS[name], WHERE)
    assert Preparation.from_config(preparation.to_config(), WHERE) == preparation
    image = picture(50, 40)
    assert torch.equal(theirs(preparation.to_config(), image), preparation.prepare(image))


def test_decoding_processes_can_take_it_along() -> None:
    preparation = Preparation.from_config(KANDINSKY, WHERE)
    again = pickle.loads(pickle.dumps(preparation))
    assert again == preparation
    assert hash(again) == hash(preparation)
    assert again.side == 24


def test_the_given_picture_stays_as_it_was() -> None:
    image = picture(24, 24)
    before = image.tobytes()
    Preparation.from_config(KANDINSKY, WHERE).prepare(image)
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "is for SiglipImageProcessor; a CLIP's"),
        ({"image_processor_type": None, "feature_extractor_type": "ViTFeatureExtractor"}, "is for ViTFeatureExtractor"),
        ({"image_mean": None}, "lacks image_mean"),
        ({"size": None}, "lacks size"),
        ({"size": {"shortest_edge": 24, "longest_edge": 40}}, "config.json cannot be used: size is"),
        ({"size": {"max_height": 24, "max_width": 40}}, "config.json cannot be used: size is"),
        ({"size": 0}, "not a positive whole number"),
        ({"crop_size": {"shortest_edge": 24}}, "cannot be used: crop_size is"),
        ({"crop_size": {"height": 24, "width": 25}}, "only squares"),
        ({"do_center_crop": False}, "would not all be one square"),
        ({"do_center_crop": False, "size": {"height": 24, "width": 25}}, "would not all be one square"),
        ({"resample": 9}, "cannot be used"),
        ({"image_std": [1.0, 1.0]}, "cannot be used"),
        ({"do_pad": True}, "sets do_pad"),
    ],
)
def test_what_no_clip_publishes_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Preparation.from_config(KANDINSKY | change, WHERE)


def test_a_thread_is_no_picture() -> None:
    preparation = Preparation.from_config(KANDINSKY, WHERE)
    preparation.prepare(picture(3, 300))
    with pytest.raises(UserError, match="3 × 301 pixels is too long"):
        preparation.prepare(picture(3, 301))
