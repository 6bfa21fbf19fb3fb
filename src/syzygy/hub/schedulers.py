"""diffusers' schedulers as samplers, and one walk from noise to latents for all of them.

Shapes: N pictures, C latent channels, h × w latent positions.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy import artifact
from syzygy.errors import UserError
from syzygy.hub.parts import SCHEDULER_FILE
from syzygy.types import Progress

SAMPLERS: Mapping[str, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Our names of diffusers' classes. ddpm and euler-a add noise on the way; the others follow from where they start."""
VARIANCE = "variance_type"
Predict = Callable[[Float[Tensor, "N C h w"], Tensor], Float[Tensor, "N K h w"]]
"""Scaled latents and a timestep → what the scheduler steps with; K is C, or 2 C where a variance is learned."""


def load_scheduler(folder: Path, part: str = "scheduler") -> Any:
    """The repository's own scheduler.

    Raises:
        UserError: its file is missing or describes a class that is not among `SAMPLERS`.
    """
    import diffusers

    path = folder / part / SCHEDULER_FILE
    values = artifact.read_json(path)
    kind = str(values.get("_class_name"))
    if kind not in SAMPLERS.values():
        raise UserError(f"{path} is for {kind!r}; known are {', '.join(SAMPLERS.values())}.")
    with quiet():
        return getattr(diffusers, kind).from_config(values)


@contextmanager
def quiet() -> Iterator[None]:
    """Without numpy 2's warnings of diffusers' own arithmetic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def name_of(scheduler: Any) -> str:
    """Which of `SAMPLERS` it is."""
    return next(name for name, kind in SAMPLERS.items() if kind == type(scheduler).__name__)


def fresh(scheduler: Any, sampler: str | None) -> Any:
    """A scheduler at its beginning: the repository's own, or another that shares its noise schedule.

    Raises:
        UserError: an unknown name.
    """
    import diffusers

    name = name_of(scheduler) if sampler is None else sampler
    if name not in SAMPLERS:
        raise UserError(f"sampler {name!r} is unknown to this decoder. Known: {', '.join(SAMPLERS)}.")
    values = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    if name != name_of(scheduler):
        # Others than DDPM do not know a learned variance, but would keep its name and then misread the network's output.
        values.pop(VARIANCE, None)
        values.setdefault("clip_sample", False)  # latents are not confined to [-1, 1], as DDIM believes unless told
        values["skip_prk_steps"] = True  # of PNDM alone: its Runge-Kutta steps are for other models
    with quiet():
        return getattr(diffusers, SAMPLERS[name]).from_config(values)


def learns_variance(scheduler: Any) -> bool:
    """Whether a step takes the network's variance beside its prediction."""
    return scheduler.config.get(VARIANCE) in ("learned", "learned_range")


def walk(
    scheduler: Any,
    predict: Predict,
    noise: Float[Tensor, "N C h w"],
    steps: int,
    generators: Sequence[torch.Generator],
    on_step: Callable[[Progress], None] | None = None,
) -> Float[Tensor, "N C h w"]:
    """From standard normal noise to latents; what is added on the way comes from each picture's own generator.

    Latents stay in the noise's precision, whatever the network computes in.

    Raises:
        UserError: fewer than one step, or more than the network was trained on.
    """
    most = scheduler.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise UserError(f"{steps} steps are not possible; allowed are 1 to {most}.")
    with quiet():
        scheduler.set_timesteps(steps, device=noise.device)
    takes = signature(scheduler.step).parameters
    more = {"generator": list(generators)} if "generator" in takes else {}
    latents = noise * scheduler.init_noise_sigma
    timesteps = scheduler.timesteps
    for i, t in enumerate(timesteps):
        predicted = predict(scheduler.scale_model_input(latents, t), t)
        stepped = scheduler.step(predicted, t, latents, **more)
        latents = stepped.prev_sample
        if on_step is not None:
            seen = getattr(stepped, "pred_original_sample", None)
            on_step(Progress(i + 1, len(timesteps), _sigma(scheduler, t), seen))
    return latents


def _sigma(scheduler: Any, timestep: Tensor) -> float:
    """Noise level in EDM's convention of a timestep: √((1 − ᾱ) / ᾱ)."""
    kept = scheduler.alphas_cumprod
    share = float(kept[min(max(round(float(timestep)), 0), len(kept) - 1)])
    return ((1 - share) / max(share, 1e-12)) ** 0.5
