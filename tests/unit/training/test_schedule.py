import math

import pytest
import torch
from pydantic import ValidationError

from syzygy.training.schedule import LoopConfig, learning_rate


def test_warmup_rises_linearly_to_the_peak():
    config = LoopConfig(steps=10, lr=0.4, warmup=4, schedule="constant")
    assert [learning_rate(config, step) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_cosine_goes_from_the_peak_to_the_final_ratio():
    config = LoopConfig(steps=12, lr=1.0, warmup=2, final_lr_ratio=0.2)
    assert learning_rate(config, 2) == pytest.approx(1.0)
    assert learning_rate(config, 7) == pytest.approx(0.6)
    assert learning_rate(config, 12) == pytest.approx(0.2)
    assert learning_rate(config, 4) == pytest.approx(0.2 + 0.8 * (1 + math.cos(0.2 * math.pi)) / 2)


def test_restarts_equal_torchs_cosine_annealing_warm_restarts():
    config = LoopConfig(steps=30, lr=0.3, schedule="cosine-restarts", restart_every=7, final_lr_ratio=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=7, eta_min=0.03)
    for step in range(30):
        assert learning_rate(config, step) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine", "restart_every": 5}, "restart_every has no effect"),
        ({"schedule": "cosine-restarts"}, "needs restart_every"),
        ({"schedule": "constant", "final_lr_ratio": 0.1}, "final_lr_ratio has no effect"),
        ({"warmup": 10}, "leaves nothing"),
        ({"betas": (0.9, 1.0)}, "below 1"),
        ({"lr": math.inf}, "finite"),
    ],
)
def test_settings_that_make_no_sense_are_errors(settings, message):
    with pytest.raises(ValidationError, match=message):
        LoopConfig(**{"steps": 10, "lr": 0.1} | settings)
