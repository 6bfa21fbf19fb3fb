"""Retrieval: ranks by cosine, and how often the right row is among the first."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

RECALLS = (1, 5, 10)
CHUNK = 512
"""Queries that are compared with the gallery at once."""


def ranks(queries: Float[Tensor, "N D"], gallery: Float[Tensor, "N D"]) -> Int[Tensor, "N"]:
    """The rank of row i of the gallery for query i, by cosine: 0 is the nearest of all; ties count as nearer."""
    cosines = F.normalize(queries.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T
    own = cosines.diagonal()[:, None]
    return (cosines >= own).sum(1) - 1


def ranks_among(
    queries: Float[Tensor, "M D"], gallery: Float[Tensor, "G D"], right: Bool[Tensor, "M G"]
) -> Int[Tensor, "M"]:
    """How many wrong rows of the gallery are at least as near to each query, by cosine, as the nearest right one; 0 is best.

    Args:
        right: which rows are right for a query, at least one each.
    """
    gallery = F.normalize(gallery.double(), dim=1)
    found = []
    for part, own in zip(queries.split(CHUNK), right.split(CHUNK), strict=True):
        cosines = F.normalize(part.double(), dim=1) @ gallery.T
        nearest = cosines.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        found.append(((cosines >= nearest) & ~own).sum(1))
    return torch.cat(found)


def recalls(found: Int[Tensor, "N"]) -> dict[str, float]:
    """`R@1`, `R@5`, `R@10`, in [0, 1]."""
    return {f"R@{most}": round(float((found < most).double().mean()), 4) for most in RECALLS}
