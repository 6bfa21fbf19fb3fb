"""Variations, mixtures and the best of several on the starter's own weights, scored by the judge of its world, beside controls."""

import pytest
import torch

from syzygy.core.randomness import Draw
from syzygy.generation.best_of import clip_scores
from syzygy.generation.image_files import to_tensor
from syzygy.generation.pipeline import PipelineOutput
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.world.judge import Judge
from syzygy.lab.world.language import language
from syzygy.lab.world.render import render
from syzygy.lab.world.scene import Scene
from syzygy.lab.world.scene_classifier import Prediction
from syzygy.lab.world.scene_sampling import scene_for
from tests.closeness import NETWORK, assert_close

STEPS, EACH = 8, 4
CAPTIONS = [
    "a red circle, in night style",
    "a blue star, in outline style",
    "a green heart, in flat style",
    "a yellow ring, in pastel style",
]


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.from_pretrained("starter")


@pytest.fixture(scope="module")
def judge(model: TextToImage) -> Judge:
    return judge_of(model)


def seeds(numbers: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def readings(output: PipelineOutput, judge: Judge) -> list[Prediction]:
    return judge.read(torch.stack([to_tensor(image) for image in output.images]))


def shares(scenes: list[Scene], read: list[list[Prediction]]) -> tuple[float, float]:
    """Of pictures that have their scene's style, and a thing of its colour."""
    pairs = [(scene, one) for scene, some in zip(scenes, read, strict=True) for one in some]
    styles = [one.style == scene.style for scene, one in pairs]
    colours = [scene.things[0].colour in {thing.colour for thing in one.things} for scene, one in pairs]
    return sum(styles) / len(pairs), sum(colours) / len(pairs)


def test_variations_keep_style_and_colour(model: TextToImage, judge: Judge) -> None:
    scenes = [scene_for(language("en").parse(text).description, Draw(1, "vary", text)) for text in CAPTIONS]
    pictures = render(scenes, 64)
    generator = seeds(list(range(EACH)) * len(scenes))
    output = model.vary(pictures, num_images=EACH, num_inference_steps=STEPS, generator=generator)
    found = readings(output, judge)
    read = [found[i : i + EACH] for i in range(0, len(found), EACH)]
    style, colour = shares(scenes, read)
    shuffled_style, shuffled_colour = shares(scenes, read[1:] + read[:1])
    assert style >= shuffled_style + 0.3
    assert colour >= shuffled_colour + 0.3
    assert len({image.tobytes() for image in output.images}) == len(found)


def test_a_mixture_holds_what_its_sources_share_and_weights_decide_the_rest(model: TextToImage, judge: Judge) -> None:
    def paint(red: float, blue: float) -> list[Prediction]:
        sources = [("a red circle", red), ("a blue circle", blue)]
        generator = seeds(list(range(EACH)))
        return readings(model.mix(sources, num_images=EACH, num_inference_steps=STEPS, generator=generator), judge)

    def number(read: list[Prediction], **looks: str) -> int:
        return sum(
            any(all(getattr(thing, name) == value for name, value in looks.items()) for thing in one.things)
            for one in read
        )

    red, both, blue = paint(0.9, 0.1), paint(0.5, 0.5), paint(0.1, 0.9)
    for read in (red, both, blue):
        assert number(read, shape="circle") >= EACH - 1
    assert number(red, colour="red") >= EACH - 1
    assert number(blue, colour="blue") >= EACH - 1
    assert number(red, colour="blue") + number(blue, colour="red") <= 1
    assert number(both, colour="red") + number(both, colour="blue") >= EACH - 1


def test_the_best_of_four_scores_higher_than_one(model: TextToImage) -> None:
    prompt, pictures = "a red circle left of a blue star", 4
    first = [10 * i for i in range(pictures)]
    scores = []
    for best_of in (1, 4):
        generator = seeds([seed + candidate for seed in first for candidate in range(best_of)])
        output = model(
            prompt,
            num_images_per_prompt=pictures,
            best_of=best_of,
            num_inference_steps=STEPS,
            generator=generator,
        )
        text = model.clip.encode_text([prompt]).pooled.expand(pictures, -1)
        scores.append(clip_scores(output.images, text, model.clip))
    assert (scores[1] >= scores[0] - 1e-4).all()
    assert scores[1].mean() > scores[0].mean() + 0.01
    assert output.scores is not None
    assert_close(scores[1], output.scores, depth=NETWORK)
    assert all(0 <= seed - start < 4 for seed, start in zip(output.seeds, first, strict=True))
