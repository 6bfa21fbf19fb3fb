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
    """The stages of a tree that divides a scheduler's training timesteps evenly, as `DiscreteNoise` does.

    Raises:
        UserError: the scheduler has no training timesteps; the leaves form no tree, or are finer than the timesteps.
    """
    kept = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(kept, Tensor) or is_edm(scheduler) or scheduler.config.get("use_flow_sigmas"):
        raise UserError(f"{type(scheduler).__name__} has no timesteps to divide: give the folder of an ensemble.")
    noise = DiscreteNoise(kept.double(), str(scheduler.config.get("prediction_type")))
    for leaf in leaves:
        if leaf != COMPLEMENT:
            noise.timesteps((Node.parse(leaf).share,))
    return Stages.of(leaves, noise.quantile)


def plan(stages: Stages, scheduler: Any, steps: int) -> list[Evaluation]:
    """The expert of each evaluation with a scheduler of diffusers; if a step evaluates twice, both are listed.

    Raises:
        UserError: the scheduler refuses this number of steps.
    """
    sigma = noise_of(scheduler)
    if type(scheduler).__name__ in diffusers_schedulers.SCHEDULERS.values():
        scheduler = diffusers_schedulers.planned(scheduler, steps)
    else:
        try:
            with diffusers_schedulers.quiet():
                scheduler.set_timesteps(steps)
        except ValueError as error:
            raise UserError(f"{type(scheduler).__name__} cannot take {steps} steps: {error}") from None
    sigmas = [sigma(float(t)) for t in scheduler.timesteps.tolist()]
    order = getattr(scheduler, "order", 1)
    # A second-order sampler evaluates twice in each step but the last.
    return [Evaluation(i // order, level, stages.at(level)) for i, level in enumerate(sigmas)]
