"""Low-rank adaptation: nothing at first, apart from others, mergeable."""

import pytest
import torch
from torch import Tensor, nn

from syzygy.core.errors import UserError
from syzygy.core.lora import Adapted, Lora
from tests.closeness import NETWORK, assert_close


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.attn = nn.Linear(8, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.attn(torch.relu(self.conv(x)).flatten(2).mean(2))))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def stirred(network: Network, seed: int, **settings) -> Lora:
    lora = Lora(network, **{"rank": 2} | settings)
    for update in lora.updates.values():
        torch.nn.init.normal_(update.up, std=0.3, generator=torch.Generator().manual_seed(seed))
    return lora


def test_a_fresh_one_changes_nothing(network: Network) -> None:
    plain = network(X)
    assert torch.equal(Adapted(network, Lora(network, rank=2))(X), plain)


def test_it_acts_within_its_block_alone(network: Network) -> None:
    plain = network(X)
    lora = stirred(network, 1)
    assert torch.equal(network(X), plain)
    assert not torch.allclose(Adapted(network, lora)(X), plain, atol=1e-3)
    with pytest.raises(ZeroDivisionError), lora.active():
        raise ZeroDivisionError
    assert torch.equal(network(X), plain)


def test_several_do_not_disturb_each_other(network: Network) -> None:
    first = stirred(network, 1)
    wanted = Adapted(network, first)(X)
    second = stirred(network, 2)
    assert torch.equal(Adapted(network, first)(X), wanted)
    assert not torch.allclose(Adapted(network, second)(X), wanted, atol=1e-3)


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_merged_is_adapted(network: Network, alpha: float | None) -> None:
    lora = stirred(network, 1, alpha=alpha)
    wanted = Adapted(network, lora)(X)
    merged = Network()
    merged.load_state_dict(network.state_dict())
    lora.merge_into(merged)
    assert_close(merged(X), wanted, depth=NETWORK)


def test_only_the_updates_learn(network: Network) -> None:
    lora = Lora(network, rank=2)
    Adapted(network, lora)(X).square().sum().backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(update.up.grad is not None and update.up.grad.any() for update in lora.updates.values())
    assert set(lora.state_dict()) == {f"updates.{n}.{p}" for n in ("conv", "attn", "out") for p in ("down", "up")}


def test_layers_are_chosen_by_name(network: Network) -> None:
    assert set(Lora(network, rank=1, layers="attn|out").updates) == {"attn", "out"}
    with pytest.raises(UserError, match=r"no linear or convolution layer .* 'ff'"):
        Lora(network, rank=1, layers="ff")
    with pytest.raises(UserError, match="at least 1, got 0"):
        Lora(network, rank=0)
