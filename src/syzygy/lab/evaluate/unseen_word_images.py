"""Do images show what prompts mean whose words and languages no training caption had? Exact scores on the embedded world.

An image of each prompt is generated from the prior's prediction alone, and the judge says whether it shows all that the prompt's plain
English caption names.

Legend: N prompts, D width of CLIP's joint space.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core.contracts import Guide, Prior, Sampling, TextEncoder, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.generation.text_to_image import TextToImage
from syzygy.lab.evaluate import harness
from syzygy.lab.evaluate.harness import Candidate, EvaluationContext, SamplingConfig
from syzygy.lab.evaluate.text_encoder import CLIP, ENGLISH
from syzygy.lab.evaluate.unseen_words import CHUNK, PromptFile
from syzygy.lab.world.description import Description
from syzygy.lab.world.language import language
from syzygy.lab.world.prompts import Prompt

CAPTION = "their captions"
"""The control: CLIP reads the plain caption of each prompt."""


class UnseenWordsConfig(SamplingConfig):
    """How the images are generated."""


def described(file: PromptFile) -> list[Description]:
    """What the caption of each prompt names.

    Raises:
        UserError: a caption has words that are not the embedded world's, so that images of it cannot be scored.
    """
    english = language(ENGLISH)
    for one in file.prompts:
        if unknown := english.unknown(one.target):
            raise UserError(
                f"images cannot be scored by the caption {one.target!r} in {file.path}: the embedded world does not know "
                f"{', '.join(map(repr, unknown))}. Leave --images out."
            )
    return [english.parse(one.target).description for one in file.prompts]


def shown(
    context: EvaluationContext[UnseenWordsConfig],
    file: PromptFile,
    encoders: Mapping[str, TextEncoder],
    sources: Mapping[str, str],
) -> dict[str, list[list[float]]]:
    """For each encoder, and for CLIP with the captions: 1 where the image of a prompt shows all that its caption names.

    Args:
        encoders: by name, CLIP among them; their embeddings are in this CLIP's space.
        sources: where the others are from; with the file's prompts they say which images an interrupted evaluation has.

    Raises:
        UserError: the model has no prior, or its decoder reads no image embedding; as `described`.
    """
    model, wanted = context.model, described(file)
    prior = model.pipeline.prior
    if prior is None or "image" not in model.pipeline.decoder.conditions:
        raise UserError(f"{model.name} generates no images from a prior's prediction. Leave --images out.")
    texts = [one.prompt for one in file.prompts]
    read = {name: (encoder, texts) for name, encoder in encoders.items()}
    read[CAPTION] = encoders[CLIP], [one.target for one in file.prompts]
    candidates = [
        Candidate(name, len(texts), partial(_images, model, prior, encoder, some, context.config))
        for name, (encoder, some) in read.items()
    ]
    prompts = [
        Prompt("single", text, meant, meant.unseen, ()) for text, meant in zip(read[CAPTION][1], wanted, strict=True)
    ]
    found = context.predict(candidates, encoders=dict(sources), texts=texts)
    return {
        name: [[float(harness.prompt_accuracy(*pair) == 1)] for pair in zip(prompts, one.scenes, strict=True)]
        for name, one in found.items()
    }


@torch.inference_mode()
def _images(
    model: TextToImage,
    prior: Prior,
    encoder: TextEncoder,
    texts: Sequence[str],
    config: UnseenWordsConfig,
    rows: Sequence[int],
) -> Float[Tensor, "B 3 H W"]:
    """Images of these texts; their noise is the same for every encoder."""
    some = [texts[row] for row in rows]
    features = TextFeatures.cat([encoder.encode_text(some[i : i + CHUNK]) for i in range(0, len(some), CHUNK)])
    draws = [torch.randn(model.clip.width, generator=generator(config.seed, "epsilon", row)) for row in rows]
    embeddings = prior.predict(features, noise=torch.stack(draws).to(model.pipeline.device))
    sampling = Sampling(steps=config.steps, guidance_scale=config.guidance_scale)
    noise = [generator(config.seed, "unseen words", row) for row in rows]
    return model.pipeline.decoder.generate(Guide(embeddings, conditions=("image",)), noise, sampling=sampling)
