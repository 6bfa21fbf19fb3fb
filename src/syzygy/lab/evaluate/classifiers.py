"""How accurate are the two scene classifiers, and do they say the same about generated images?

Besides `selection.py` the only module of the evaluations that uses a reader: here it is what is measured.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import Sampling
from syzygy.core.randomness import generator, seed_of
from syzygy.decoder.autoencoder import Autoencoder
from syzygy.generation.request import GenerationRequest
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.harness import BATCH, SamplingConfig, evaluation_prompts, prompt_accuracy, tensors
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.starter.classifier_training import conditions, measure, rendered
from syzygy.lab.world.classifier_scores import agreement, read_all
from syzygy.lab.world.prompts import CATEGORIES
from syzygy.lab.world.scene_classifier import Prediction, SceneClassifier
from syzygy.training.run_records import Bar, no_bar


def evaluate(model: TextToImage, num: int, prompts: int, sampling: SamplingConfig, bar: Bar = no_bar) -> dict[str, Any]:
    """Accuracy of the model's reader and of the judge on the same `num` unseen renders; and, unless `prompts` is 0, their agreement on images
    of so many prompts of each category and side.
    """
    classifiers: dict[str, SceneClassifier] = {"reader": model.reader(), "judge": judge_of(model)}
    batch = rendered("evaluation", seed_of(sampling.seed, "evaluate reader"), 0, num, model.pipeline.device)
    batches = conditions(batch, _through_autoencoder(model))
    found: dict[str, Any] = {"model": model.name, "pictures": num}
    for name, one in classifiers.items():
        about = {"fingerprint": artifacts.fingerprint(one.state_dict()), "threshold": one.config.threshold}
        found[name] = about | asdict(measure(one, batches))
    return found | {"agreement": _agreement(model, classifiers, prompts, sampling, bar) if prompts else None}


def _through_autoencoder(model: TextToImage) -> Callable[[Tensor], Tensor]:
    """Images as the model's autoencoder reconstructs them: decoded pictures whose contents are known."""
    autoencoder = Autoencoder.from_pretrained(model.folder / "autoencoder").to(model.pipeline.device)

    def through(images: Tensor) -> Tensor:
        side = autoencoder.config.image_size
        small = torch.nn.functional.interpolate(images, (side, side), mode="area") if side < images.shape[3] else images
        return autoencoder.decode(autoencoder.encode(small))

    return through


@torch.inference_mode()
def _agreement(
    model: TextToImage, classifiers: Mapping[str, SceneClassifier], prompts: int, sampling: SamplingConfig, bar: Bar
) -> dict[str, Any]:
    wanted = evaluation_prompts(CATEGORIES, prompts, sampling.seed)
    how = Sampling(steps=sampling.steps, guidance_scale=sampling.guidance_scale)
    seen: dict[str, list[Prediction]] = {name: [] for name in classifiers}
    with bar("generating", len(wanted)) as progress:
        for start in range(0, len(wanted), BATCH):
            texts = [prompt.text for prompt in wanted[start : start + BATCH]]
            noise = [generator(sampling.seed, "evaluate reader", text) for text in texts]
            images = tensors(model.pipeline(GenerationRequest(texts, sampling=how, generator=noise)).images)
            for name, one in classifiers.items():
                seen[name] += read_all(one, images)
            progress(len(texts))
    right = {
        name: [prompt_accuracy(prompt, scene) for prompt, scene in zip(wanted, scenes, strict=True)]
        for name, scenes in seen.items()
    }
    same = [a == b for a, b in zip(*right.values(), strict=True)]
    return {
        "images": len(wanted),
        **{kind: round(share, 4) for kind, share in agreement(seen["reader"], seen["judge"]).items()},
        "verdict": round(sum(same) / len(same), 4),
        "prompt_accuracy": {name: round(sum(values) / len(values), 4) for name, values in right.items()},
    }


def printed(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines that the command prints."""
    for name in ("reader", "judge"):
        one = found[name]
        kinds = list(one["accuracy"]["clean"])
        yield f"{name} {one['fingerprint']}, {found['pictures']} unseen renders"
        numbers = list(one["count"]["clean"])
        yield " " * 12 + "".join(f"{kind:>12}" for kind in kinds) + "".join(f"{f'count of {n}':>12}" for n in numbers)
        for condition, shares in one["accuracy"].items():
            cells = [*(shares[kind] for kind in kinds), *(one["count"][condition][n] for n in numbers)]
            yield f"{condition:>12}" + "".join(f"{100 * share:>10.1f} %" for share in cells)
        for kind, table in one["confusion"].items():
            yield f"\n{name}, {kind}: true values in rows, predictions in columns"
            yield " " * 10 + "".join(f"{value:>10}" for value in next(iter(table.values())))
            for true, row in table.items():
                yield f"{true:>10}" + "".join(f"{number or '.':>10}" for number in row.values())
        yield ""
    if both := found["agreement"]:
        yield f"The two agree on {both['images']} generated images:"
        for kind in (*AGREED, "verdict"):
            if kind in both:
                yield f"{kind:>12}{100 * both[kind]:>10.1f} %"
        yield "scene: everything is the same. verdict: both find the image right for its prompt, or both do not."


AGREED = ("shape", "colour", "texture", "count", "style", "scene")
