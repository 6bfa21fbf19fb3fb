"""The diffusion prior against diffusers' own classes: the network, its folder, and the sampler."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.schedulers import scheduling_unclip
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from torch import Tensor

from syzygy.core.contracts import Prior, TextFeatures
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.prior.diffusion_prior import (
    DiffusionPrior,
    DiffusionPriorConfig,
    PriorSampling,
    SampledPrior,
    fresh_noise,
    sample,
)
from syzygy.prior.eclipse import EclipsePrior, EclipsePriorConfig
from syzygy.prior.embedding_statistics import EmbeddingStatistics
from syzygy.prior.unclip_sampling import alphas_bar, flow_times, visited
from tests.closeness import NETWORK, assert_close

WIDTH, TOKENS = 12, 7
SIZES = {"embedding_dim": WIDTH, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, key, *shape))


def features(lengths: list[int], longest: int = TOKENS) -> TextFeatures:
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return TextFeatures(normal(len(lengths), longest, WIDTH), mask, normal(len(lengths), WIDTH, key="pooled"))


@pytest.fixture
def stock() -> PriorTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PriorTransformer(**SIZES, num_embeddings=TOKENS).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))
            model.clip_std.abs_()
    return model


@pytest.fixture
def ours(stock: PriorTransformer, tmp_path: Path) -> DiffusionPrior:
    stock.save_pretrained(tmp_path / "stock")
    return DiffusionPrior.from_pretrained(tmp_path / "stock").eval()


@torch.no_grad()
def test_the_network_equals_diffusers(stock: PriorTransformer, ours: DiffusionPrior) -> None:
    text, noisy, timestep = features([3, 7, 1]), normal(3, WIDTH), torch.tensor([0, 400, 999])
    expected = stock(
        noisy,
        timestep,
        proj_embedding=text.pooled,
        encoder_hidden_states=text.states,
        attention_mask=text.mask,
    ).predicted_image_embedding
    assert_close(ours(noisy, timestep, ours.read(text)), expected, depth=NETWORK)
    assert_close(ours.unwhitened(noisy), stock.post_process_latents(noisy))
    assert_close(ours.whitened(ours.unwhitened(noisy)), noisy, depth=NETWORK)


def test_its_folder_is_read_by_diffusers(ours: DiffusionPrior, stock: PriorTransformer, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path / "ours")
    again = PriorTransformer.from_pretrained(tmp_path / "ours", local_files_only=True)
    for name, value in stock.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@torch.no_grad()
@pytest.mark.parametrize("steps", [4, 10, 28])
def test_unguided_ddim_equals_diffusers(ours: DiffusionPrior, steps: int) -> None:
    text, x = ours.read(features([3, 7])), normal(2, WIDTH)
    found = sample(ours, x, text, None, PriorSampling(steps=steps, eta=0, clip_range=5))
    scheduler = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="sample",
        clip_sample_range=5.0,
        set_alpha_to_one=True,
    )
    assert_close(scheduler.alphas_cumprod.double(), alphas_bar(), dtype=torch.float32)
    scheduler.set_timesteps(steps - 1)  # its step then leads from one of our timesteps to the next
    for t in visited(steps):
        clean = ours(x, torch.full((2,), t), text)
        x = scheduler.step(clean, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
    assert_close(found, x, depth=NETWORK)


def test_the_schedule_of_published_priors_equals_diffusers() -> None:
    scheduler = UnCLIPScheduler()
    torch.testing.assert_close(alphas_bar("cosine").float(), scheduler.alphas_cumprod, atol=1e-9, rtol=1e-4)
    for steps in (2, 7, 25, 27, 50, 999):
        scheduler.set_timesteps(steps)
        assert visited(steps) == scheduler.timesteps.tolist()


@torch.no_grad()
def test_ancestral_steps_equal_those_of_published_priors(ours: DiffusionPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    text, noise, empty = ours.read(features([3, 7])), normal(2, WIDTH), ours.read(features([2])).expanded(2)
    asked: list[Tensor] = []
    hook = ours.register_forward_pre_hook(lambda _, arguments: asked.append(arguments[0]))
    walked = {}
    for schedule in ("cosine", "linear"):
        found = sample(ours, noise, text, empty, PriorSampling(steps=9, clip_range=5), schedule)
        walked[schedule] = torch.stack([*asked[::2], found])
        asked.clear()
    hook.remove()

    scheduler = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)
    scheduler.set_timesteps(9)
    # Theirs counts in fp32, whose roundings guidance of a random network makes large.
    signal = alphas_bar("cosine")
    scheduler.betas = 1 - signal / torch.cat([torch.ones(1), signal[:-1]])
    scheduler.alphas, scheduler.alphas_cumprod = 1 - scheduler.betas, signal
    xs, times = [noise], scheduler.timesteps.tolist()
    for i, t in enumerate(times):
        added = fresh_noise(noise, i)
        monkeypatch.setattr(scheduling_unclip, "randn_tensor", lambda *_, drawn=added, **__: drawn)
        timestep = torch.full((2,), t)
        base = ours(xs[-1], timestep, empty)
        clean = base + 4 * (ours(xs[-1], timestep, text) - base)
        xs.append(scheduler.step(clean, t, xs[-1], prev_timestep=times[i + 1] if i + 1 < 9 else None).prev_sample)
    assert_close(walked["cosine"], torch.stack(xs), depth=NETWORK)
    assert (walked["linear"] - walked["cosine"]).abs().amax((1, 2))[2:-2].min() > 0.1


@torch.no_grad()
def test_flow_matching_takes_euler_steps_along_straight_lines(ours: DiffusionPrior) -> None:
    text, noise = ours.read(features([3, 7])), normal(2, WIDTH)
    found = sample(ours, noise, text, None, PriorSampling(steps=6, guidance_scale=1, eta=0), "flow")
    times = visited(6)
    line = [float(flow_times()[t]) for t in times] + [
        0.0
    ]  # (1 − t) clean + t noise, which the network sees at unit variance
    x = noise
    for i, t in enumerate(times):
        seen = x / math.hypot(1 - line[i], line[i])
        clean = ours(seen, torch.full((2,), t), text).clamp(-10, 10)
        x = x + (line[i + 1] - line[i]) * (x - clean) / line[i]
    assert_close(found, x, depth=NETWORK)


@torch.no_grad()
def test_ancestral_noise_keeps_the_variance_of_the_marginals(ours: DiffusionPrior) -> None:
    """With the data at zero, x must have variance 1 - ᾱ at each time, whatever η."""

    for parameter in ours.proj_to_clip_embeddings.parameters():
        parameter.zero_()
    seen: dict[int, float] = {}
    ours.register_forward_pre_hook(lambda _, arguments: seen.update({int(arguments[1][0]): float(arguments[0].var())}))
    text, signal = ours.read(features([3])).expanded(1500), alphas_bar()
    start = normal(1500, WIDTH) * float(1 - signal[-1]) ** 0.5
    for eta in (0.0, 0.5, 1.0):
        sample(ours, start, text, None, PriorSampling(steps=6, eta=eta))
        assert len(seen) == 6
        for t, variance in seen.items():
            assert variance == pytest.approx(float(1 - signal[t]), abs=0.03), (eta, t)


@torch.no_grad()
def test_a_batch_equals_its_rows_and_the_pads_do_not_count(ours: DiffusionPrior) -> None:
    text, noise = features([3, 7, 2]), normal(3, WIDTH)
    prior = SampledPrior(ours, features([2]), PriorSampling(steps=4))
    assert isinstance(prior, Prior)
    assert prior.evaluations == 8
    together = prior.predict(text, noise=noise)
    for i in range(3):
        alone = prior.predict(text[[i]], noise=noise[[i]])
        assert_close(alone[0], together[i], depth=NETWORK)
    spoilt = TextFeatures(text.states.masked_fill(~text.mask[..., None], 1e4), text.mask, text.pooled)
    assert_close(prior.predict(spoilt, noise=noise), together, depth=NETWORK)
    drawn = [prior.predict(text, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@torch.no_grad()
def test_guidance_of_one_is_off_and_more_moves_away_from_the_empty_text(ours: DiffusionPrior) -> None:
    text, empty, noise = features([3, 7]), features([2]), normal(2, WIDTH)

    def predicted(scale: float, unconditional: TextFeatures = empty) -> Tensor:
        sampling = PriorSampling(steps=3, guidance_scale=scale, eta=0, clip_range=1e6)
        return SampledPrior(ours, unconditional, sampling).predict(text, noise=noise)

    assert torch.equal(predicted(1), predicted(1, features([5])))
    nothing = SampledPrior(ours, empty, PriorSampling(steps=1, guidance_scale=1, eta=0, clip_range=1e6))
    base = nothing.predict(empty[[0, 0]], noise=noise)
    one = SampledPrior(ours, empty, PriorSampling(steps=1, guidance_scale=1, eta=0, clip_range=1e6))
    guided = SampledPrior(ours, empty, PriorSampling(steps=1, guidance_scale=4, eta=0, clip_range=1e6))
    expected = base + 4 * (one.predict(text, noise=noise) - base)
    assert_close(guided.predict(text, noise=noise), expected, depth=NETWORK)
    assert not torch.equal(predicted(2), predicted(1))


def test_the_two_kinds_of_prior_are_told_apart(ours: DiffusionPrior, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path / "diffusion")
    with pytest.raises(UserError, match="holds a diffusion prior"):
        EclipsePrior.from_pretrained(tmp_path / "diffusion")
    eclipse = EclipsePrior(EclipsePriorConfig(**SIZES, num_embeddings=TOKENS))
    eclipse.set_statistics(EmbeddingStatistics(torch.zeros(WIDTH), torch.ones(WIDTH), 1.0))
    eclipse.save_pretrained(tmp_path / "eclipse")
    with pytest.raises(UserError, match="without time embedding"):
        DiffusionPrior.from_pretrained(tmp_path / "eclipse")
    with pytest.raises(UserError, match="no embedding statistics"):
        DiffusionPrior(DiffusionPriorConfig(**SIZES)).save_pretrained(tmp_path / "fresh")


def test_too_many_steps() -> None:
    assert visited(1) == [999]
    assert visited(3) == [999, 500, 0]
    for steps in (0, 1001):
        with pytest.raises(UserError, match=f"{steps} steps are not possible; allowed are 1 to 1000"):
            visited(steps)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_any_number_of_steps_arrives(
    ours: DiffusionPrior, schedule: Any, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = normal(2, WIDTH, key="target")
    monkeypatch.setattr(DiffusionPrior, "forward", lambda *_: target)
    text = ours.read(features([3, 4]))
    for steps in (1, 2, 999, 1000):
        how = PriorSampling(steps=steps, eta=eta, guidance_scale=1)
        torch.testing.assert_close(sample(ours, normal(2, WIDTH), text, None, how, schedule), target)
    with pytest.raises(UserError, match="1001 steps of the prior are not possible; allowed are 1 to 1000"):
        sample(ours, normal(2, WIDTH), text, None, PriorSampling(steps=1001), schedule)
