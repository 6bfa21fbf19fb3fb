"""Subjects and layouts through the whole pipeline: tiny random parts in the published layouts of λ-ECLIPSE and Kandinsky 2.2."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from syzygy.core.contracts import TextFeatures
from syzygy.core.errors import UserError
from syzygy.data.references import References
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.generation.best_of import clip_scores
from syzygy.generation.image_files import to_tensor
from syzygy.generation.layout_edges import edge_map
from syzygy.generation.prior_pipeline import PriorPipeline
from syzygy.generation.request import GenerationRequest
from syzygy.generation.subjects import Subject, positions
from syzygy.generation.text_to_image import TextToImage
from syzygy.pretrained.visiting import VisitingPrior
from syzygy.prior.baselines import TextIdentity
from syzygy.prior.lambda_eclipse import LambdaEclipsePrior
from tests.tiny_unclip import WIDTH, Tiny, tiny_lambda_eclipse

PROMPT = "a red circle left of a blue star"
OTHER = "two blue stars above a star!"


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lambda_eclipse(tmp_path_factory.mktemp("lambda") / "prior")


@pytest.fixture(scope="module")
def model(tiny_kandinsky: Tiny, prior: Path) -> TextToImage:
    return TextToImage.from_pretrained(tiny_kandinsky.decoder, clip=tiny_kandinsky.clip, prior=prior)


def shape(colour: str, transparent: bool = False) -> Image.Image:
    """A disc on white, or on nothing."""
    image = Image.new("RGBA", (30, 20), (0, 0, 0, 0) if transparent else "white")
    ImageDraw.Draw(image).ellipse((4, 4, 16, 16), fill=colour)
    return image if transparent else image.convert("RGB")


def layout() -> Image.Image:
    image = Image.new("RGB", (24, 24))
    ImageDraw.Draw(image).rectangle((3, 3, 15, 15), outline="white")
    return image


def generators(number: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(5 + i) for i in range(number)]


def embeddings(model: TextToImage, prompt: Any = PROMPT, **settings: Any) -> Tensor:
    number = 1 if isinstance(prompt, str) else len(prompt)
    return model(prompt, generator=generators(number), num_inference_steps=2, **settings).image_embeddings


def by_hand(model: TextToImage, tokens: dict[int, Tensor], control: Tensor | None = None) -> Tensor:
    """The prediction for `PROMPT` with these embeddings at these tokens, from the parts."""
    features, prior = model.clip.encode_text([PROMPT]), model.pipeline.prior
    for place, embedding in tokens.items():
        features.states[0, place] = embedding
    if control is None:
        control = model.clip.encode_pixels(torch.zeros(1, 3, 24, 24))
    assert isinstance(prior, LambdaEclipsePrior)
    references = References.of([[]], WIDTH, control)
    return prior.predict(features, noise=model.pipeline.noise(generators()), references=references)


def prepared(model: TextToImage, image: Image.Image) -> Tensor:
    return model.clip.encode_pixels(model.clip.preparation.prepare(image)[None])


def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_tokens_are_found_by_their_ids(model: TextToImage) -> None:
    ids = model.clip.tokenize([PROMPT])[0][0].tolist()
    for word in ("star", "STAR", "red circle", "star red"):
        wanted = set(model.clip.tokenize([word])[0][0].tolist()[1:-1])
        assert positions(model.clip, PROMPT, word) == [i for i, token in enumerate(ids[:-1]) if i and token in wanted]
    assert len(positions(model.clip, "a star, a ring and a star", "star")) == 2
    with pytest.raises(
        UserError, match=r"reads no token of the subject 'star' in the prompt 'ring.*it reads 77 tokens"
    ):
        positions(model.clip, "ring " * 80 + "star", "star")


def test_the_prior_reads_pictures_in_place_of_words(model: TextToImage) -> None:
    red, blue = shape("red"), shape("blue", transparent=True)
    star, circle = (positions(model.clip, PROMPT, word) for word in ("star", "red circle"))
    found = embeddings(model, subjects=[Subject("star", blue), Subject("Red circle", red)])
    on_white = Image.alpha_composite(Image.new("RGBA", blue.size, "white"), blue).convert("RGB")
    tokens = dict.fromkeys(star, prepared(model, on_white)) | dict.fromkeys(circle, prepared(model, red))
    assert close(found, by_hand(model, tokens))
    plain = embeddings(model)
    assert close(plain, by_hand(model, {}))
    assert not close(found, plain)
    # A word of two subjects' is the later one's.
    shared = [Subject("red circle", red), Subject("circle", blue)]
    tokens = dict.fromkeys(circle, prepared(model, red))
    tokens |= dict.fromkeys(positions(model.clip, PROMPT, "circle"), prepared(model, on_white))
    assert close(embeddings(model, subjects=shared), by_hand(model, tokens))
    assert not close(embeddings(model, subjects=shared[::-1]), by_hand(model, tokens))


def test_the_control_is_the_embedding_of_the_layouts_edges(model: TextToImage) -> None:
    control = prepared(model, edge_map(layout()))
    found = embeddings(model, layout=layout())
    assert close(found, by_hand(model, {}, control))
    assert close(embeddings(model, layout=control), found)
    both = embeddings(model, layout=layout(), subjects=[Subject("star", shape("red"))])
    star = dict.fromkeys(positions(model.clip, PROMPT, "star"), prepared(model, shape("red")))
    assert close(both, by_hand(model, star, control))
    assert not close(both, found)


def test_images_follow_and_batches_are_their_images(model: TextToImage) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 2, "subjects": [Subject("star", shape("red"))]}
    prompts = [PROMPT, OTHER]
    together = model(prompts, generator=generators(2), layout=layout(), **settings)
    apart = model(prompts, generator=generators(2), layout=layout(), batch_size=1, **settings)
    assert torch.allclose(together.image_embeddings, apart.image_embeddings, atol=1e-5)
    levels = [np.stack([np.asarray(one, int) for one in output.images]) for output in (together, apart)]
    assert np.abs(levels[0] - levels[1]).max() <= 1
    other = model(prompts, generator=generators(2), layout=layout(), **settings | {"subjects": None})
    assert np.abs(levels[0] - np.stack([np.asarray(one, int) for one in other.images])).max() > 1


def test_the_best_image_is_the_nearest_to_what_was_predicted_of_the_subject(model: TextToImage) -> None:
    subjects = [Subject("star", shape("red"))]
    best = model(PROMPT, subjects=subjects, best_of=3, generator=generators(3), num_inference_steps=2)
    assert best.scores is not None
    alone = [model(PROMPT, subjects=subjects, generator=[one], num_inference_steps=2) for one in generators(3)]
    scores = [clip_scores(one.images, one.image_embeddings, model.clip) for one in alone]
    assert float(best.scores) == pytest.approx(max(map(float, scores)), abs=1e-3)
    with_words = clip_scores(best.images, model.clip.encode_text([PROMPT]).pooled, model.clip)
    assert float(best.scores) != pytest.approx(float(with_words), abs=1e-3)


def test_the_decoder_and_negative_prompts_read_words(model: TextToImage, tiny_model: Path, prior: Path) -> None:
    """A decoder that reads text has learned no image embeddings among its tokens."""
    own = TextToImage.from_pretrained(tiny_model, prior=prior)
    read: list[TextFeatures | None] = []
    decoder = own.pipeline.decoder

    class Watching(LatentDecoder):
        def generate(self, positive: Any, *arguments: Any, **settings: Any) -> Tensor:
            read.append(positive.features)
            return super().generate(positive, *arguments, **settings)

    assert isinstance(decoder, LatentDecoder)
    watching = Watching(decoder.denoiser, decoder.autoencoder, decoder.device, decoder.defaults)
    own = replace(own, pipeline=replace(own.pipeline, decoder=watching))
    both = ["image", "text"]
    with_star = own("a red star", subjects=[Subject("star", shape("blue"))], generator=generators(), conditions=both)
    plain = own("a red star", generator=generators(), conditions=both)
    assert not close(with_star.image_embeddings, plain.image_embeddings)
    assert torch.equal(read[0].states, read[1].states)
    own("a red star", subjects=[Subject("star", shape("blue"))], generator=generators())
    assert read[2] is None, "by default it reads the image embedding alone"
    settings: dict[str, Any] = {"num_inference_steps": 2, "generator": generators(), "negative_prompt": "star"}
    made = model(PROMPT, subjects=[Subject("star", shape("red"))], **settings)
    assert made.images[0].size == (32, 32)


def test_cut_outs_are_on_white(tmp_path: Path) -> None:
    whole = shape("red").copy()
    mask = Image.new("L", whole.size)
    ImageDraw.Draw(mask).rectangle((0, 0, 9, 19), fill=255)
    found = np.asarray(Subject("star", whole, mask).cut_out())
    assert np.array_equal(found[:, :10], np.asarray(whole)[:, :10])
    assert (found[:, 10:] == 255).all()
    whole.save(tmp_path / "star.png")
    mask.save(tmp_path / "mask.png")
    filed = Subject("star", tmp_path / "star.png", str(tmp_path / "mask.png"))
    assert np.array_equal(np.asarray(filed.cut_out()), found)
    as_tensor = Subject("star", to_tensor(whole), to_tensor(mask)[0]).cut_out()
    assert isinstance(as_tensor, Tensor)
    assert torch.equal(as_tensor, to_tensor(Image.fromarray(found)))
    # A picture without transparency stays what it is, and so does an embedding.
    assert np.array_equal(np.asarray(Subject("star", whole).cut_out()), np.asarray(whole))
    embedding = torch.ones(1, 4)
    assert Subject("star", embedding).cut_out() is embedding
    # Transparent parts have no colour: what they hide does not count.
    hidden = shape("red", transparent=True)
    blue = Image.new("RGBA", hidden.size, (0, 0, 255, 0))
    blue.paste(hidden, mask=hidden.getchannel("A").point(lambda a: 255 if a else 0))
    assert np.array_equal(np.asarray(Subject("star", blue).cut_out()), np.asarray(Subject("star", hidden).cut_out()))


WHITE = Image.new("RGB", (4, 4), "white")
SIZED = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Subject("star", WHITE), "the subject 'star' holds nothing but white: give a picture that shows"),
        (Subject("star", Image.new("RGBA", (4, 4))), "holds nothing but white"),
        (Subject("star", torch.ones(3, 4, 4)), "holds nothing but white"),
        (Subject("star", shape("red"), Image.new("L", (30, 20))), "nothing but white where its mask is white"),
        (Subject("star", shape("red"), SIZED), "must have one size, got 30 × 20 and 3 × 2"),
        (Subject("star", shape("red"), torch.full((20, 30), 2.0)), r"must be a tensor \[H, W\] of numbers from 0 to 1"),
        (Subject("star", torch.ones(1, WIDTH), SIZED), "a mask has no effect on the embedding"),
        (Subject("star", "no.png"), "there is no file no.png"),
        (Subject("star", torch.ones(1, 7)), r"a picture is a tensor \[3, H, W\]"),
    ],
)
def test_wrong_pictures_are_refused(subject: Subject, message: str, model: TextToImage) -> None:
    with pytest.raises(UserError, match=message):
        embeddings(model, subjects=[subject])


STAR = Subject("star", torch.zeros(1, WIDTH))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ["a ring"]}, "the word 'star' of a subject is not in the prompt: 'a ring'. Give a word"),
        ({"prompts": ["stars", "a star", "all"]}, "'star' of a subject is not in 2 of 3 prompts: 'stars', 'all'"),
        ({"subjects": [STAR, replace(STAR, word=" Star ")]}, "there are several subjects for the word ' Star '"),
        ({"subjects": STAR}, "subjects must be a list of Subject"),
        ({"subjects": ["star"]}, "subjects must be a list of Subject"),
        ({"style": WHITE}, "a style replaces the image embedding that subjects and layout change"),
        ({"style": WHITE, "subjects": None, "layout": WHITE}, "a style replaces the image embedding"),
        ({"prompts": [], "mixtures": [[(WHITE, 1.0)]]}, "subjects: the decoder reads the image embedding of a mixture"),
        (
            {"prompts": [], "mixtures": [[(WHITE, 1.0)]], "subjects": (), "layout": torch.zeros(3, 4, 4)},
            "layout: the decoder reads the image embedding of a mixture",
        ),
    ],
)
def test_wrong_requests_are_refused_without_a_model(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationRequest.from_keywords(**{"prompts": [PROMPT], "subjects": [STAR]} | settings)


@pytest.mark.parametrize("word", ["", " "])
def test_a_subject_needs_a_word(word: str) -> None:
    with pytest.raises(UserError, match="a subject needs a word of the prompt"):
        Subject(word, WHITE)


def test_models_that_cannot_are_named(model: TextToImage, tiny_kandinsky: Tiny, tiny_model: Path, prior: Path) -> None:
    eclipse = TextToImage.from_pretrained(tiny_kandinsky.decoder, clip=tiny_kandinsky.clip, prior=tiny_kandinsky.prior)
    with pytest.raises(
        UserError, match=r"reads no subjects: it knows words alone\. Give a λ-ECLIPSE prior.*Lambda-ECL"
    ):
        embeddings(eclipse, subjects=[Subject("star", shape("red"))])
    with pytest.raises(UserError, match=r"reads no layout: it has no control\. Give a λ-ECLIPSE prior"):
        embeddings(eclipse, layout=layout())
    own = TextToImage.from_pretrained(tiny_model, prior=prior)
    with pytest.raises(UserError, match="add image to the conditions"):
        own("a star", subjects=[Subject("star", shape("red"))], conditions=["text"])
    adapted = replace(model, adapter={"text_encoder": "x"})
    with pytest.raises(UserError, match="another text encoder reads the prompts"):
        embeddings(adapted, subjects=[Subject("star", shape("red"))])


def test_a_prior_that_visits_the_device_takes_subjects_too(model: TextToImage) -> None:
    prior = model.pipeline.prior
    assert isinstance(prior, LambdaEclipsePrior)
    visiting, features = VisitingPrior(prior, torch.device("cpu")), model.clip.encode_text([PROMPT])
    noise, control = torch.randn(1, WIDTH), torch.randn(1, WIDTH)
    references = References.of([[([1], torch.randn(WIDTH))]], WIDTH, control)
    found = visiting.predict(features, noise=noise, references=references)
    assert visiting.takes_subjects
    assert torch.equal(found, prior.predict(features, noise=noise, references=references))
    assert not VisitingPrior(TextIdentity(1.0), torch.device("cpu")).takes_subjects


def test_without_subjects_it_is_a_prior_like_others(model: TextToImage, tiny_kandinsky: Tiny, prior: Path) -> None:
    pipeline = PriorPipeline.from_pretrained(prior, clip=tiny_kandinsky.clip, local_files_only=True)
    latents = model.pipeline.noise(generators())
    found = pipeline(PROMPT, latents=latents).image_embeds
    assert close(found, by_hand(model, {}))
