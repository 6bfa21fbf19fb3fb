"""What the starter keeps of a picture that it varies, and what the best of several is worth.

    python -m benchmarks.variations

Eight scenes of one object, eight variations of each: how often the judge finds style, colour and shape of the scene, beside those of another
scene. Then prompts of two objects, one picture each and the best of four by CLIP: CLIP's score, and what the judge finds true.
"""

import click
import torch
from PIL import Image

from syzygy.core.randomness import Draw, generator
from syzygy.generation.image_files import to_tensor
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.world.description import check_facts
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import prompts
from syzygy.lab.world.render import render
from syzygy.lab.world.scene import COLOURS, SHAPES, STYLES, Scene
from syzygy.lab.world.scene_classifier import Prediction
from syzygy.lab.world.scene_sampling import scene_for


def read(model: TextToImage, images: list[Image.Image]) -> list[Prediction]:
    return judge_of(model).read(torch.stack([to_tensor(image) for image in images]))


def kept(scenes: list[Scene], read: list[list[Prediction]]) -> str:
    pairs = [(scene, one) for scene, some in zip(scenes, read, strict=True) for one in some]
    found = {
        "style": [one.style == scene.style for scene, one in pairs],
        "colour": [scene.things[0].colour in {thing.colour for thing in one.things} for scene, one in pairs],
        "shape": [scene.things[0].shape in {thing.shape for thing in one.things} for scene, one in pairs],
    }
    return ", ".join(f"{name} {100 * sum(some) / len(some):.0f} %" for name, some in found.items())


def variations(model: TextToImage, steps: int, each: int = 8) -> None:
    looks = zip(COLOURS, SHAPES, STYLES * 2, strict=True)
    texts = [f"a {colour} {shape}, in {style} style" for colour, shape, style in looks]
    scenes = [scene_for(language("en").parse(text).description, Draw(0, "vary", text)) for text in texts]
    noise = [generator(0, "vary", scene, i) for scene in range(len(scenes)) for i in range(each)]
    output = model.vary(render(scenes, 64), num_images=each, num_inference_steps=steps, generator=noise)
    found = read(model, output.images)
    rows = [found[i : i + each] for i in range(0, len(found), each)]
    print(f"{len(found)} variations keep: {kept(scenes, rows)}")
    print(f"of another scene: {kept(scenes, rows[1:] + rows[:1])}")


def best_of(model: TextToImage, number: int, steps: int) -> None:
    wanted = prompts("spatial", number, 0, False, fewer=True)
    for candidates in (1, 4):
        noise = [generator(0, "best", i, k) for i in range(len(wanted)) for k in range(candidates)]
        output = model([one.text for one in wanted], best_of=candidates, num_inference_steps=steps, generator=noise)
        scores = output.scores
        if scores is None:
            text = model.encode_text([one.text for one in wanted]).pooled
            pictures = torch.stack([to_tensor(image) for image in output.images])
            scores = torch.cosine_similarity(model.clip.encode_image(pictures), text)
        pairs = zip(wanted, read(model, output.images), strict=True)
        facts = [[fact.holds for fact in check_facts(one.description, found)] for one, found in pairs]
        print(
            f"the best of {candidates}, {len(wanted)} prompts of two objects: CLIP score {scores.mean():.2f}, "
            f"facts true {100 * sum(map(sum, facts)) / sum(map(len, facts)):.0f} %, all true {sum(map(all, facts))}"
        )


@click.command(help=__doc__)
@click.option("--model", default="starter", show_default=True)
@click.option("--prompts", "number", default=30, show_default=True)
@click.option("--steps", default=10, show_default=True)
@torch.inference_mode()
def main(model: str, number: int, steps: int) -> None:
    loaded = TextToImage.from_pretrained(model)
    variations(loaded, steps)
    best_of(loaded, number, steps)


if __name__ == "__main__":
    main()
