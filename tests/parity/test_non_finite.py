"""A network that overflows once, for one image of a batch, in each decoder: the image is refused by its number, never written as black."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syzygy.clip.clip_model import Clip
from syzygy.core import diffusers_schedulers
from syzygy.core.contracts import Guide, ImageDecoder, Sampling
from syzygy.core.errors import NonFiniteError
from syzygy.decoder.latent_decoder import LatentDecoder
from syzygy.generation import own_models
from syzygy.pretrained.families import LoadContext
from syzygy.pretrained.kandinsky import KandinskyDecoder
from syzygy.pretrained.karlo import KarloDecoder
from syzygy.pretrained.stable_diffusion import StableDiffusionDecoder
from syzygy.pretrained.stable_unclip import StableUnclipDecoder
from tests.tiny_karlo import tiny_karlo
from tests.tiny_stable_diffusion import tiny_stable_diffusion
from tests.tiny_unclip import WIDTH, Tiny, random_clip

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' own arithmetic
Case = tuple[ImageDecoder, list[nn.Module], Guide, Sampling]
"""A decoder, its networks, what to decode, and how."""


def guide() -> Guide:
    return Guide(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1)))


def kandinsky(tmp_path: Path, tiny_kandinsky: Tiny, **_: Any) -> Case:
    found = KandinskyDecoder.load(LoadContext(folder=tiny_kandinsky.decoder, clip=random_clip()))
    return found, [found.unet, found.autoencoder.decoder], guide(), Sampling(steps=3, guidance_scale=1.0)


def stable_unclip(tmp_path: Path, tiny_stable_unclip: Tiny, **_: Any) -> Case:
    found = StableUnclipDecoder.load(LoadContext(folder=tiny_stable_unclip.decoder))
    return found, [found.unet, found.autoencoder.decoder], guide(), Sampling(steps=3, guidance_scale=1.0)


def stable_diffusion(tmp_path: Path, **_: Any) -> Case:
    found = StableDiffusionDecoder.load(LoadContext(folder=tiny_stable_diffusion(tmp_path / "sd")))
    return (
        found,
        [found.unet, found.autoencoder.decoder],
        Guide(texts=["a", "b"]),
        Sampling(steps=3, guidance_scale=1.0),
    )


def karlo(tmp_path: Path, **_: Any) -> Case:
    tiny = tiny_karlo(tmp_path / "karlo")
    found = KarloDecoder.load(LoadContext(folder=tiny.decoder, clip=Clip.from_pretrained(tiny.clip)))
    sampling = Sampling(steps=3, guidance_scale=1.0, options={"super_res_steps": 2})
    return found, [found.unet, found.fine_first, found.fine_last], guide(), sampling


def ours(tmp_path: Path, tiny_model: Path, **_: Any) -> Case:
    own = own_models.load(tiny_model, prior=None, decoder=None, experts=None, device="cpu", local_files_only=True)
    found: Any = own.pipeline.decoder
    assert isinstance(found, LatentDecoder)
    features = own.clip.encode_text(["a", "b"])
    networks = [
        found.denoiser.network if hasattr(found.denoiser, "network") else found.denoiser,
        found.autoencoder.decoder,
    ]
    return found, networks, Guide(features.pooled, features), Sampling(steps=3, guidance_scale=1.0)


@pytest.fixture(params=[kandinsky, stable_unclip, stable_diffusion, karlo, ours], ids=lambda make: make.__name__)
def case(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_kandinsky: Tiny, tiny_stable_unclip: Tiny, tiny_model: Path
) -> Case:
    return request.param(
        tmp_path, tiny_kandinsky=tiny_kandinsky, tiny_stable_unclip=tiny_stable_unclip, tiny_model=tiny_model
    )


@pytest.fixture
def overflowing() -> Iterator[Callable[[nn.Module, float], None]]:
    """The first evaluation of a network gives this value somewhere in its second row."""
    hooks = []

    def overflow(network: nn.Module, value: float) -> None:
        times = iter([True])

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found = output if isinstance(output, torch.Tensor) else output[0]
            if next(times, False):
                found[1, 0, 0, 0] = value

        hooks.append(network.register_forward_hook(hook))

    yield overflow
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_the_image_that_overflowed_is_named(case: Case, value: float, overflowing: Callable[..., None]) -> None:
    decoder, networks, positive, sampling = case
    fresh = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    assert torch.isfinite(decoder.generate(positive, fresh, sampling=sampling)).all()
    for network in networks:
        overflowing(network, value)
        with pytest.raises(
            NonFiniteError, match=r"images hold values that are not finite.*number 2 of 2.*--dtype"
        ) as error:
            decoder.generate(positive, fresh, sampling=sampling)
        assert error.value.rows == (1,)


def test_a_scheduler_that_clips_does_not_hide_infinity() -> None:
    import diffusers

    own = diffusers_schedulers.fresh(diffusers.DDPMScheduler(clip_sample=True), None)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:1], torch.full_like(x[1:], float("inf"))])

    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    found = diffusers_schedulers.sample_with_scheduler(own, predict, torch.ones(2, 4, 2, 2), 3, generators)
    assert torch.isfinite(found[0]).all()
    assert found[1].isnan().all()
