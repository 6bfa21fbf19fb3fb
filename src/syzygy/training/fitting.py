"""Adapts a preset to the data: settings that the user did not give follow the amount of data, and a line reports each change."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from syzygy.core.config import Config, silent
from syzygy.core.wording import counted

C = TypeVar("C", bound=Config)
VALIDATION_PART = 5
"""At most one in five images is used for validation, unless the user asks for more."""
MANY_EPOCHS = 300
"""With more passes over the data than this, a line warns of overfitting."""
GUIDE = "docs/tutorials/train-your-own-prior.md"


@dataclass(frozen=True)
class Fitting:
    """The settings that the user gave, and a function for lines about changes to the others. By default nothing is changed."""

    given: frozenset[str] | None = None
    """Dotted names of the settings that must not change; None means all settings."""
    say: Callable[[str], None] = silent

    def free(self, name: str) -> bool:
        """Whether this setting is a preset's and may follow the data."""
        return self.given is not None and name not in self.given

    def validation(self, run: C, name: str, pictures: int, where: str) -> C:
        """The run with at most a fifth of `pictures` (at least one) for validation."""
        return self._part(run, name, pictures, f"{counted(pictures, 'picture')} in {where}", 1)

    def lines(self, run: C, lines: int, where: str) -> C:
        """The run with at most a fifth of a corpus's lines (at least two) for validation."""
        return self._part(run, "validation_lines", lines, f"{counted(lines, 'line')} of {where}", 2)

    def _part(self, run: C, name: str, number: int, what: str, least: int) -> C:
        before: int = getattr(run, name)
        most = max(least, number // VALIDATION_PART)
        if before <= most or not self.free(name):
            return run
        self.say(f"{name} is {most:,} instead of the preset's {before:,}, to fit the {what}.")
        return run.model_copy(update={name: most})

    def batch(self, run: C, captions: int, processes: int = 1) -> C:
        """The run with at most as many captions per step as there are to train on, and as its processes can share evenly."""
        task: Config = getattr(run, "task")  # noqa: B009
        before: int = getattr(task, "batch_size")  # noqa: B009
        if before <= captions or not self.free("task.batch_size"):
            return run
        most = max(captions // processes, 1) * processes
        what = counted(captions, "caption")
        self.say(f"task.batch_size is {most:,} instead of the preset's {before:,}, to fit the {what} to train on.")
        return run.model_copy(update={"task": task.model_copy(update={"batch_size": most})})

    def passes(self, captions: int, validation: int, seen: int) -> None:
        """Report how often a run that sees `seen` captions in total sees each of them."""
        epochs = seen / captions
        what = (
            f"{counted(captions, 'caption')} to train on, {validation:,} to validate on; each is seen {_times(epochs)}"
        )
        advice = f". That many passes overfit: see the table of sizes in {GUIDE}" if epochs > MANY_EPOCHS else ""
        self.say(f"{what}{advice}.")


AS_GIVEN = Fitting()
"""Changes nothing and says nothing."""


def _times(epochs: float) -> str:
    return "once" if epochs == 1 else f"{epochs:,.0f} times" if epochs >= 10 else f"{epochs:.2g} times"
