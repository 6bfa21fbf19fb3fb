"""Muon next to AdamW: which parameters it trains, that it is torch's own, and that it resumes to the bit."""

import pytest
import torch
from torch import nn

from syzygy.core import artifacts
from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.training.estimate import Footprint
from syzygy.training.loop import Interrupted, fit
from syzygy.training.optimizers import Optimizers, hidden_matrices
from syzygy.training.schedule import LoopConfig


class Layer(nn.Module):
    """A convolution, a matrix, a norm, and an embedding of the four positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.norm = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 6), nn.LayerNorm(6)
        self.positions = nn.Embedding(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.positions.weight
        return x + self.mix(self.conv(self.norm(x).mT).relu().mT)


class Network(nn.Module):
    """An embedding, a linear layer at each end, and repeated layers between them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.first = nn.Linear(6, 6)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.last = nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.first(self.words(ids))
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


class Task:
    """Regression of random targets; `stop_at` interrupts inside the loss of a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.modules = {"net": Network()}
        self.stop_at = stop_at

    def loss(self, step: int) -> dict[str, torch.Tensor]:
        if step == self.stop_at:
            import signal

            signal.raise_signal(signal.SIGINT)
        random = generator(0, "batch", step)
        ids, target = torch.randint(7, (16, 4), generator=random), torch.randn(16, 4, 2, generator=random)
        return {"loss": (self.modules["net"](ids) - target).square().mean()}

    def validate(self) -> dict[str, float]:
        return {}


def config(**changes) -> LoopConfig:
    settings = {"steps": 12, "lr": 1e-2, "optimizer": "muon", "muon_lr": 2e-2, "weight_decay": 0.1, "grad_clip": 1.0}
    return LoopConfig(**(settings | {"ema_half_life": 5.0, "checkpoint_every": 5} | changes))


MATRICES = {f"net.layers.{i}.{name}.weight" for i in (0, 1) for name in ("conv", "mix")}


def test_muon_trains_the_weights_of_repeated_layers_only():
    assert hidden_matrices({"net": Network()}) == MATRICES


def test_updates_are_those_of_torchs_own_optimizers():
    ours, theirs = Network(), Network()
    theirs.load_state_dict(ours.state_dict())
    optimizers = Optimizers({"net": ours}, config())
    named = {f"net.{name}": p for name, p in theirs.named_parameters()}
    flat = {name: nn.Parameter(named[name].detach().flatten(1)) for name in MATRICES}
    rest = {name: p for name, p in named.items() if name not in MATRICES}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest.values() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in rest.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
        fused=True,
    )
    muon = torch.optim.Muon(
        list(flat.values()), lr=2e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    ids = torch.randint(7, (16, 4), generator=generator(0, "ids"))
    for share in (1.0, 0.5):
        for net in (ours, theirs):
            net.zero_grad()
            net(ids).square().sum().backward()
        optimizers.step(1e-2 * share)
        for name, matrix in flat.items():
            gradient = named[name].grad
            assert gradient is not None
            matrix.grad = gradient.flatten(1)
        for group in (*adamw.param_groups, *muon.param_groups):
            group["lr"] *= share
        adamw.step()
        muon.step()
        with torch.no_grad():
            for name, matrix in flat.items():
                named[name].copy_(matrix.view_as(named[name]))
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert torch.equal(a, b), name


def test_an_interrupted_run_continues_to_the_bit(tmp_path):
    whole, cut = Task(), Task(stop_at=6)
    fit(whole, config(), tmp_path / "whole", run={})
    with pytest.raises(Interrupted):
        fit(cut, config(), tmp_path / "cut", run={})
    again = Task()
    fit(again, config(), tmp_path / "cut", run={})
    for a, b in zip(whole.modules["net"].parameters(), again.modules["net"].parameters(), strict=True):
        assert torch.equal(a, b)
    files = [artifacts.read_tensors(tmp_path / run / "checkpoint/optimizer.safetensors") for run in ("whole", "cut")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert {name for name in files[0] if name.endswith("momentum_buffer")} == {
        f"{name}.momentum_buffer" for name in MATRICES
    }


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path):
    fit(Task(), config(), tmp_path, run={})
    with pytest.raises(UserError, match="other parameters"):
        fit(Task(), config(optimizer="adamw", muon_lr=None, steps=20), tmp_path, run={})


def test_muon_without_matrices_is_refused(tmp_path):
    class Flat(Task):
        def __init__(self) -> None:
            super().__init__()
            self.modules = {"net": nn.Linear(2, 2)}

    with pytest.raises(UserError, match="optimizer=muon has no effect"):
        fit(Flat(), config(), tmp_path, run={})


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="muon_lr has no effect"):
        config(optimizer="adamw")
    assert config().adapted({"optimizer": "adamw"}) == {"muon_lr": (None, "optimizer")}


def test_the_footprint_counts_one_moment_for_muon():
    modules = {"net": Network()}
    saved = sum(p.numel() for name, p in modules["net"].named_parameters() if f"net.{name}" in MATRICES) * 4
    adamw = Footprint.of(modules, config(optimizer="adamw", muon_lr=None))
    assert Footprint.of(modules, config()).checkpoint == adamw.checkpoint - saved
