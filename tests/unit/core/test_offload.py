"""One module at a time: who is where, when it moves, and what is let go."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from syzygy.core.contracts import Conditioning
from syzygy.core.offload import SequentialOffload
from syzygy.decoder.noise_levels import KarrasSchedule
from syzygy.decoder.samplers import sample
from syzygy.experts.routing import Experts, Stages

CUT = Stages(("low", "middle", "high"), (0.3, 5.0))


class Scale(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x, sigma, conditioning):
        return x * self.by


def made(name: str) -> Scale:
    return Scale({"low": 0.5, "middle": 0.25, "high": 0.125}[name])


class Disk:
    """Makes experts, and knows which were asked for and how many live."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.alive: list[weakref.ref] = []
        self.most = 0

    def load(self, name: str) -> Scale:
        self.asked.append(name)
        one = made(name)
        self.alive.append(weakref.ref(one))
        self.most = max(self.most, sum(ref() is not None for ref in self.alive))
        return one


def walk(experts: Experts, sampler: str) -> torch.Tensor:
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return sample(experts, noise, KarrasSchedule().sigmas(12), Conditioning({}), sampler=sampler)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Which expert went where, in order."""
    found: list[tuple[float, str]] = []
    plain = nn.Module.to

    def to(self, *args, **more):
        if isinstance(self, Scale):
            found.append((self.by.item(), str(args[0] if args else more["device"])))
        return plain(self, *args, **more)

    monkeypatch.setattr(nn.Module, "to", to)
    return found


@pytest.mark.parametrize("sampler", ["dpm++2m", "heun"])
def test_one_is_in_memory_and_loaded_when_the_expert_changes(sampler: str) -> None:
    disk = Disk()
    lazy = Experts(CUT, SequentialOffload.loaded(CUT.experts, disk.load, torch.float32)).eval()
    resident = Experts(CUT, {name: made(name) for name in CUT.experts}).eval()
    assert torch.equal(walk(lazy, sampler), walk(resident, sampler))
    # Heun looks across a border once and comes back to finish nothing there: its next step begins beyond.
    assert disk.asked == ["high", "middle", "low"]
    assert disk.most == 1
    walk(lazy, sampler)
    assert disk.asked == ["high", "middle", "low"] * 2


def test_one_is_on_the_device_and_the_others_at_home(moves: list[tuple[float, str]]) -> None:
    modules = {name: made(name) for name in CUT.experts}
    offloaded = Experts(CUT, SequentialOffload.offloaded(modules)).eval()
    assert moves == []
    with torch.inference_mode():
        walk(offloaded, "euler")
    device = str(offloaded.denoisers.device)
    assert moves == [(0.125, device), (0.125, "cpu"), (0.25, device), (0.25, "cpu"), (0.5, device)]
    assert offloaded.denoisers.active == "low"
    assert all(module.by is offloaded.denoisers[name].by for name, module in modules.items())


def test_mixed_noise_levels_reach_each_expert_once() -> None:
    disk = Disk()
    lazy = Experts(CUT, SequentialOffload.loaded(CUT.experts, disk.load, torch.float32)).eval()
    made_of = lazy(torch.ones(5, 1, 1, 1), torch.tensor([9.0, 0.1, 1.0, 0.2, 50.0]), Conditioning({}))
    assert made_of.flatten().tolist() == [0.125, 0.5, 0.25, 0.5, 0.125]
    assert disk.asked == ["low", "middle", "high"]


def test_they_follow_precision_and_can_leave_inference_mode() -> None:
    one = SequentialOffload.loaded(("low", "high"), made, torch.float32)
    with torch.inference_mode():
        first = one["low"]
    assert not first.by.is_inference()
    assert not first.by.requires_grad
    assert not first.training
    one.to(torch.float64)
    assert first.by.dtype == one["high"].by.dtype == one.dtype == torch.float64


def changed(module: nn.Module) -> None:
    module.by.data += 1


@pytest.mark.parametrize(
    "kept",
    [
        lambda: SequentialOffload.loaded(CUT.experts, made, torch.float32),
        lambda: SequentialOffload.offloaded({name: made(name) for name in CUT.experts}),
    ],
)
def test_a_change_reaches_all_of_them(kept: Callable[[], SequentialOffload]) -> None:
    experts = kept()
    assert experts["middle"].by.item() == 0.25
    experts.each(changed)
    assert [experts[name].by.item() for name in ("middle", "low", "high", "middle")] == [1.25, 1.5, 1.125, 1.25]


def test_weights_are_those_of_all_whoever_is_at_work() -> None:
    resident = Experts(CUT, {name: made(name) for name in CUT.experts})
    lazy = Experts(CUT, SequentialOffload.loaded(CUT.experts, made, torch.float32))
    wanted = resident.state_dict()
    for experts in (resident, lazy):
        assert dict(experts.weights) == wanted
        assert len(experts.weights) == 3
