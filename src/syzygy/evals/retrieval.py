"""Which of many is meant? Ranks by cosine, and how often the right one is among the first."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

RECALLS = (1, 5, 10)


def ranks(queries: Float[Tensor, "N D"], gallery: Float[Tensor, "N D"]) -> Int[Tensor, "N"]:
    """Where row i of the gallery stands for query i, by cosine: 0 is the nearest of all; what is as near stands before it."""
    cosines = F.normalize(queries.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T
    own = cosines.diagonal()[:, None]
    return (cosines >= own).sum(1) - 1


def recalls(found: Int[Tensor, "N"]) -> dict[str, float]:
    """`R@1`, `R@5`, `R@10`, in [0, 1]."""
    return {f"R@{most}": round(float((found < most).double().mean()), 4) for most in RECALLS}
