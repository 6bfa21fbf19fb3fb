import json
import shutil

import pytest
import torch
from torch import nn

from syzygy.core.errors import UserError
from syzygy.core.randomness import generator
from syzygy.training import checkpoints
from syzygy.training.loop import LoopConfig, fit
from syzygy.training.progress import Reporter
from tests.closeness import about, assert_close


class Regression:
    """Fit a fixed linear map; batches are keyed by step."""

    def __init__(self, *, bad_step: int | None = None) -> None:
        self.net = nn.Linear(3, 2)
        with torch.no_grad():
            self.net.weight.fill_(0.5)
            self.net.bias.fill_(0.5)
        self.bad_step = bad_step
        self.validated: list[torch.Tensor] = []

    @property
    def modules(self):
        return {"net": self.net}

    def loss(self, step):
        assert self.net.training
        x = torch.randn(8, 3, generator=generator(0, step))
        error = (self.net(x) - x[:, :2]).square().mean()
        if step == self.bad_step:
            error = error * torch.nan
        return {"loss": error, "double": 2 * error}

    def validate(self):
        assert not self.net.training
        assert not torch.is_grad_enabled()
        self.validated.append(self.net.weight.clone())
        return {"weight": float(self.net.weight.sum())}


class Recorder(Reporter):
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def start(self, step, steps):
        self.calls.append(("start", step, steps))

    def step(self, step, loss):
        self.calls.append(("step", step))

    def validated(self, step, metrics):
        self.calls.append(("validated", step))

    def recorded(self, row):
        self.calls.append(("recorded", row["step"]))

    def stop(self):
        self.calls.append(("stop",))


def config(**settings) -> LoopConfig:
    return LoopConfig(**{"steps": 6, "lr": 0.1, "schedule": "constant", "log_every": 2} | settings)


def test_training_lowers_the_loss_and_records_means(tmp_path):
    result = fit(Regression(), config(steps=60), tmp_path / "run", run={"seed": 1})
    assert result.steps == 60
    assert result.seconds > 0
    assert not result.ema
    assert [row["step"] for row in result.history] == list(range(2, 61, 2))
    assert result.history[-1]["loss"] < 0.05 * result.history[0]["loss"]
    assert all(row["double"] == about(2 * row["loss"]) for row in result.history)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert json.loads((tmp_path / "run/run.json").read_text()) == {"seed": 1}


def test_a_line_holds_the_mean_over_its_steps(tmp_path):
    single = fit(Regression(), config(log_every=1), tmp_path / "a", run={}).history
    double = fit(Regression(), config(log_every=2), tmp_path / "b", run={}).history
    expected = [(single[i]["loss"] + single[i + 1]["loss"]) / 2 for i in range(0, 6, 2)]
    assert [row["loss"] for row in double] == about(expected)


def test_validation_sees_averaged_weights_and_training_goes_on_with_its_own(tmp_path):
    plain, averaged, unvalidated = Regression(), Regression(), Regression()
    fit(plain, config(validate_every=4), tmp_path / "plain", run={})
    result = fit(averaged, config(validate_every=4, ema_half_life=100.0), tmp_path / "ema", run={})
    fit(unvalidated, config(ema_half_life=100.0), tmp_path / "unvalidated", run={})
    assert len(averaged.validated) == len(plain.validated) == 2  # at step 4 and at the end
    assert not torch.equal(averaged.validated[0], plain.validated[0])
    assert [row["step"] for row in result.history if "validation/weight" in row] == [4, 6]
    assert result.ema
    # The modules end with what was validated last, and validation changed nothing.
    assert torch.equal(averaged.net.weight, averaged.validated[-1])
    assert torch.equal(averaged.net.weight, unvalidated.net.weight)
    assert not torch.equal(averaged.net.weight, plain.net.weight)
    assert not averaged.net.training


def test_weight_decay_spares_biases(tmp_path):
    class Still(Regression):
        def loss(self, step):
            return {"loss": 0 * (self.net.weight.sum() + self.net.bias.sum())}

    task = Still()
    fit(task, config(steps=1, lr=0.1, weight_decay=0.5), tmp_path, run={})
    assert task.net.weight.flatten().tolist() == about([0.475] * 6)
    assert task.net.bias.tolist() == [0.5, 0.5]


def test_gradients_are_clipped_and_their_norm_is_recorded(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def spy(optimizer):
        norms.append(float(nn.utils.get_total_norm(p.grad for g in optimizer.param_groups for p in g["params"])))
        return step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    result = fit(Regression(), config(steps=1, grad_clip=0.01), tmp_path, run={})
    assert norms == pytest.approx([0.01], rel=1e-3)
    assert result.history[0]["grad_norm"] > 0.1


def test_frozen_and_tied_parameters(tmp_path):
    class Tied(Regression):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(3, 2)
            self.other.weight = self.net.weight
            self.other.bias.requires_grad_(False)

        @property
        def modules(self):
            return {"net": self.net, "other": self.other}

    task = Tied()
    frozen = task.other.bias.clone()
    fit(task, config(ema_half_life=4.0), tmp_path, run={})
    assert torch.equal(task.other.bias, frozen)
    assert task.other.weight is task.net.weight
    again = Tied()
    again.other.bias.data.zero_()
    fit(again, config(ema_half_life=4.0), tmp_path, run={})
    assert torch.equal(again.net.weight, task.net.weight)
    assert torch.equal(again.other.bias, frozen)


def test_reporter_hears_every_step_once(tmp_path):
    recorder = Recorder()
    fit(Regression(), config(validate_every=3), tmp_path, reporter=recorder, run={})
    assert recorder.calls[0] == ("start", 0, 6)
    assert recorder.calls[-1] == ("stop",)
    assert [call[1] for call in recorder.calls if call[0] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [call[1] for call in recorder.calls if call[0] == "validated"] == [3, 6]
    assert [call[1] for call in recorder.calls if call[0] == "recorded"] == [2, 3, 4, 6]
    again = Recorder()
    fit(Regression(), config(validate_every=3), tmp_path, reporter=again, run={})
    assert again.calls == []  # a finished run has nothing to tell


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_checkpoint(tmp_path, log_every):
    recorder = Recorder()
    with pytest.raises(UserError, match=r"loss is nan in step 6.*lower lr \(now 0\.1\)"):
        fit(
            Regression(bad_step=5),
            config(steps=9, log_every=log_every, checkpoint_every=4),
            tmp_path,
            reporter=recorder,
            run={},
        )
    assert json.loads((tmp_path / "checkpoint/state.json").read_text())["step"] == 4
    assert recorder.calls[-1] == ("stop",)


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    class Cliff(Regression):
        def loss(self, step):
            losses = super().loss(step)
            if step == 3:  # value 0, gradient 0 · ∞
                losses["loss"] = losses["loss"] + (self.net.weight.sum() * 0).abs().sqrt()
            return losses

    with pytest.raises(UserError, match=r"weight net\.weight is not finite after step 4"):
        fit(Cliff(), config(checkpoint_every=2), tmp_path, run={})
    assert json.loads((tmp_path / "checkpoint/state.json").read_text())["step"] == 2


def test_an_unwritable_place_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        fit(Regression(), config(), tmp_path / "file", run={})


class Cut(Regression):
    """The same batches in two passes."""

    def loss(self, step):
        raise AssertionError("asked for a whole batch")

    def parts(self, step):
        x = torch.randn(8, 3, generator=generator(0, step))
        for i, part in enumerate(x.split(4)):
            assert (self.net.weight.grad is None) == (i == 0), "the gradient of a part comes before the next part"
            yield {"loss": (self.net(part) - part[:, :2]).square().mean() / 2}

    def keys(self, step):
        return [f"{step}-{i}" for i in range(20)]


def test_parts_of_a_batch_train_as_the_whole(tmp_path):
    whole, cut = Regression(), Cut()
    expected = fit(whole, config(), tmp_path / "whole", run={}).history
    found = fit(cut, config(), tmp_path / "cut", run={}).history
    assert_close(cut.net.weight, whole.net.weight)
    assert [row["loss"] for row in found] == about([row["loss"] for row in expected])


def test_a_diverged_step_names_its_samples(tmp_path):
    class Bad(Cut):
        def parts(self, step):
            return [{"loss": self.net.weight.sum() * (torch.nan if step == 2 else 1)}]

    with pytest.raises(UserError, match=r"loss is nan in step 3, on samples 2-0, 2-1, .*2-7 … \(20 in all\)"):
        fit(Bad(), config(), tmp_path, run={})


class Rising(Regression):
    """Validation is best at step 4."""

    def validate(self):
        super().validate()
        return {"score": -abs(len(self.validated) - 2.0), "error": abs(len(self.validated) - 2.0)}


@pytest.mark.parametrize("best", ["max score", "min error"])
def test_the_best_weights_are_kept(tmp_path, best):
    task = Rising()
    fit(task, config(steps=8, validate_every=2, ema_half_life=3.0, best=best), tmp_path, run={})
    assert json.loads((tmp_path / "best/state.json").read_text())["step"] == 4
    kept = Regression()
    checkpoints.load_best(tmp_path, kept.modules)
    assert torch.equal(kept.net.weight, task.validated[1]), "the averaged weights, as they were validated"
    with pytest.raises(UserError, match="kept no best weights"):
        checkpoints.load_best(tmp_path / "other", kept.modules)


def test_an_unknown_metric_cannot_be_best(tmp_path):
    with pytest.raises(UserError, match=r"no validation metric: 'cosine'\. Known: weight"):
        fit(Regression(), config(validate_every=2, best="max cosine"), tmp_path, run={})
    with pytest.raises(ValueError, match="no effect without validate_every"):
        config(best="max cosine")


def test_the_last_checkpoints_are_kept_and_any_of_them_can_be_gone_back_to(tmp_path):
    task = Regression()
    fit(task, config(steps=8, checkpoint_every=2, keep_checkpoints=3), tmp_path, run={})
    assert sorted(p.name for p in tmp_path.glob("checkpoint*")) == [
        "checkpoint",
        "checkpoint-00000004",
        "checkpoint-00000006",
    ]
    shutil.rmtree(tmp_path / "checkpoint")
    (tmp_path / "checkpoint-00000004").rename(tmp_path / "checkpoint")
    again = Regression()
    fit(again, config(steps=8, checkpoint_every=2, keep_checkpoints=3), tmp_path, run={})
    assert torch.equal(again.net.weight, task.net.weight)
