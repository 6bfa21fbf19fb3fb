"""Randomness as an argument, keyed by what it is for.

A key is a seed and any number of integers or names (stage, sample index, …). Equal keys give equal numbers on every machine,
so neither batch size, worker nor resume changes a sample.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Key = int | str
T = TypeVar("T")


def seed_of(seed: int, *key: Key) -> int:
    """A 63-bit seed from a seed and a key; distinct keys give independent seeds (BLAKE2)."""
    text = "/".join([str(seed), *map(str, key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


class Draw(random.Random):
    """`random.Random` keyed by (seed, key). Only methods built on `random()` are stable across Python versions: use these."""

    def __init__(self, seed: int, *key: Key) -> None:
        super().__init__(seed_of(seed, *key))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[int(self.random() * len(items))]

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random()

    def order(self, items: Sequence[T]) -> list[T]:
        """A random permutation of the items."""
        return [item for _, item in sorted(((self.random(), i), item) for i, item in enumerate(items))]


def generator(seed: int, *key: Key, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for this key."""
    return torch.Generator(device=device).manual_seed(seed_of(seed, *key))


def per_sample_noise(
    shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str
) -> Float[Tensor, "batch ..."]:
    """Standard normal noise [len(generators), *shape], each sample from its own generator (drawn on the generator's device)."""
    return torch.stack([torch.randn(tuple(shape), generator=g, device=g.device).to(device) for g in generators])
