"""Estimates against what a run really takes."""

import time
from typing import Any

import pytest
import torch
from torch import nn

from syzygy.clip.clip_model import Clip
from syzygy.lab.starter import prior_training as prior
from syzygy.prior.embedding_pairs import PriorData
from syzygy.prior.presets import prior_eclipse
from syzygy.training import estimate
from syzygy.training.estimate import Estimate, Estimated, Footprint
from syzygy.training.loop import LoopConfig, fit


class Task:
    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 10))
        self.net[1].requires_grad_(False)
        self.modules = {"net": self.net}
        self.steps = self.validations = 0

    def loss(self, step: int) -> dict[str, torch.Tensor]:
        self.steps += 1
        return {"loss": self.net(torch.ones(2, 300)).square().mean()}

    def validate(self) -> dict[str, float]:
        assert not self.net.training
        self.validations += 1
        return {"cosine": 0.5}


@pytest.mark.parametrize("half_life", [0.0, 2.0])
@pytest.mark.parametrize("best", ["", "max cosine"])
def test_the_footprint_is_what_a_run_writes(tmp_path, half_life: float, best: str) -> None:
    config = LoopConfig(
        steps=9, lr=1e-3, ema_half_life=half_life, validate_every=2, checkpoint_every=2, keep_checkpoints=3, best=best
    )
    task = Task()
    found = Footprint.of(task.modules, config)
    fit(task, config, tmp_path, run={})
    written = sum(file.stat().st_size for file in (tmp_path / "checkpoint").iterdir())
    assert found.checkpoint == pytest.approx(written, abs=3000)
    assert (found.parameters, found.trained) == (300 * 300 + 300 + 300 * 10 + 10, 300 * 300 + 300)
    whole = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert whole < found.disk == pytest.approx(whole + found.checkpoint + 2 * found.parameters, abs=12_000)
    assert found.states == 4 * (found.parameters + 3 * found.trained + bool(half_life) * found.trained)


def test_a_dry_run_times_a_few_steps_and_writes_nothing(tmp_path) -> None:
    task, config = Task(), LoopConfig(steps=1000, lr=1e-3, validate_every=300)
    with estimate.dry_run(tmp_path):
        assert estimate.rehearsed(10_000, 8) == estimate.REHEARSED
        assert estimate.rehearsed(10_000, 1024) == 1024, "a step is timed on a whole batch"
        assert estimate.rehearsed(700, 1024) == 700
        with estimate.preparing(10 * estimate.REHEARSED, estimate.REHEARSED):
            pass
        with pytest.raises(Estimated) as dry:
            fit(task, config, tmp_path / "run", run={})
    found = dry.value.estimate
    assert (task.steps, task.validations, found.steps, found.validations) == (4, 1, 1000, 4)
    assert not (tmp_path / "run").exists()
    assert 0 < found.preparation < 0.1
    assert found.seconds == pytest.approx(found.preparation + 1000 * found.step_seconds + 4 * found.validation_seconds)
    assert found.peak > 10**7
    assert list(found.shares) == ["samples and loss", "gradients", "optimizer"]
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.to_json()["step_shares"].keys() == found.shares.keys()
    assert any("(samples and loss " in line for line in found.lines())
    assert not estimate.is_dry_run()
    assert estimate.rehearsed(10_000, 8) == 10_000
    fit(task, LoopConfig(steps=2, lr=1e-3), tmp_path / "run", run={})
    assert (tmp_path / "run/checkpoint").is_dir()


class SlowLoss(Task):
    def loss(self, step: int):
        time.sleep(0.05)
        return super().loss(step)


def test_the_part_of_a_step_that_takes_long_has_the_largest_share(tmp_path) -> None:
    with estimate.dry_run(tmp_path), pytest.raises(Estimated) as dry:
        fit(SlowLoss(), LoopConfig(steps=9, lr=1e-3, ema_half_life=2.0), tmp_path, run={})
    shares = dry.value.estimate.shares
    assert list(shares) == ["samples and loss", "gradients", "optimizer", "average"]
    assert max(shares, key=lambda part: shares[part]) == "samples and loss"


def test_a_disk_that_is_too_small_is_said_before_the_first_step(tmp_path, monkeypatch, capsys) -> None:
    from syzygy.training import loop
    from syzygy.training.progress import ConsoleReporter

    monkeypatch.setattr(loop, "free_disk", lambda out: 1000)
    fit(Task(), LoopConfig(steps=1, lr=1e-3), tmp_path, run={}, reporter=ConsoleReporter("net"))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        "net: 90,300 parameters to train; 1.5 MB of memory for weights, gradients, optimizer and average;"
    )
    assert "the disk is too small" in said[1]


def test_several_trainings_take_as_many_times_as_long_and_as_much_disk() -> None:
    footprint = Footprint(10, 10, 100, 70, 200)
    one = Estimate(footprint, 10, 2.0, 1, 5.0, 3.0, 1000, 10**9)
    three = Estimate(footprint, 10, 2.0, 1, 5.0, 3.0, 1000, 500, 3)
    assert (one.seconds, three.seconds) == (28, 78)
    assert (one.to_json()["disk"], three.to_json()["disk"]) == (200, 600)
    assert any(
        "3 trainings of 10 steps of 2 s, 1 validation of 5 s, 3 s of preparation" in line for line in three.lines()
    )
    assert [any("too small" in line for line in each.lines()) for each in (one, three)] == [False, True]


def test_validation_pairs_are_prepared_whole_and_not_scaled_up(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def embed(clip: Any, seed: int, number: int, progress: Any) -> Any:
        now[0] += number  # a second each
        return object.__new__(PriorData)

    monkeypatch.setattr(prior, "embed", embed)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    run = prior_eclipse().model_copy(update={"scenes": 40_000, "validation_images": 1000})
    with estimate.dry_run(tmp_path):
        prior.embedded(run, object.__new__(Clip))
        dry = estimate._dry.get()
        assert dry is not None
        assert dry.preparation == 41_000
