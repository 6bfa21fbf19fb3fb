"""Laws of the denoiser contract, on a small real U-Net and on drawn inputs."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from syzygy.core.contracts import Condition, Conditioning, TextFeatures, image_condition, text_condition
from syzygy.core.packed_attention import PackedText
from syzygy.core.randomness import generator, per_sample_noise
from syzygy.decoder.backbone import build_decoder
from syzygy.decoder.guidance import Guided
from syzygy.decoder.network import DecoderConfig, SlotConfig, UNetConfig
from syzygy.decoder.noise_levels import KarrasSchedule, LogNormal
from syzygy.decoder.preconditioning import Preconditioned
from syzygy.decoder.samplers import SAMPLERS, sample
from tests.closeness import LEVEL, NETWORK, assert_close

seeds = st.integers(0, 10**6)
few = settings(max_examples=12)


@cache
def denoiser() -> Preconditioned:
    slots = (
        SlotConfig(name="image", pooled_width=6, pooled_tokens=2),
        SlotConfig(name="text", token_width=6, pooled_width=6),
    )
    config = DecoderConfig(
        slots=slots,
        cross_attention_width=16,
        vector_width=16,
        size=16,
        channels=3,
        sigma_data=0.5,
        backbone=UNetConfig(channels=(16, 32), head_width=16, norm_groups=8),
    )
    decoder = build_decoder(config).eval().requires_grad_(False)
    decoder.set_scale("image", 1.0)
    decoder.set_scale("text", 1.0)
    weight = decoder.get_parameter("backbone.unet.conv_out.weight")  # zero in a fresh decoder
    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator(0, "conv_out")))
    return Preconditioned(decoder, config.sigma_data)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed, *shape))


def conditioning(seed: int, batch: int, *, present: list[bool] | None = None) -> Conditioning:
    """Image and text for `batch` samples; texts of 1 to 7 tokens."""
    mask = torch.arange(7) < torch.randint(1, 8, (batch, 1), generator=generator(seed, "length"))
    text = text_condition(TextFeatures(normal(seed, batch, 7, 6), mask, normal(seed + 1, batch, 6)))
    keep = torch.tensor([True] * batch if present is None else present)
    return Conditioning({"image": image_condition(normal(seed, batch, 6)).kept(keep), "text": text.kept(keep.flip(0))})


def levels(seed: int, batch: int) -> Tensor:
    return LogNormal(p_std=2).sample(batch, generator(seed, "sigma"))


@few
@given(seeds, st.integers(2, 5))
def test_a_batch_of_n_equals_n_of_one(seed: int, batch: int) -> None:
    x, sigma = normal(seed, batch, 3, 16, 16), levels(seed, batch)
    conditions = conditioning(seed, batch, present=[i % 2 == 0 for i in range(batch)])
    whole = denoiser()(x, sigma, conditions)
    for i in range(batch):
        one = denoiser()(x[i : i + 1], sigma[i : i + 1], conditions[i : i + 1])
        assert_close(whole[i : i + 1], one, depth=NETWORK)


@few
@given(seeds, st.floats(0, 12))
def test_guidance_of_a_batch_equals_guidance_of_one(seed: int, scale: float) -> None:
    x, sigma, conditions = normal(seed, 3, 3, 16, 16), levels(seed, 3), conditioning(seed, 3)
    guided = Guided(denoiser(), scale)
    one = guided(x[1:2], sigma[1:2], conditions[1:2])
    assert_close(guided(x, sigma, conditions)[1:2], one, depth=NETWORK * (1 + scale))


@few
@given(seeds)
def test_guidance_one_is_no_guidance(seed: int) -> None:
    x, sigma, conditions = normal(seed, 2, 3, 16, 16), levels(seed, 2), conditioning(seed, 2)
    assert torch.equal(Guided(denoiser(), 1.0)(x, sigma, conditions), denoiser()(x, sigma, conditions))


@few
@given(seeds, st.floats(0, 12).filter(lambda scale: scale != 1))
def test_guidance_away_from_the_same_condition_changes_nothing(seed: int, scale: float) -> None:
    x, sigma, conditions = normal(seed, 2, 3, 16, 16), levels(seed, 2), conditioning(seed, 2)
    guided = Guided(denoiser(), scale, negative=conditions)(x, sigma, conditions)
    assert_close(guided, denoiser()(x, sigma, conditions), depth=NETWORK * (1 + scale))


@few
@given(seeds, st.sampled_from([1e4, -3.0, float("nan"), float("inf")]))
def test_dropped_conditions_have_no_influence_at_all(seed: int, garbage: float) -> None:
    x, sigma = normal(seed, 2, 3, 16, 16), levels(seed, 2)
    dropped = conditioning(seed, 2).dropped()

    def spoilt(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.full_like(x, garbage)

    other = Conditioning(
        {
            name: Condition(c.present, spoilt(c.states), c.mask, spoilt(c.pooled))
            for name, c in dropped.conditions.items()
        }
    )
    base = denoiser()(x, sigma, dropped)
    assert torch.equal(denoiser()(x, sigma, other), base)
    assert_close(denoiser()(x, sigma, Conditioning({})), base, depth=NETWORK)
    assert (denoiser()(x, sigma, conditioning(seed, 2)) - base).abs().max() > 1e-4, "present ones do"


@few
@given(seeds)
def test_padding_has_no_influence(seed: int) -> None:
    x, sigma, conditions = normal(seed, 2, 3, 16, 16), levels(seed, 2), conditioning(seed, 2)
    text = conditions.conditions["text"]
    assert text.states is not None
    assert text.mask is not None
    assert text.pooled is not None
    features = TextFeatures(text.states, text.mask, text.pooled)
    short = text_condition(PackedText.of(features).padded())
    trimmed = Conditioning({**conditions.conditions, "text": short})
    assert_close(denoiser()(x, sigma, trimmed), denoiser()(x, sigma, conditions), depth=NETWORK)


@few
@given(seeds)
def test_preconditioning_keeps_clean_pictures_and_ignores_pure_noise(seed: int) -> None:
    x, conditions = normal(seed, 2, 3, 16, 16), conditioning(seed, 2)
    assert_close(denoiser()(x, torch.full((2,), 1e-6), conditions), x, depth=NETWORK)
    far = torch.full((2,), 1e6)
    network = denoiser().network(x, far.log() / 4, conditions)
    assert_close(denoiser()(far[0] * x, far, conditions), 0.5 * network, depth=NETWORK)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_does_not_depend_on_its_neighbours(sampler: str) -> None:
    conditions = conditioning(0, 3)

    def pictures(indices: list[int]) -> Tensor:
        noise = per_sample_noise((3, 16, 16), [generator(0, "picture", i) for i in indices], "cpu")
        sigmas = KarrasSchedule().sigmas(5)
        return sample(Guided(denoiser(), 3.0), noise, sigmas, conditions[torch.tensor(indices)], sampler=sampler)

    torch.testing.assert_close(pictures([0, 1, 2])[1:2], pictures([1]), atol=LEVEL, rtol=0)
