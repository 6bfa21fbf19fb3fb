"""How much the images of one prompt differ from each other: a prior that predicts a mean gives fewer different images than one that samples.

Every image of a prompt has its own noise, for the prior and for the decoder, as with `syzygy generate --num-images`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Guide, Prior, Sampling
from syzygy.core.pixels import to_uint8
from syzygy.core.randomness import generator, seed_of
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate.composition import judge_features, predict_all, reference_images
from syzygy.lab.evaluate.harness import BATCH
from syzygy.lab.evaluate.judging import judge_of
from syzygy.lab.world.prompts import Prompt

RENDERS = "renders"
"""Of the reference: renders of scenes that show what a prompt names, and in which everything else is random."""
SCORES = {
    "embeddings": "embeddings: 1 − cosine",
    "images": "images: distance in the judge's features",
}


def distances(rows: Float[Tensor, "N D"], *, cosine: bool = False) -> float:
    """The mean distance between two different rows: Euclidean, or 1 − cosine."""
    if cosine:
        unit = F.normalize(rows.double(), dim=-1)
        apart = 1 - unit @ unit.T
    else:
        apart = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    number = len(rows)
    return max(float(apart.sum() - apart.trace()), 0.0) / (number * (number - 1))


@torch.inference_mode()
def variety(
    model: TextToImage,
    prior: Prior | None,
    prompts: Sequence[Prompt],
    number: int,
    steps: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, float]:
    """The mean distance between two of the `number` images of a prompt, and between their embeddings, over the prompts.

    Args:
        prior: None for the reference, the embeddings of different renders of the prompt; then the distance between the renders themselves
            is measured too.
        steps: sampling steps of the decoder, which reads the embedding alone, without guidance.
    """
    judge, sampling = judge_of(model), Sampling(steps=steps, guidance_scale=1.0)
    texts = [one.text for one in prompts]
    features = model.encode_text(texts)
    embeddings, seen, renders = [], [], []
    for i in range(number):
        if prior is None:
            images = reference_images(prompts, seed_of(seed, "variety", i), model.clip.image_size)
            vectors = torch.cat([model.clip.encode_image(part) for part in images.split(BATCH)]).cpu()
            renders.append(judge_features(judge, images))
        else:
            draws = [torch.randn(features.pooled.shape[1], generator=generator(seed, "variety", x, i)) for x in texts]
            vectors = predict_all(prior, features, torch.stack(draws))
        made = []
        for start in range(0, len(texts), BATCH):
            rows = slice(start, start + BATCH)
            noise = [generator(seed, "variety image", text, i) for text in texts[rows]]
            guide = Guide(vectors[rows].to(model.clip.device), None)
            made.append(model.pipeline.decoder.generate(guide, noise, sampling=sampling))
            progress(len(noise))
        embeddings.append(vectors)
        seen.append(judge_features(judge, to_uint8(torch.cat(made)) / 255))
    rows = range(len(prompts))
    all_embeddings, features = torch.stack(embeddings), {"images": seen, RENDERS: renders}
    found = {name: torch.stack(parts) for name, parts in features.items() if parts}
    return {
        "embeddings": sum(distances(all_embeddings[:, row], cosine=True) for row in rows) / len(rows),
        **{name: sum(distances(each[:, row]) for row in rows) / len(rows) for name, each in found.items()},
    }
