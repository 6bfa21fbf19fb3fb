"""The order in which trainings read their samples."""

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from syzygy.core.randomness import generator


class Shuffled:
    """The numbers below `length` as an endless stream of permutations."""

    def __init__(self, length: int, seed: int, *key: int | str) -> None:
        self._length, self._seed, self._key = length, seed, key
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Int[Tensor, "M"]:
        return torch.randperm(self._length, generator=generator(self._seed, *self._key, "epoch", epoch))

    def __getitem__(self, place: int) -> int:
        epoch, offset = divmod(place, self._length)
        return int(self._order(epoch)[offset])

    def run(self, start: int, number: int) -> Int[Tensor, "n"]:
        """The numbers at the places from `start` on."""
        return torch.tensor([self[place] for place in range(start, start + number)])
