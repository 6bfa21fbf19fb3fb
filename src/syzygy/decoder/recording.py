"""What the supervision of a training step reads from the forward pass of a backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn


@dataclass
class Recorded:
    """B samples, P patches (positions of the supervised resolution), T tokens, D features."""

    attention: list[Float[Tensor, "B P T"]] = field(default_factory=list)
    """Cross-attention of the first head of several layers, without the bias of regions: where the network looks by itself."""
    features: Float[Tensor, "B P D"] | None = None
    """Features of the patches, after layers that attend to the tokens."""


class RecordingBackbone(nn.Module):
    """A backbone whose forward pass fills a `Recorded` inside `recording()`."""

    patch: int
    """Height and width of a patch, in latents."""
    feature_width: int
    """Width of the recorded features."""

    def __init__(self) -> None:
        super().__init__()
        self._recorded: Recorded | None = None

    @contextmanager
    def recording(self) -> Iterator[Recorded]:
        """Inside, a forward pass is recorded."""
        self._recorded = Recorded()
        try:
            yield self._recorded
        finally:
            self._recorded = None
