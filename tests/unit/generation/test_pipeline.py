"""The path of a prompt, on stand-ins whose pictures tell what reached the decoder."""

from dataclasses import replace

import pytest
import torch

from syzygy.core.contracts import Conditioning, Guide, Sampling, TextFeatures
from syzygy.core.errors import NonFiniteError, UserError
from syzygy.core.randomness import generator
from syzygy.decoder.latent_decoder import LatentDecoder, conditioning_of
from syzygy.generation.pipeline import Pipeline, PipelineOutput, to_pil
from syzygy.generation.request import GenerationRequest, one_each

WIDTH = 4
PROMPTS = ["a red circle", "a blue star"]


class Encoder:
    """Words → random features keyed by the text."""

    width = WIDTH

    def encode_text(self, texts: list[str]) -> TextFeatures:
        rows = [torch.randn(6, WIDTH, generator=generator(0, text)) for text in texts]
        states = torch.stack([row[:5] for row in rows])
        return TextFeatures(states, torch.ones(len(texts), 5, dtype=torch.bool), torch.stack([row[5] for row in rows]))


class Prior:
    """The pooled text embedding plus a little noise."""

    def predict(self, features, *, noise=None, generator=None):
        assert noise is not None
        return features.pooled + 0.01 * noise


def denoiser(x: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
    """Shrinks x towards a colour that the conditions choose; absent ones choose nothing."""
    level = x.new_zeros(len(x))
    for name, weight in (("image", 1.0), ("text", 3.0)):
        if condition := conditioning.conditions.get(name):
            level = level + weight * condition.present * condition.pooled.mean(1)
    return 0.25 * x / (sigma**2 + 0.25)[:, None, None, None] + 0.1 * level.tanh()[:, None, None, None]


class Halves:
    """Latents are the picture in [-1, 1]."""

    latent_shape = (3, 8, 8)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * images - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents / 2 + 0.5).clamp(0, 1)


@pytest.fixture
def pipeline() -> Pipeline:
    cpu = torch.device("cpu")
    return Pipeline(Encoder(), Prior(), LatentDecoder(denoiser, Halves(), cpu), cpu)


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def run(pipeline: Pipeline, *prompts: str, **settings) -> PipelineOutput:
    return pipeline(GenerationRequest(prompts, **settings))


def bits(images) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_pictures_of_one_prompt_stay_together(pipeline: Pipeline) -> None:
    output = run(pipeline, *PROMPTS, num_images=2, generator=seeds(0, 1, 0, 1))
    assert len(output.images) == 4
    assert output.images[0].size == (8, 8)
    pooled = Encoder().encode_text(PROMPTS).pooled[[0, 0, 1, 1]]
    assert (output.image_embeddings - pooled).abs().max() < 0.1
    alone = run(pipeline, PROMPTS[1], generator=seeds(1))
    assert bits(alone.images) == bits(output.images)[3:]
    assert torch.equal(alone.image_embeddings[0], output.image_embeddings[3])


def test_one_generator_serves_each_picture_in_turn(pipeline: Pipeline) -> None:
    two, three = (run(pipeline, PROMPTS[0], num_images=n, generator=seeds(5)[0]) for n in (2, 3))
    assert bits(two.images) == bits(three.images)[:2]
    assert len(set(bits(three.images))) == 3
    fresh = [run(pipeline, PROMPTS[0]) for _ in range(2)]
    assert bits(fresh[0].images) != bits(fresh[1].images)


def test_conditions_and_guidance_reach_the_denoiser(pipeline: Pipeline) -> None:
    def paint(**settings) -> bytes:
        return bits(run(pipeline, PROMPTS[0], generator=seeds(0), **settings).images)[0]

    pictures = [
        paint(),
        paint(conditions=["image"]),
        paint(conditions=["text"]),
        paint(sampling=Sampling(guidance_scale=1.0)),
        paint(negative_prompt=PROMPTS[1]),
        paint(sampling=Sampling(steps=3)),
        paint(sampling=Sampling(sampler="euler")),
    ]
    assert len(set(pictures)) == len(pictures)
    assert paint(conditions=["text", "image"]) == pictures[0]


def test_negative_prompt_is_predicted_without_noise(pipeline: Pipeline) -> None:
    together = run(pipeline, PROMPTS[0], num_images=2, generator=seeds(0, 1), negative_prompt=PROMPTS[1])
    alone = run(pipeline, PROMPTS[0], generator=seeds(1), negative_prompt=PROMPTS[1])
    assert bits(alone.images) == bits(together.images)[1:]


def test_the_callback_is_told_every_step(pipeline: Pipeline) -> None:
    told = []
    run(
        pipeline,
        PROMPTS[0],
        sampling=Sampling(steps=4),
        callback=lambda progress: told.append((progress.step, progress.steps)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "the prompt is empty"),
        ("  ", {}, "the prompt is empty"),
        (["a star", ""], {}, "the prompt is empty"),
        ("\udcff", {}, "the prompt is not text"),
        ("a star", {"num_images": 0}, "num_images must be a whole number of at least 1, got 0"),
        ("a star", {"sampling": Sampling(steps=0)}, "0 steps"),
        ("a star", {"sampling": Sampling(size=(64, 64))}, "images of one size"),
        ("a star", {"sampling": Sampling(options={"noise_level": 3})}, "no option noise_level"),
        ("a star", {"conditions": []}, r"conditions \[\] must be"),
        ("a star", {"conditions": ["image", "depth"]}, "must be one or more of what the decoder reads: image, text"),
        ("a star", {"generator": seeds(0, 1)}, "2 generators for 1 images"),
        ("a star", {"sampling": Sampling(guidance_scale=float("nan"))}, "guidance scale"),
        ("a star", {"sampling": Sampling(sampler="none")}, "unknown sampler 'none'"),
    ],
)
def test_wrong_input(pipeline: Pipeline, prompt, settings, message) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(GenerationRequest(prompt, **settings))


def test_pictures_are_rounded_to_the_nearest_grey() -> None:
    values = torch.tensor([0.0, 0.5, 1.0, 0.4 / 255, 0.6 / 255, 1 / 3])
    (image,) = to_pil(values.expand(1, 3, 1, 6))
    assert [image.getpixel((x, 0))[0] for x in range(6)] == [0, 128, 255, 0, 1, 85]


def test_conditioning_holds_what_the_guide_tells() -> None:
    features = Encoder().encode_text(PROMPTS)
    both = conditioning_of(Guide(features.pooled, features, PROMPTS), torch.device("cpu"))
    assert set(both.conditions) == {"image", "text"}
    assert both.conditions["image"].states is None
    assert torch.equal(both.conditions["text"].states, features.states)
    assert set(conditioning_of(Guide(features.pooled, None, PROMPTS), torch.device("cpu")).conditions) == {"image"}
    with pytest.raises(UserError, match="needs image embeddings or text features"):
        conditioning_of(Guide(texts=PROMPTS), torch.device("cpu"))


def test_a_guide_tells_one_number_of_pictures() -> None:
    guide = Guide(torch.arange(6.0).view(3, 2), texts=["a", "b", "c"])
    assert len(guide) == 3
    assert (guide[[2, 0]].texts, guide[[2, 0]].embeddings.tolist()) == (["c", "a"], [[4, 5], [0, 1]])
    for wrong in ({}, {"texts": ["a"], "embeddings": torch.zeros(2, 2)}):
        with pytest.raises(AssertionError, match="one number of images"):
            Guide(**wrong)


def test_one_each_gives_independent_generators() -> None:
    first, second = one_each(seeds(3)[0], 2)
    assert first.initial_seed() != second.initial_seed()
    given = seeds(1, 2)
    assert one_each(given, 2) == given


def test_a_list_of_negative_prompts_is_one_for_each(pipeline: Pipeline) -> None:
    both = run(pipeline, *PROMPTS, num_images=2, generator=seeds(0, 1, 0, 1), negative_prompt=["a ring", "a heart"])
    for place, (prompt, negative) in enumerate(zip(PROMPTS, ["a ring", "a heart"], strict=True)):
        alone = run(pipeline, prompt, num_images=2, generator=seeds(0, 1), negative_prompt=negative)
        assert bits(alone.images) == bits(both.images)[2 * place : 2 * place + 2]
    one = run(pipeline, *PROMPTS, generator=seeds(0, 1), negative_prompt="a ring")
    assert bits(one.images)[0] == bits(both.images)[0]
    assert bits(one.images)[1] != bits(both.images)[3]
    for wrong in ([], ["a ring"], ["a"] * 3):
        with pytest.raises(UserError, match=rf"a list of {len(wrong)} for 2 prompts: give one text for all, or a list"):
            run(pipeline, *PROMPTS, negative_prompt=wrong)
    with pytest.raises(UserError, match="the negative prompt is not text"):
        run(pipeline, *PROMPTS, negative_prompt=["a", "\udcff"])


def test_seeds_are_of_generators_that_make_the_image_again(pipeline: Pipeline) -> None:
    used, state = seeds(2)[0], seeds(3)[0]
    torch.rand(1, generator=used)
    state.set_state(used.get_state())
    twice = seeds(4)[0]
    output = run(pipeline, *[PROMPTS[0]] * 5, generator=[seeds(1)[0], used, state, twice, twice])
    assert output.seeds == [1, None, None, None, None]
    drawn = run(pipeline, *[PROMPTS[0]] * 2, generator=seeds(5)[0])
    again = run(pipeline, *[PROMPTS[0]] * 2, generator=seeds(*drawn.seeds))
    assert bits(again.images) == bits(drawn.images)


class Overflowing(Prior):
    """Knows one prompt too little."""

    def predict(self, features, *, noise=None, generator=None):
        found = super().predict(features, noise=noise)
        lost = (features.pooled == Encoder().encode_text([PROMPTS[1]]).pooled).all(1)
        return found.masked_fill(lost[:, None], float("inf"))


def test_images_that_are_not_finite_are_named(pipeline: Pipeline) -> None:
    broken = replace(pipeline, prior=Overflowing())
    given = seeds(6, 7, 8, 9)
    with pytest.raises(
        NonFiniteError, match=r"image embeddings .*image 1 of 'a blue star' \(seed 8\), image 2 of 'a blue st"
    ) as error:
        run(broken, *PROMPTS, num_images=2, generator=given)
    assert error.value.rows == (2, 3)
    assert "--dtype" in str(error.value)
    with pytest.raises(NonFiniteError, match=r"image embeddings hold .*: negative prompt 'a blue star'"):
        run(broken, PROMPTS[0], negative_prompt=PROMPTS[1])
    assert run(broken, *PROMPTS, conditions=["text"]).images  # nothing is made of them
    mixtures = [[(torch.full((1, WIDTH), value), 1.0)] for value in (0.0, float("nan"))]
    with pytest.raises(NonFiniteError, match=r"image 2 of 2 \(seed 1\)"):
        pipeline(GenerationRequest(mixtures=mixtures, generator=seeds(0, 1)))


@pytest.mark.parametrize("part", ["states", "pooled"])
def test_texts_whose_features_are_not_finite_are_named(pipeline: Pipeline, part: str) -> None:
    class Broken(Encoder):
        def encode_text(self, texts: list[str]) -> TextFeatures:
            found = super().encode_text(texts)
            getattr(found, part)[[text == PROMPTS[1] for text in texts]] = float("nan")
            return found

    with pytest.raises(NonFiniteError, match=r"text features hold .*: 'a blue star'"):
        run(replace(pipeline, text_encoder=Broken()), *PROMPTS)


def test_a_decoder_that_does_not_check_is_checked(pipeline: Pipeline) -> None:
    class Careless(Halves):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return super().decode(latents) * float("nan")

    with pytest.raises(NonFiniteError, match=r"images hold .*image 1 of 'a red circle' \(seed 3\)"):
        run(
            replace(pipeline, decoder=replace(pipeline.decoder, autoencoder=Careless())), PROMPTS[0], generator=seeds(3)
        )
