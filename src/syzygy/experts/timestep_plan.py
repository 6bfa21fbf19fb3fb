"""Which expert serves which timesteps of a diffusers scheduler."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from syzygy.core import diffusers_schedulers
from syzygy.core.diffusers_timesteps import is_edm, noise_of
from syzygy.core.errors import UserError
from syzygy.experts.routing import COMPLEMENT, Evaluation, Node, Stages
from syzygy.pretrained.unet_task import DiscreteNoise


def stages_of(leaves: Sequence[str], scheduler: Any) -> Stages:
    """Who serves which noise level, for a tree that cuts a scheduler's timesteps evenly, as `DiscreteNoise` does.

    Raises:
        UserError: a scheduler without timesteps of training; leaves that are no tree's, or finer than the timesteps.
    """
    kept = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(kept, Tensor) or is_edm(scheduler) or scheduler.config.get("use_flow_sigmas"):
        raise UserError(f"{type(scheduler).__name__} has no timesteps to cut: give the folder of an ensemble.")
    noise = DiscreteNoise(kept.double(), str(scheduler.config.get("prediction_type")))
    for leaf in leaves:
        if leaf != COMPLEMENT:
            noise.timesteps((Node.parse(leaf).share,))
    return Stages.of(leaves, noise.quantile)


def plan(stages: Stages, scheduler: Any, steps: int) -> list[Evaluation]:
    """Which expert each evaluation of a schedule of diffusers goes to; of two evaluations a step both are listed.

    Raises:
        UserError: a number of steps that the scheduler refuses.
    """
    sigma = noise_of(scheduler)
    if type(scheduler).__name__ in diffusers_schedulers.SAMPLERS.values():
        scheduler = diffusers_schedulers.planned(scheduler, steps)
    else:
        try:
            with diffusers_schedulers.quiet():
                scheduler.set_timesteps(steps)
        except ValueError as error:
            raise UserError(f"{type(scheduler).__name__} cannot take {steps} steps: {error}") from None
    sigmas = [sigma(float(t)) for t in scheduler.timesteps.tolist()]
    order = getattr(scheduler, "order", 1)
    # A sampler of second order has two in each step but the last.
    return [Evaluation(i // order, level, stages.at(level)) for i, level in enumerate(sigmas)]
