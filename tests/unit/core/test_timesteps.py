"""Timesteps as noise levels: the same σ as every scheduler of diffusers counts, and read once a schedule."""

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from syzygy.core import diffusers_timesteps
from syzygy.core.diffusers_timesteps import HostTimesteps, noise_of, read_scheduler
from syzygy.core.errors import UserError
from syzygy.experts.routing import Stages
from syzygy.experts.timestep_plan import plan, stages_of
from syzygy.prior.unclip_sampling import alphas_bar

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' arithmetic with numpy 2

SD: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CUT = Stages(("low", "middle", "high"), (0.3, 5.0))
COUNTED = [  # class, more settings, by how much ln σ may be apart: what rounding a timestep costs at the least noise
    ("EulerDiscreteScheduler", {}, 0.02),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 1e-3),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, 0.02),
    ("HeunDiscreteScheduler", {}, 0.02),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, 1e-3),
    ("DPMSolverMultistepScheduler", {}, 0.02),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 0.3),
    ("DPMSolverSinglestepScheduler", {"use_exponential_sigmas": True}, 0.3),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, 0.3),
    ("DEISMultistepScheduler", {"timestep_spacing": "leading"}, 0.02),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}, 1e-4),
    ("EDMEulerScheduler", None, 1e-4),
    ("EDMDPMSolverMultistepScheduler", None, 1e-4),
]


def scheduler(name: str, **more: Any) -> Any:
    return getattr(diffusers, name)(**SD | more)


@pytest.mark.parametrize(("name", "more", "apart"), COUNTED)
@pytest.mark.parametrize("steps", [4, 23])
def test_samplers_count_the_same_noise(name: str, more: dict[str, Any] | None, apart: float, steps: int) -> None:
    own = getattr(diffusers, name)() if more is None else scheduler(name, **more)
    own.set_timesteps(steps)
    sigma = noise_of(own)
    found = [sigma(float(t)) for t in own.timesteps]
    wanted = own.sigmas[: len(found)].tolist()
    assert len(found) >= steps
    for one, other in zip(found, wanted, strict=True):
        assert math.log(one) == pytest.approx(math.log(other), abs=apart)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler"])
def test_timesteps_are_shares_of_signal(name: str) -> None:
    own = scheduler(name)
    sigma = noise_of(own)
    for t in (0.0, 1.0, 500.0, 999.0):
        kept = own.alphas_cumprod[int(t)].double().item()
        assert sigma(t) == pytest.approx(((1 - kept) / kept) ** 0.5)
    assert sigma(0.0) < sigma(0.5) < sigma(1.0)
    assert sigma(-3.0) == sigma(0.0)
    assert sigma(2000.0) == sigma(999.0)


def test_karlos_timesteps_are_the_cosine_schedules() -> None:
    sigma = noise_of(diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    for t in (0.0, 400.0, 998.0):
        kept = float(alphas_bar("cosine")[int(t)])
        assert sigma(t) == pytest.approx(((1 - kept) / kept) ** 0.5, rel=1e-3)


def test_nothing_kept_is_endless_noise() -> None:
    sigma = noise_of(scheduler("DDIMScheduler", rescale_betas_zero_snr=True))
    assert sigma(999.0) == math.inf
    assert sigma(998.5) == math.inf
    assert math.isfinite(sigma(998.0))
    assert CUT.at(math.inf) == "high"


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift: float) -> None:
    own = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    own.set_timesteps(7)
    sigma = noise_of(own)
    for t, share in zip(own.timesteps.tolist(), own.sigmas.tolist(), strict=False):
        assert sigma(t) == (math.inf if share == 1 else pytest.approx(share / (1 - share), rel=1e-4))
    multistep = scheduler("DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction")
    assert noise_of(multistep)(500.0) == pytest.approx(1.0)
    assert noise_of(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))(100.0) == pytest.approx(9.0)


def test_what_tells_no_noise_is_refused() -> None:
    with pytest.raises(UserError, match="IPNDMScheduler does not tell the noise of its timesteps"):
        noise_of(diffusers.IPNDMScheduler())


class TestHostTimesteps:
    """The way of timesteps on an accelerator, walked on the CPU."""

    def test_a_schedule_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reads = []
        plain = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(len(self)) or plain(self))
        schedule, host = torch.linspace(999, 0, 30), HostTimesteps()
        assert [host.planned(t) for t in schedule[5:]] == plain(schedule[5:])  # as image to image walks it
        assert host.planned(schedule[7].expand(4)) == plain(schedule)[7]
        assert host.planned(schedule[7:8]) == plain(schedule)[7]
        assert reads == [30]

    def test_another_schedule_is_read_anew(self) -> None:
        host, freed = HostTimesteps(), []
        for kind in (torch.float32, torch.int64, torch.float32):
            for high in (999, 500):
                schedule = torch.linspace(high, 0, 11).to(kind)
                freed.append(schedule.data_ptr())
                assert [host.planned(t) for t in schedule] == schedule.tolist()
                del schedule  # the next one might lie at its address

    def test_what_is_written_over_is_read_anew(self) -> None:
        schedule, host = torch.linspace(999, 0, 11), HostTimesteps()
        assert host.planned(schedule[0]) == 999
        schedule.mul_(0.5)
        assert host.planned(schedule[0]) == 499.5
        with torch.inference_mode():
            alone = torch.tensor(7.0)
            assert host.planned(alone) == 7
            alone.fill_(8)
            assert host.planned(alone) == 8

    def test_schedules_of_inference_mode(self) -> None:
        host = HostTimesteps()
        with torch.inference_mode():
            schedule = torch.arange(20, 0, -1)
            assert [host.planned(t) for t in schedule] == schedule.tolist()

    def test_a_buffer_of_inference_mode_that_is_written_anew_is_read_anew(self) -> None:
        with torch.inference_mode():
            buffer, host = torch.empty(3), HostTimesteps()
            for value in (999.0, 500.0, 1.0):
                assert host.planned(buffer.fill_(value)) == value

    def test_a_view_into_something_long_is_no_schedule(self) -> None:
        long, host = torch.arange(diffusers_timesteps.LONGEST + 1), HostTimesteps()
        assert host.planned(long[42]) == 42
        assert host._copy is None


@pytest.mark.parametrize(("name", "evaluations"), [("DDIMScheduler", 10), ("HeunDiscreteScheduler", 19)])
def test_a_plan_covers_every_evaluation(name: str, evaluations: int) -> None:
    planned = plan(CUT, scheduler(name), 10)
    assert len(planned) == evaluations
    assert {one.step for one in planned} == set(range(10))
    assert all(one.expert == CUT.at(one.sigma) for one in planned)
    assert [one.expert for one in planned] == sorted(
        (one.expert for one in planned), key=["high", "middle", "low"].index
    )
    if name.startswith("Heun"):
        assert [one.step for one in planned[:4]] == [0, 0, 1, 1]
        assert planned[1].sigma == planned[2].sigma < planned[0].sigma


def test_a_plan_of_impossible_steps_is_refused() -> None:
    with pytest.raises(UserError, match="2000 steps are not possible; allowed are 1 to 1000"):
        plan(CUT, scheduler("DDIMScheduler"), 2000)


def test_leaves_cut_the_timesteps_evenly() -> None:
    own = scheduler("DDIMScheduler")
    cut, sigma = stages_of(("E1_0", "E2_2", "E2_3"), own), noise_of(own)
    names = [cut.at(sigma(float(t))) for t in range(1000)]
    assert names == ["E1_0"] * 500 + ["E2_2"] * 250 + ["E2_3"] * 250
    with pytest.raises(UserError, match="holds none of the scheduler's 1,000 timesteps"):
        stages_of(("E12_7", "complement"), own)
    with pytest.raises(UserError, match="has no timesteps to divide"):
        stages_of(("E1_0", "E1_1"), diffusers.FlowMatchEulerDiscreteScheduler())


def test_planned_from_the_command_line(syzygy, tmp_path: Path) -> None:
    scheduler("HeunDiscreteScheduler").save_pretrained(tmp_path / "pipeline" / "scheduler")
    answer = syzygy("experts", "plan", "E1_0,E1_1", "--scheduler", tmp_path / "pipeline", "--steps", 10, "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert (told["sampler"], told["evaluations"]) == ("HeunDiscreteScheduler", 19)
    assert sum(stage["evaluations"] for stage in told["stages"]) == 19
    assert told["stages"][0]["steps"][-1] == 9
    again = syzygy("experts", "plan", "E1_0,E1_1", "--scheduler", tmp_path / "pipeline", "--sampler", "heun")
    assert "--scheduler is a sampler" in again.err


def test_a_folder_without_a_scheduler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scheduler_config\.json is missing"):
        read_scheduler(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(UserError, match="which is no scheduler of diffusers"):
        read_scheduler(tmp_path)
