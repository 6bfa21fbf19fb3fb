"""The settings of the training loop, and the learning rate that follows from them. Imports no torch."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from syzygy.core.config import Config

VALIDATIONS = 5
"""Number of validations of a run that is shorter than the preset's interval between validations."""


class LoopConfig(Config):
    """Settings of the training loop; times are in optimizer steps."""

    steps: int = Field(gt=0)
    """Number of optimizer steps."""
    lr: float = Field(gt=0, allow_inf_nan=False)
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for all parameters; or muon for the matrices of hidden layers and adamw for the rest."""
    muon_lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate of Muon, on AdamW's scale; null for `lr`. Its schedule is that of `lr`."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly to its peak."""
    schedule: Literal["constant", "cosine", "cosine-restarts"] = "cosine"
    """Learning rate after the warm-up."""
    restart_every: int = Field(default=0, ge=0)
    """Steps between warm restarts; for cosine-restarts only."""
    final_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end of a cosine, relative to the peak."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's first and second moments (Muon's momentum is 0.95)."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Decoupled weight decay of parameters with two or more dimensions (not of biases and norms)."""
    grad_clip: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Largest norm of the gradient; 0 does not clip."""
    ema_half_life: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Half-life in steps of the averaged weights, which are validated and saved; 0 uses the weights themselves."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between validations, with one more at the end; 0 never validates."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; with 0, one is written only when the run ends or is stopped."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """Number of checkpoints to keep, including the latest."""
    best: str = Field(default="", pattern=r"^$|^(max|min) [\w/]+$")
    """Validation metric whose best weights are kept in `best/`, such as "max cosine" or "min loss"; empty for none."""
    log_every: int = Field(default=10, gt=0)
    """Steps between lines of metrics; each line holds means over these steps."""

    def adapted(self, changes: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
        """A shorter run gets a shorter warm-up and several validations; settings that lose their effect are reset."""
        found: dict[str, tuple[Any, str]] = {}
        steps = changes.get("steps")
        if isinstance(steps, int) and steps > 0:  # else an error, which the validation explains
            warmup = self.warmup if 2 * self.warmup <= steps else steps * self.warmup // self.steps
            several = -(-steps // VALIDATIONS)
            found = {
                "warmup": (warmup, "steps"),
                "restart_every": (min(self.restart_every, max(1, steps - warmup)), "steps"),
                "validate_every": (self.validate_every if self.validate_every <= steps else several, "steps"),
                "checkpoint_every": (self.checkpoint_every if self.checkpoint_every <= steps else several, "steps"),
            }
        if changes.get("schedule") in ("constant", "cosine"):
            found["restart_every"] = 0, "schedule"
        if changes.get("schedule") == "constant":
            found["final_lr_ratio"] = 0.0, "schedule"
        if changes.get("optimizer") == "adamw":
            found["muon_lr"] = None, "optimizer"
        if changes.get("validate_every") == 0:
            found["best"] = "", "validate_every"
        return {name: new for name, new in found.items() if name not in changes and new[0] != getattr(self, name)}

    @model_validator(mode="after")
    def _consistent(self) -> "LoopConfig":
        if self.warmup >= self.steps:
            raise ValueError(f"warmup={self.warmup} leaves nothing of steps={self.steps}; choose a shorter warm-up")
        if self.schedule == "cosine-restarts" and not self.restart_every:
            raise ValueError("schedule=cosine-restarts needs restart_every, the steps from one restart to the next")
        if self.schedule != "cosine-restarts" and self.restart_every:
            raise ValueError(
                f"restart_every has no effect with schedule={self.schedule}; use cosine-restarts or leave it out"
            )
        if self.schedule == "constant" and self.final_lr_ratio:
            raise ValueError("final_lr_ratio has no effect with schedule=constant; use a cosine or leave it out")
        if self.muon_lr is not None and self.optimizer != "muon":
            raise ValueError(f"muon_lr has no effect with optimizer={self.optimizer}; use muon or leave it out")
        if self.best and not self.validate_every:
            raise ValueError(f"best={self.best!r} has no effect without validate_every")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are at least 0 and below 1; got {self.betas}")
        return self


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of the step with index `step` (from 0).

    Cosine annealing from SGDR (Loshchilov and Hutter 2017), equation 5; with restarts its period is constant. Without a
    warm-up the latter equals torch's `CosineAnnealingWarmRestarts(T_0=restart_every)`, which trained ECLIPSE.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    since = step - config.warmup
    match config.schedule:
        case "constant":
            return config.lr
        case "cosine":
            fraction = since / (config.steps - config.warmup)
        case "cosine-restarts":
            fraction = since % config.restart_every / config.restart_every
    low = config.lr * config.final_lr_ratio
    return low + (config.lr - low) * 0.5 * (1 + math.cos(math.pi * fraction))
