"""diffusers' schedulers as samplers, and one loop from noise to latents for all of them.

Shapes: N images, C latent channels, h × w latent positions.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.contracts import Progress
from syzygy.core.diffusers_weights import SCHEDULER_FILE
from syzygy.core.errors import UserError
from syzygy.core.known_latents import KnownLatents
from syzygy.core.wording import counted

SCHEDULERS: Mapping[str, str] = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Our names of diffusers' classes. ddpm and euler-a add noise on the way; the others follow from where they start."""
FIXED_STRIDE = ("DDIMScheduler", "PNDMScheduler")
"""Their steps are (timesteps of training // steps) long, whatever their timesteps are."""
SPACINGS = ("linspace", "trailing")
"""What replaces a spacing that does not fit a number of steps, in this order."""
NEAR = 0.9
"""The part of the schedule that sampling must cover. SD's noise at 0.9 of its schedule is hardly less than at its end."""
VARIANCE = "variance_type"
Predict = Callable[[Float[Tensor, "N C h w"], Tensor], Float[Tensor, "N K h w"]]
"""Scaled latents and a timestep → what the scheduler steps with; K is C, or 2 C where a variance is learned."""


def load_scheduler(folder: Path, part: str = "scheduler") -> Any:
    """The repository's own scheduler.

    Raises:
        UserError: its file is missing or describes a class that is not among `SCHEDULERS`.
    """
    import diffusers

    path = folder / part / SCHEDULER_FILE
    values = artifacts.read_json(path)
    kind = str(values.get("_class_name"))
    if kind not in SCHEDULERS.values():
        raise UserError(f"{path} is for {kind!r}; known are {', '.join(SCHEDULERS.values())}.")
    with quiet():
        return getattr(diffusers, kind).from_config(values)


@contextmanager
def quiet() -> Iterator[None]:
    """Without numpy 2's warnings of diffusers' own arithmetic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def name_of(scheduler: Any) -> str:
    """Which of `SCHEDULERS` it is."""
    return next(name for name, kind in SCHEDULERS.items() if kind == type(scheduler).__name__)


def fresh(scheduler: Any, sampler: str | None) -> Any:
    """A scheduler at its beginning: the repository's own, or another that shares its noise schedule.

    Raises:
        UserError: an unknown name.
    """
    import diffusers

    name = name_of(scheduler) if sampler is None else sampler
    if name not in SCHEDULERS:
        raise UserError(f"sampler {name!r} is unknown to this decoder. Known: {', '.join(SCHEDULERS)}.")
    values = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    if name != name_of(scheduler):
        # Others than DDPM do not know a learned variance, but would keep its name and then misread the network's output.
        values.pop(VARIANCE, None)
        values.setdefault("clip_sample", False)  # latents are not confined to [-1, 1], as DDIM assumes by default
        values["skip_prk_steps"] = True  # of PNDM alone: its Runge-Kutta steps are for other models
    with quiet():
        return getattr(diffusers, SCHEDULERS[name]).from_config(values)


def learns_variance(scheduler: Any) -> bool:
    """Whether a step uses a variance that the network predicts."""
    return scheduler.config.get(VARIANCE) in ("learned", "learned_range")


def planned(scheduler: Any, steps: int, device: torch.device | str | None = None) -> Any:
    """A scheduler with the timesteps of so many steps: this one, or one that spaces them otherwise.

    diffusers' "leading" spacing rounds the distance of two timesteps down, so that from some 100 steps on many counts would begin in the
    middle of the schedule (600 of 1000: at timestep 600), although sampling begins with pure noise; and with all 1000 its offset leads
    beyond the end. Such counts are spaced evenly instead ("linspace"; a single step by "trailing"), with a warning. DDIM and PNDM
    always step by the rounded distance, whatever the spacing, so that they refuse these counts.

    Raises:
        UserError: a number of steps that this scheduler cannot take; the message names those that it can.
    """
    most = scheduler.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise UserError(f"{steps} steps are not possible; allowed are 1 to {most}.")
    found = _spaced(scheduler, steps, device)
    if found is None:
        name = type(scheduler).__name__
        near = [
            n
            for n in (_nearest(scheduler, range(steps - 1, 0, -1)), _nearest(scheduler, range(steps + 1, most + 1)))
            if n
        ]
        what = f"{counted(steps, 'step')} {'is' if steps == 1 else 'are'} not possible with {name}"
        raise UserError(
            f"{what}: it would not cover the whole noise schedule of {most} timesteps. "
            f"Nearest possible: {' and '.join(map(str, near)) or 'none'}; or choose a sampler that takes any number, such as euler."
        )
    spacing, own = found.config.get("timestep_spacing"), scheduler.config.get("timestep_spacing")
    if spacing != own:
        warnings.warn(
            f"{counted(steps, 'step')}: timesteps are spaced by {spacing!r} instead of {own!r}, with which "
            f"{type(scheduler).__name__} would not cover its whole noise schedule.",
            stacklevel=2,
        )
    return found


def _nearest(scheduler: Any, counts: Iterable[int]) -> int | None:
    return next((count for count in counts if _spaced(scheduler, count) is not None), None)


def _spaced(scheduler: Any, steps: int, device: torch.device | str | None = None) -> Any:
    """The scheduler in so many steps, with the first spacing that is sound; None if none is."""
    own, most = scheduler.config.get("timestep_spacing"), scheduler.config.num_train_timesteps
    if type(scheduler).__name__ in FIXED_STRIDE and most // steps * steps < NEAR * most:
        return None
    for spacing in dict.fromkeys((own, *(SPACINGS if own is not None else ()))):
        if spacing != own:
            with quiet():
                scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing=spacing)
        try:
            with quiet():
                scheduler.set_timesteps(steps, device=device)
        except ValueError:  # PNDM's Runge-Kutta steps need four others
            continue
        if _sound(scheduler):
            return scheduler
    return None


def _sound(scheduler: Any) -> bool:
    """Whether sampling begins at most about one step below the noisiest timestep, and stays inside the schedule."""
    most = scheduler.config.num_train_timesteps
    times = [float(t) for t in scheduler.timesteps.tolist()]
    if not (min(times) >= 0 and max(times) <= most - 1):
        return False
    apart = [a - b for a, b in pairwise(times)]
    levels = getattr(scheduler, "sigmas", None)
    if isinstance(levels, Tensor) and len(levels) == len(times) + 1:
        # Timesteps that are rounded from noise levels (Karras) may repeat; noise levels that do are divided by their distance, zero.
        # The last one is where the last step leads, which may be where it begins; of DPM-Solver it may not, as it divides by the distance.
        *levels, last = levels.tolist()
        falls = all(high > low for high, low in pairwise(levels)) and levels[-1] >= last
        falls = falls and (levels[-1] > last or type(scheduler).__name__ != SCHEDULERS["dpm++2m"])
    else:
        falls = all(
            a > 0 or (a == 0 and type(scheduler).__name__ == SCHEDULERS["pndm"]) for a in apart
        )  # PNDM repeats some
    if not falls:
        return False
    return times[0] + max(apart, default=0) >= NEAR * (most - 1)


def sample_with_scheduler(
    scheduler: Any,
    predict: Predict,
    noise: Float[Tensor, "N C h w"],
    steps: int,
    generators: Sequence[torch.Generator],
    on_step: Callable[[Progress], None] | None = None,
    known: KnownLatents | None = None,
) -> Float[Tensor, "N C h w"]:
    """From standard normal noise to latents; what is added on the way comes from each image's own generator.

    With `known`, sampling starts from the latents of a picture, or keeps a part of them.

    Latents stay in the noise's precision, whatever the network computes in. Those of an image for which the network gave NaN or
    infinity in any step are NaN: a scheduler that clips would hide it.

    Raises:
        UserError: as `planned`, and as `KnownLatents.skipped`.
    """
    scheduler = planned(scheduler, steps, noise.device)
    takes = signature(scheduler.step).parameters
    more = {"generator": list(generators)} if "generator" in takes else {}
    timesteps, latents = _begun(scheduler, noise, steps, known)
    finite = torch.ones(len(noise), dtype=torch.bool, device=noise.device)
    for i, t in enumerate(timesteps):
        predicted = predict(scheduler.scale_model_input(latents, t), t)
        finite &= torch.isfinite(predicted).flatten(1).all(1)
        stepped = scheduler.step(predicted, t, latents, **more)
        latents = stepped.prev_sample
        if known is not None:
            last = i + 1 == len(timesteps)
            noisy = known.latents if last else scheduler.add_noise(known.latents, noise, timesteps[i + 1 : i + 2])
            latents = known.kept_in(latents, noisy)
        if on_step is not None:
            seen = getattr(stepped, "pred_original_sample", None)
            on_step(Progress(i + 1, len(timesteps), _sigma(scheduler, t), seen))
    return latents.masked_fill(~finite[:, None, None, None], torch.nan)


def _begun(
    scheduler: Any, noise: Float[Tensor, "N C h w"], steps: int, known: KnownLatents | None
) -> tuple[Tensor, Float[Tensor, "N C h w"]]:
    """The timesteps to take, and the latents at the first one.

    Raises:
        UserError: PNDM, whose first steps belong to the beginning of the schedule; or no step would be left.
    """
    if known is None or known.strength is None:
        return scheduler.timesteps, noise * scheduler.init_noise_sigma
    if type(scheduler).__name__ == SCHEDULERS["pndm"]:
        raise UserError("pndm cannot start from an image: choose another sampler, such as ddim or dpm++2m.")
    skipped = known.skipped(steps)
    timesteps = scheduler.timesteps[skipped:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    return timesteps, scheduler.add_noise(known.latents.expand_as(noise), noise, timesteps[:1].expand(len(noise)))


def _sigma(scheduler: Any, timestep: Tensor) -> float:
    """Noise level in EDM's convention of a timestep: √((1 − ᾱ) / ᾱ)."""
    kept = scheduler.alphas_cumprod
    share = float(kept[min(max(round(float(timestep)), 0), len(kept) - 1)])
    return ((1 - share) / max(share, 1e-12)) ** 0.5
