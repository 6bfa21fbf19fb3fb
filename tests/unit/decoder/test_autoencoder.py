"""The autoencoder: shapes, normalised latents, exact reload, refusals."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.config import parse
from syzygy.core.contracts import ImageAutoencoder
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.decoder.autoencoder import Autoencoder, AutoencoderConfig, build_autoencoder
from tests.closeness import NETWORK, assert_close

CONFIG = AutoencoderConfig(image_size=16, channels=16, fine_channels=8, latent_channels=3)


def pictures(number: int = 6) -> Tensor:
    return torch.rand(number, 3, 16, 16, generator=generator(0, "pictures"))


def trained() -> Autoencoder:
    """An autoencoder whose statistics are those of `pictures`."""
    made = build_autoencoder(CONFIG, seed=2).eval()
    with torch.no_grad():
        raw = made.raw_latents(pictures())
    made.set_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    return made


def test_latents_have_their_shape_and_unit_variance() -> None:
    made = trained()
    latents = made.encode(pictures())
    assert isinstance(made, ImageAutoencoder)
    assert latents.shape == (6, *made.latent_shape) == (6, 3, 4, 4)
    assert_close(latents.mean((0, 2, 3)), torch.zeros(3), largest=1.0)
    assert_close(latents.std((0, 2, 3)), torch.ones(3), depth=NETWORK)
    decoded = made.decode(latents)
    assert decoded.shape == (6, 3, 16, 16)
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_decoding_takes_the_normalisation_back() -> None:
    made = trained()
    with torch.no_grad():
        through, _ = made(pictures(), torch.full((6, *made.latent_shape), 0.0))
    assert_close(made.decode(made.encode(pictures())), (through / 2 + 0.5).clamp(0, 1), depth=NETWORK)


def test_noise_widens_what_training_sees_and_divergence_is_a_number_a_picture() -> None:
    made = trained()
    random = generator(0, "noise")
    with torch.no_grad():
        calm, divergence = made(pictures(), torch.zeros(6, *made.latent_shape))
        noisy, _ = made(pictures(), torch.randn(6, *made.latent_shape, generator=random))
    assert not torch.equal(calm, noisy)
    assert divergence.shape == (6,)
    assert (divergence > 0).all()


def test_weights_owe_to_the_seed_and_come_back(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    made = trained()
    assert torch.equal(torch.get_rng_state(), state), "building must not draw from the global generator"
    assert made.fingerprint() == trained().fingerprint() != build_autoencoder(CONFIG, seed=3).fingerprint()
    made.save_pretrained(tmp_path / "a", {"seed": 2})
    again = Autoencoder.from_pretrained(tmp_path / "a")
    assert again.fingerprint() == made.fingerprint()
    assert torch.equal(again.encode(pictures()), made.encode(pictures()))


def test_wrong_folders_and_statistics_are_refused(tmp_path: Path) -> None:
    fresh = build_autoencoder(CONFIG)
    with pytest.raises(AssertionError, match="set_statistics"):
        fresh.save_pretrained(tmp_path / "a", {})
    for mean, std in ((float("nan"), 1.0), (0.0, 0.0), (0.0, float("inf"))):
        with pytest.raises(UserError, match="positive standard deviations"):
            fresh.set_statistics(torch.full((3,), mean), torch.full((3,), std))
    trained().save_pretrained(tmp_path / "a", {})
    artifacts.write_json(
        tmp_path / "a" / artifacts.CONFIG_FILE, CONFIG.model_copy(update={"channels": 32}).model_dump(mode="json")
    )
    with pytest.raises(UserError, match=r"has shape .* expected"):
        Autoencoder.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / artifacts.WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="is missing"):
        Autoencoder.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"image_size": 30}, "multiple of patch 4"), ({"patch": 5}, "patch 5 must be an even number")],
)
def test_config_refuses_what_does_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(AutoencoderConfig, settings, "test")
