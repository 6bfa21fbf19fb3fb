"""Parts that visit the device: there while they compute, home again whatever happens."""

from pathlib import Path

import pytest
import torch
from torch import nn

from syzygy.clip.clip_model import Clip
from syzygy.pretrained.visiting import VisitingPrior, VisitingText, visiting
from syzygy.prior.diffusion_prior import SampledPrior
from syzygy.prior.eclipse import EclipsePrior
from syzygy.prior.prior_loading import load_prior
from tests.closeness import NETWORK, assert_close

DEVICE = torch.device("cpu", 0)  # the same memory under another name, as no GPU is at hand


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which module went where, in order."""
    found = []
    plain = nn.Module.to

    def to(self, device, *args, **more):
        found.append((type(self).__name__, str(device)))
        return plain(self, device, *args, **more)

    monkeypatch.setattr(nn.Module, "to", to)
    return found


def test_text_and_prior_are_there_in_turn(tiny_model: Path, moves: list[tuple[str, str]]) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip")
    prior = load_prior(tiny_model / "prior", clip)
    assert isinstance(prior, EclipsePrior)
    wanted = prior.predict(clip.encode_text(["a red circle"]), noise=torch.zeros(1, clip.width))
    moves.clear()
    text, visitor = VisitingText(clip, DEVICE), VisitingPrior(prior, DEVICE)
    assert text.width == clip.width
    features = text.encode_text(["a red circle"])
    made = visitor.predict(features, noise=torch.zeros(1, clip.width))
    assert_close(made, wanted, depth=NETWORK)
    assert moves == [("Clip", "cpu:0"), ("Clip", "cpu"), ("EclipsePrior", "cpu:0"), ("EclipsePrior", "cpu")]


def test_of_a_sampled_prior_the_network_travels(tiny_model: Path, moves: list[tuple[str, str]]) -> None:
    clip = Clip.from_pretrained(tiny_model / "clip")

    class Network(nn.Module):
        pass

    class Sampled(SampledPrior):
        def predict(self, features, *, noise=None, generator=None):
            return features.pooled

    sampled = Sampled.__new__(Sampled)
    object.__setattr__(sampled, "network", Network())
    moves.clear()
    VisitingPrior(sampled, DEVICE).predict(clip.encode_text(["x"]))
    assert moves == [("Network", "cpu:0"), ("Network", "cpu")]


def test_a_part_comes_home_after_an_error(moves: list[tuple[str, str]]) -> None:
    part = nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), visiting(DEVICE, part):
        raise ZeroDivisionError
    assert moves == [("Linear", "cpu:0"), ("Linear", "cpu")]
    with visiting(DEVICE, part, offload=False):
        pass
    assert len(moves) == 2


def test_an_object_of_the_users_own_stays_where_it_is(tiny_model: Path, moves: list[tuple[str, str]]) -> None:
    class Own:
        def predict(self, features, *, noise=None, generator=None):
            return features.pooled

    clip = Clip.from_pretrained(tiny_model / "clip")
    moves.clear()
    features = clip.encode_text(["x"])
    assert torch.equal(VisitingPrior(Own(), DEVICE).predict(features), features.pooled)
    assert moves == []
