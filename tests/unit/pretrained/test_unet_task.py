"""The task of a diffusers U-Net: parametrisations, timesteps of an expert's part of the noise, activations computed again."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from syzygy.core.errors import UserError
from syzygy.core.lora import Lora
from syzygy.core.randomness import generator
from syzygy.experts.routing import COMPLEMENT, Node, Stages
from syzygy.pretrained.unet_task import PREDICTIONS, DiscreteNoise, LatentBatch, UNetTask, recomputed
from tests.closeness import assert_close

WHOLE = ((0.0, 1.0),)


def kept(timesteps: int = 1000) -> torch.Tensor:
    """Stable Diffusion's."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, timesteps) ** 2
    return (1 - betas).cumprod(0).double()


def batch(number: int = 8, step: int = 0) -> LatentBatch:
    return LatentBatch(torch.randn(number, 4, 8, 8, generator=generator(0, "pictures", step)), {})


class Knowing(nn.Module):
    """Knows the pictures, and so predicts without fault; formulas other than the task's. Remembers its timesteps."""

    def __init__(self, prediction: str, channels: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.prediction, self.channels, self.seen = prediction, channels, []

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        self.seen += timesteps.tolist()
        x = batch(len(noisy)).latents
        share = kept()[timesteps][:, None, None, None].float()
        found = {
            "sample": x,
            "epsilon": (noisy - share.sqrt() * x) / (1 - share).sqrt(),
            "v_prediction": (share.sqrt() * noisy - x) / (1 - share).sqrt(),
        }[self.prediction]
        more = torch.full((len(noisy), self.channels - 4, 8, 8), 9.0)
        return (torch.cat([found, more], 1) + self.weight,)


def task_of(network: nn.Module, prediction: str, shares=WHOLE, **more) -> UNetTask:
    noise = DiscreteNoise(kept(), prediction)
    return UNetTask(network, lambda step: batch(), [batch(6), batch(2)], noise, shares, 0, **more)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_prediction_has_no_loss(prediction: str) -> None:
    assert task_of(Knowing(prediction), prediction).loss(3)["loss"] < 1e-6
    for other in PREDICTIONS:
        if other != prediction:
            assert task_of(Knowing(other), prediction).loss(3)["loss"] > 0.1


def test_as_diffusers_schedulers_noise_and_ask() -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    noise = DiscreteNoise(scheduler.alphas_cumprod.double(), "v_prediction")
    x, added = batch().latents, batch(step=1).latents
    timesteps = torch.tensor([0, 1, 100, 500, 800, 990, 998, 999])
    assert_close(noise.noisy(x, added, timesteps), scheduler.add_noise(x, added, timesteps))
    assert_close(noise.target(x, added, timesteps), scheduler.get_velocity(x, added, timesteps))


def test_a_variance_that_is_predicted_beside_is_left_alone() -> None:
    assert task_of(Knowing("epsilon", channels=8), "epsilon").loss(0)["loss"] < 1e-6


def test_validation_is_a_mean_over_pictures() -> None:
    class Silent(nn.Module):
        def forward(self, noisy, timesteps, return_dict):
            return (torch.zeros_like(noisy) + (10.0 if len(noisy) == 2 else 0.0),)

    # The noise has unit variance; 6 of 8 pictures miss it by 1, 2 of 8 by 101.
    assert task_of(Silent(), "epsilon").validate()["loss"] == pytest.approx((6 * 1 + 2 * 101) / 8, rel=0.05)


@st.composite
def trees(draw) -> tuple[str, ...]:
    """Leaves, some of them cut finer, with a complement in place of some."""
    leaves = [Node(0, 0)]
    for _ in range(draw(st.integers(0, 6))):
        node = leaves.pop(draw(st.integers(0, len(leaves) - 1)))
        leaves += [Node(node.level + 1, 2 * node.index), Node(node.level + 1, 2 * node.index + 1)]
    names = [node.name for node in leaves]
    dropped = draw(st.integers(0, len(names) - 1))
    return tuple(names) if not dropped else (*names[dropped:], COMPLEMENT)


@settings(max_examples=40)
@given(trees(), st.sampled_from([1000, 1024, 777, 200]))
def test_each_timestep_is_learned_where_it_is_served(leaves: tuple[str, ...], timesteps: int) -> None:
    noise = DiscreteNoise(kept(timesteps), "epsilon")
    stages = Stages.of(leaves, noise.quantile)
    sigma = ((1 - noise.kept) / noise.kept).sqrt()
    served = [stages.at(float(one)) for one in sigma]
    assert served == [stages.at(float(one)) for one in sigma.float()], "rounding must not move one"
    for name in leaves:
        if name != COMPLEMENT:
            share = Node.parse(name).share
            own = noise.timesteps((share,)).tolist()
            assert [t for t, expert in enumerate(served) if expert == name] == own
            width = Fraction(timesteps) / 2 ** Node.parse(name).level
            assert abs(len(own) - width) <= 1


def test_a_step_draws_from_its_part_alone_and_all_of_it() -> None:
    network = Knowing("epsilon")
    shares = ((0.0, 1 / 64), (63 / 64, 1.0))
    task = task_of(network, "epsilon", shares)
    for step in range(30):
        task.loss(step)
    own = [*range(16), *range(984, 1000)]
    assert set(network.seen) == set(own)
    half = sum(t < 16 for t in network.seen)
    assert half == len(network.seen) / 2, "each step covers both parts as they are wide"
    network.seen.clear()
    task.validate()
    assert set(network.seen) <= set(own)


def test_a_step_is_the_same_again_and_another_is_not() -> None:
    task, other = (task_of(Knowing("sample"), "epsilon") for _ in range(2))
    task.loss(1)
    assert torch.equal(task.loss(5)["loss"], other.loss(5)["loss"])
    assert not torch.equal(task.loss(5)["loss"], task.loss(6)["loss"])


def unet() -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            block_out_channels=(16,),
            layers_per_block=1,
            attention_head_dim=2,
            norm_num_groups=8,
            cross_attention_dim=8,
        ).requires_grad_(False)


def gradients(again: bool, precision: torch.dtype | None) -> list[torch.Tensor]:
    """Of a low-rank adaptation after one step."""
    network, states = unet(), torch.randn(8, 3, 8, generator=generator(0, "states"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        lora = Lora(network, rank=2, layers="attn")
        for update in lora.updates.values():
            nn.init.normal_(update.up)
    if again:
        network.enable_gradient_checkpointing(recomputed(lora, torch.device("cpu"), precision))
    told = LatentBatch(batch().latents, {"encoder_hidden_states": states})
    noise = DiscreteNoise(kept(), "epsilon")
    task = UNetTask(network, lambda step: told, [], noise, WHOLE, 0, precision=precision, lora=lora)
    task.loss(0)["loss"].backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    return [parameter.grad for parameter in lora.parameters()]


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_activations_computed_again_give_the_same_gradient(precision: torch.dtype | None) -> None:
    plain, again = (gradients(one, precision) for one in (False, True))
    assert any(g.abs().max() > 1e-4 for g in plain)
    for one, other in zip(plain, again, strict=True):
        assert_close(one, other)


def test_wrong_input() -> None:
    with pytest.raises(UserError, match="prediction_type is 'flow_prediction'; known are epsilon"):
        DiscreteNoise(kept(), "flow_prediction")
    with pytest.raises(UserError, match="does not rise"):
        DiscreteNoise(kept().flip(0), "epsilon")
    with pytest.raises(UserError, match="holds none of the scheduler's 100 timesteps"):
        DiscreteNoise(kept(100), "epsilon").timesteps((Node.parse("E9_511").share,))
