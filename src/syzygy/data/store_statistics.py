"""Where a store's image embeddings lie, from the sums that its files keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from syzygy.data import store_layout
from syzygy.data.store_files import mapped


@dataclass(frozen=True)
class ImageStatistics:
    """Of N raw image embeddings as stored: what `prior.statistics.EmbeddingStatistics` is made of."""

    number: int
    """N."""
    mean: Float[Tensor, "D"]
    """Of each dimension, in float64."""
    std: Float[Tensor, "D"]
    """Of each dimension, in float64, with Bessel's correction; zeros if N is 1."""
    mean_norm: float
    """Mean L2 norm."""

    def to_config(self) -> dict[str, Any]:
        """As JSON values, exactly."""
        return {
            "number": self.number,
            "width": len(self.mean),
            "mean_norm": self.mean_norm,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    @staticmethod
    def from_config(values: Mapping[str, Any]) -> "ImageStatistics":
        """What `to_config` wrote."""
        mean, std = (torch.tensor(values[name], dtype=torch.float64) for name in ("mean", "std"))
        return ImageStatistics(values["number"], mean, std, values["mean_norm"])


def statistics_of(store: Path, parts: Sequence[Mapping[str, Any]]) -> ImageStatistics:
    """Of all image embeddings in these parts, merged in their order: the same numbers whoever wrote them when.

    Raises:
        UserError: a file is missing or damaged.
    """
    number, sums, norms = 0, torch.zeros(0), 0.0
    for part in parts:
        file = part["features"][store_layout.DEFAULT_SET]
        tensors = mapped(store / store_layout.SHARDS / file["name"], file["size"])
        sums = tensors["image_sums"] if number == 0 else sums + tensors["image_sums"]
        norms += float(tensors["image_norm_sum"])
        number += part["pictures"]
    mean = sums[0] / number
    variance = (sums[1] - number * mean**2) / max(number - 1, 1)
    return ImageStatistics(number, mean, variance.clamp(min=0).sqrt(), norms / number)
