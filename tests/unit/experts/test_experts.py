"""Who serves which noise level: the tree's intervals, the plan of a schedule, and routing that changes nothing else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from syzygy.core.contracts import Conditioning
from syzygy.core.errors import UserError
from syzygy.decoder.guidance import Guided
from syzygy.decoder.noise_levels import KarrasSchedule, LogNormal
from syzygy.decoder.samplers import SAMPLERS, sample
from syzygy.experts.routing import COMPLEMENT, Experts, Node, Stages, plan

PAPER = ("E3_0", COMPLEMENT, "E9_511")


def quantile(probability: float) -> float:
    return LogNormal().quantile(torch.tensor(probability, dtype=torch.float64)).item()


def stages(*leaves: str) -> Stages:
    return Stages.of(leaves, quantile)


class Shrink(nn.Module):
    """Denoises towards a level of its own; counts its calls."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level, self.seen = level, []

    def forward(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        self.seen.append(sigma.tolist())
        return x / (1 + sigma**2)[:, None, None, None] + self.level


def test_the_papers_boundaries() -> None:
    # papers/ediff-i.md, section 2, for ln σ ~ N(-1.2, 1.2²)
    assert stages(*PAPER).edges == pytest.approx((0.0757, 9.61), rel=1e-3)
    assert stages("E1_0", "E1_1").edges == pytest.approx((0.301,), rel=1e-3)
    assert stages("E6_63", COMPLEMENT).edges == pytest.approx((3.99,), rel=1e-3)


def test_intervals_of_a_level_are_equally_probable() -> None:
    names = [f"E4_{i}" for i in range(16)]
    cut = stages(*reversed(names))
    assert cut.names == tuple(names)
    sigma = LogNormal().sample(160, torch.Generator().manual_seed(0))
    assert torch.bincount(cut.index(sigma), minlength=16).tolist() == [10] * 16


def test_lineage_leads_from_the_root() -> None:
    assert [node.name for node in Node.parse("E3_5").lineage()] == ["E0_0", "E1_1", "E2_2", "E3_5"]
    for parent, child in zip(Node.parse("E9_511").lineage(), Node.parse("E9_511").lineage()[1:], strict=False):
        assert child.parent == parent
        assert parent.share[0] <= child.share[0] < child.share[1] <= parent.share[1]


@given(st.floats(1e-6, 1e3), st.sampled_from([PAPER, ("E0_0",), ("E2_1", COMPLEMENT), ("E1_0", "E2_2", "E2_3")]))
def test_host_and_device_agree_who_serves(sigma: float, leaves: tuple[str, ...]) -> None:
    cut = stages(*leaves)
    sigma = float(torch.tensor(sigma))
    assert cut.experts[int(cut.index(torch.tensor([sigma])))] == cut.at(sigma)


def test_an_edge_belongs_to_the_noisier_stage() -> None:
    cut = Stages(("low", "high"), (0.5,))
    assert [cut.at(sigma) for sigma in (0.0, math.nextafter(0.5, 0), 0.5, 80.0)] == ["low", "low", "high", "high"]
    assert cut.index(torch.tensor([0.0, 0.5, 80.0])).tolist() == [0, 1, 1]


def test_one_expert_may_serve_several_stages() -> None:
    cut = stages("E2_1", COMPLEMENT)
    assert cut.names == (COMPLEMENT, "E2_1", COMPLEMENT)
    assert cut.experts == (COMPLEMENT, "E2_1")


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (("E1_0",), "leave gaps in the noise levels: add 'complement'"),
        ((), "leave gaps"),
        (("E1_0", "E1_0", COMPLEMENT), "E1_0 overlaps E1_0"),
        (("E1_0", "E3_1", COMPLEMENT), "E3_1 overlaps E1_0"),
        (("E1_0", "E1_1", COMPLEMENT), "leave nothing for 'complement'"),
        (("E1_0", COMPLEMENT, COMPLEMENT), "named once at most"),
        (("E2_4", COMPLEMENT), "level 2 has the indices 0 to 3"),
        (("early", COMPLEMENT), "'early' is not a node of the tree"),
    ],
)
def test_leaves_that_do_not_tile_the_noise_are_refused(leaves: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        stages(*leaves)


@pytest.mark.parametrize(
    ("names", "edges", "message"),
    [
        (("a", "b"), (), "2 stages need 1 edges"),
        (("a", "b", "c"), (2.0, 1.0), "must rise"),
        (("a", "b"), (math.inf,), "finite"),
        (("a", "a"), (1.0,), "are one stage"),
    ],
)
def test_stages_must_be_in_order(names: tuple[str, ...], edges: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stages(names, edges)


def test_experts_and_stages_name_the_same() -> None:
    cut = Stages(("a", "b"), (1.0,))
    with pytest.raises(UserError, match="the experts b, which are missing"):
        Experts(cut, {"a": Shrink(0)})
    with pytest.raises(UserError, match="experts c serve no stage"):
        Experts(cut, {"a": Shrink(0), "b": Shrink(0), "c": Shrink(0)})


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_identical_experts_are_one(sampler: str, guidance: float) -> None:
    alone, cut = Shrink(0.2), stages(*PAPER)
    several = Experts(cut, {name: Shrink(0.2) for name in cut.experts})
    noise, sigmas = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), KarrasSchedule().sigmas(12)
    one, many = (
        sample(Guided(d, guidance), noise, sigmas, Conditioning({}), sampler=sampler) for d in (alone, several)
    )
    assert torch.equal(one, many)
    mixed = torch.tensor([0.01, 50.0, 0.4, 12.0])
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(several(x, mixed, Conditioning({})), alone(x, mixed, Conditioning({})))


def test_each_sample_goes_to_the_expert_of_its_noise() -> None:
    cut = stages(*PAPER)
    experts = Experts(cut, {name: Shrink(float(i)) for i, name in enumerate(cut.experts)})
    sigma = torch.tensor([50.0, 0.01, 0.4, 12.0, 0.02])
    made = experts(torch.zeros(5, 1, 1, 1), sigma, Conditioning({}))
    assert made.flatten().tolist() == [2.0, 0.0, 1.0, 2.0, 0.0]
    assert [expert.seen for expert in experts.denoisers.values()] == [
        [pytest.approx([0.01, 0.02])],
        [pytest.approx([0.4])],
        [[50.0, 12.0]],
    ]


@pytest.mark.parametrize(("sampler", "evaluations"), [("euler", 25), ("dpm++2m", 25), ("heun", 49)])
def test_the_plan_is_what_sampling_does(sampler: str, evaluations: int) -> None:
    cut, sigmas = stages(*PAPER), KarrasSchedule().sigmas(25)
    planned = plan(cut, sigmas, sampler)
    assert len(planned) == evaluations
    experts = Experts(cut, {name: Shrink(0.0) for name in cut.experts})
    sample(
        Guided(experts, 1.0), torch.zeros(1, 1, 1, 1, dtype=torch.float64), sigmas, Conditioning({}), sampler=sampler
    )
    for name, expert in experts.denoisers.items():
        assert [sigma for (sigma,) in expert.seen] == [e.sigma for e in planned if e.expert == name]
    # Every noise level is the start of one evaluation.
    starts = {e.sigma for e in planned}
    assert starts == {float(sigma) for sigma in sigmas[:-1]}
    # papers/ediff-i.md: 1/512 of training is 9 of 25 steps.
    first = {e.step for e in planned if e.expert == "E9_511" and e.sigma == float(sigmas[e.step])}
    assert first == set(range(9))


def test_a_heun_step_across_an_edge_asks_both() -> None:
    cut = Stages(("low", "high"), (1.0,))
    asked = [(e.step, e.expert) for e in plan(cut, torch.tensor([2.0, 0.5, 0.0]), "heun")]
    assert asked == [(0, "high"), (0, "low"), (1, "low")]
