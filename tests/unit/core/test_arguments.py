"""Arguments of Python calls: numpy's numbers are numbers, and what is neither number nor text is refused by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from syzygy.core import arguments
from syzygy.core.contracts import Region
from syzygy.core.errors import UserError
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextToImage:
    return TextToImage.from_pretrained(tiny_model)


@pytest.fixture(autouse=True)
def _as_users_call() -> Iterator[None]:
    """Without the checks of shapes and types that these tests run with, and users do not."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


WHOLE = [None, "2", 2.5, 2.0, True, np.float32(2), np.bool_(True), [2], 1j]
TEXT = [None, 3, b"a star", [None], [b"a"], [["a"]], [3], {"a": 1}, np.array(["a"])]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_a_whole_number_is_one(value: Any, model: TextToImage) -> None:
    calls = {
        "num_images_per_prompt": lambda: model(PROMPT, num_images_per_prompt=value),
        "best_of": lambda: model(PROMPT, best_of=value),
        "num_images": lambda: model.vary(Image.new("RGB", (8, 8)), num_images=value),
        "frames": lambda: model.interpolate("a", "b", value),
    }
    if value is not None:
        calls["batch_size"] = lambda: model(PROMPT, batch_size=value)
        calls["num_inference_steps"] = lambda: model(PROMPT, num_inference_steps=value)
        calls["height"] = lambda: model(PROMPT, height=value, width=8)
    for name, call in calls.items():
        with pytest.raises(UserError, match=f"{name} must be a whole number"):
            call()


def test_whole_numbers_of_numpy_are_taken(model: TextToImage) -> None:
    def made(kind: Any) -> bytes:
        generator = torch.Generator().manual_seed(0)
        settings: dict[str, Any] = {"num_inference_steps": kind(2), "best_of": kind(2)}
        output = model(
            PROMPT, num_images_per_prompt=kind(2), generator=generator, guidance_scale=np.float32(2), **settings
        )
        return output.images[1].tobytes()

    assert made(np.int64) == made(np.uint8) == made(int)


@pytest.mark.parametrize("value", ["2", True, [2.0], float("nan"), float("inf"), np.float64("nan"), 2j], ids=repr)
def test_a_number_is_one(value: Any, model: TextToImage) -> None:
    for name in ("guidance_scale", "region_strength", "style_guidance"):
        with pytest.raises(UserError, match=f"{name} must be a finite number"):
            model(PROMPT, **{name: value})


@pytest.mark.parametrize("value", TEXT, ids=repr)
def test_a_prompt_is_a_text_or_a_list_of_texts(value: Any, model: TextToImage) -> None:
    with pytest.raises(UserError, match=r"prompt must be a text \(str\) or a list of texts"):
        model(value)
    if value is not None:
        for call in (
            lambda: model(PROMPT, negative_prompt=value),
            lambda: model.vary(Image.new("RGB", (8, 8)), negative_prompt=value),
            lambda: model.mix([("a", 1.0)], negative_prompt=value),
        ):
            with pytest.raises(UserError, match="negative_prompt must be a"):
                call()


def test_nothing_to_generate_is_said(model: TextToImage) -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        model([])
    with pytest.raises(UserError, match="no picture to vary"):
        model.vary([])
    with pytest.raises(UserError, match="nothing to mix"):
        model.mix([])
    with pytest.raises(UserError, match="single text"):
        model.mix([("a", 1.0)], negative_prompt=["b"])


@pytest.mark.parametrize(
    "value",
    [3, "7", [1, 2], [torch.Generator(), None], np.random.default_rng(0)],
    ids=["number", "text", "list of numbers", "list with None", "numpy"],
)
def test_a_generator_is_one(value: Any, model: TextToImage) -> None:
    for call in (
        lambda: model(PROMPT, generator=value),
        lambda: model.vary(Image.new("RGB", (8, 8)), generator=value),
        lambda: model.mix([("a", 1.0)], generator=value),
        lambda: model.interpolate("a", "b", 2, generator=value),
    ):
        with pytest.raises(
            UserError, match=r"generator must be a torch.Generator or a list of them, got .*manual_seed"
        ):
            call()


REGION = Region("red", torch.ones(4, 4))


@pytest.mark.parametrize("value", ["x", {}, REGION, [None], [REGION, None], [REGION, [REGION]], [[None]]], ids=str)
def test_regions_are_regions(value: Any) -> None:
    with pytest.raises(UserError, match="regions must be a list of Region, or one such list for each prompt"):
        GenerationRequest([PROMPT], regions=value)


def test_a_picture_without_pixels_is_none(model: TextToImage) -> None:
    with pytest.raises(UserError, match=r"a picture is a tensor .* not \[3, 0, 4\]"):
        model.vary(torch.zeros(3, 0, 4))


@pytest.mark.parametrize("value", [None, 3, b"\x89PNG", [None], ["a.png", 3], [["a.png"]]], ids=repr)
def test_a_picture_is_one(value: Any, model: TextToImage) -> None:
    with pytest.raises(UserError, match="a picture must be a file"):
        model.vary(value)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (None, "a list of .source, weight."),
        ("a star", "a list of .source, weight."),
        (["a star"], "a list of .source, weight."),
        ([("a star", 1.0, 2.0)], "a list of .source, weight."),
        ([(None, 1.0)], "source 0 must be a text, a file"),
        ([("a", 1.0), (b"a", 1.0)], "source 1 must be a text"),
        ([("a", "1")], "the weight of source 0 must be a number"),
        ([("a", True)], "the weight of source 0 must be a number"),
        ([("a", None)], "the weight of source 0 must be a number"),
    ],
    ids=str,
)
def test_sources_come_with_weights(sources: Any, message: str, model: TextToImage) -> None:
    with pytest.raises(UserError, match=message):
        model.mix(sources)


def test_other_arguments(model: TextToImage) -> None:
    with pytest.raises(UserError, match=r"sampler must be a name \(str\), got 3"):
        model(PROMPT, sampler=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="conditions must be a list of names"):
        model(PROMPT, conditions="image,text")
    with pytest.raises(UserError, match="callback must be a function"):
        model(PROMPT, callback=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="source 1 must be a text"):
        model.interpolate("a", 3, 2)  # pyright: ignore[reportArgumentType]


def test_values_are_shown_briefly() -> None:
    with pytest.raises(UserError, match=r"n must be a whole number from 1 to 3, got 4 \(int\)\."):
        arguments.whole(4, "n", 1, 3)
    with pytest.raises(UserError, match="got a list of 900"):
        arguments.whole([1] * 900, "n")
    with pytest.raises(UserError) as error:
        arguments.whole("x" * 900, "n")
    assert len(str(error.value)) < 120
