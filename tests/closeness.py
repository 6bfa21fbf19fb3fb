"""When two computed tensors are the same: one rule, which holds whatever the processor, its kernels and its number of threads.

Kernels add the same terms in another order (AMX, AVX-512, AVX2, SSE, Arm; one thread or two; a batch of one or of five), so the
difference grows with the size of the values and with the depth of the computation. A number that ignores either one fails on the next machine.
A fault moves a result by a good part of its size, which is thousands of times more than this tolerance.
"""

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
        largest: the largest value of the comparison, if not that of `wanted` (for example where `wanted` is a small difference).
        dtype: the precision of the computation, if it is coarser than that of the two tensors.
    """
    unit = max(UNIT[x] for x in (dtype or found.dtype, found.dtype, wanted.dtype))
    if largest is None:
        finite = wanted.detach()[wanted.isfinite()].abs()
        largest = finite.max().item() if finite.numel() else 0.0
    torch.testing.assert_close(found, wanted, rtol=0, atol=unit * depth * largest)
