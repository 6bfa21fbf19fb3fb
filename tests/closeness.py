"""When two computed tensors are the same: one rule, which holds whatever the processor, its kernels and its number of threads.

Kernels add the same terms in another order (AMX, AVX-512, AVX2, SSE, Arm; one thread or two; a batch of one or of five), so the
difference grows with the size of the values and with the depth of the computation. A number that ignores either one fails on the next machine.
A fault moves a result by a good part of its size, which is thousands of times more than this tolerance.
"""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

# What one layer may differ by, as a part of the largest value: about a hundred (half precision: a few) roundings of one number.
UNIT = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
NETWORK = 10  # layers of a tiny network. In float32 this is the promise of 1e-4 of the largest value for batches
LEVEL = 1 / 255  # one level of grey, the promise for generated images in 0 to 1


def assert_close(
    found: Tensor, wanted: Tensor, *, depth: float = 1, largest: float | None = None, dtype: torch.dtype | None = None
) -> None:
    """Fail unless the tensors have one shape and dtype and differ by at most `UNIT × depth × largest` everywhere.

    Args:
        depth: layers that the computation passes through; times the steps of a sampler or of training, times the guidance scale.
        largest: the largest value of the comparison, if not that of `wanted`: for a difference that of its terms, for a gradient
            that of all parameters (see `largest_of`).
        dtype: the precision of the computation, if it is coarser than that of the two tensors.
    """
    unit = max(UNIT[x] for x in (dtype or found.dtype, found.dtype, wanted.dtype))
    largest = largest_of([wanted]) if largest is None else largest
    torch.testing.assert_close(found, wanted, rtol=0, atol=unit * depth * largest)


def largest_of(tensors: Iterable[Tensor]) -> float:
    """The largest finite magnitude in any of the tensors; 0 where there is none."""
    finite = [x.detach()[x.isfinite()].abs() for x in tensors]
    return max((x.max().item() for x in finite if x.numel()), default=0.0)


def about(wanted: Any, *, depth: float = 1) -> Any:
    """The same rule for numbers computed in float32: a number, a list or a dictionary of them, as `pytest.approx` takes it."""
    unit = UNIT[torch.float32] * depth
    return pytest.approx(wanted, rel=unit, abs=unit)
