"""What the supervision of a training step reads from the forward pass of a backbone."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass
class Recorded:
    """B samples, P patches (positions of the supervised resolution), T tokens, D features."""

    attention: list[Float[Tensor, "B P T"]] = field(default_factory=list)
    """Cross-attention of the first head of several layers, without the bias of regions: where the network looks by itself."""
    features: Float[Tensor, "B P D"] | None = None
    """Features of the patches, after layers that attend to the tokens."""
