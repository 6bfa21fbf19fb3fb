"""Mixed precision: weights, optimizer and losses stay in fp32, and the network runs in the fastest precision of the device."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def precision_on(device: torch.device) -> torch.dtype | None:
    """bf16 on a GPU and on a CPU that multiplies in bf16 (AVX-512 BF16 or AMX); None, that is fp32, elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16
    fast = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else None


def chosen_precision(setting: str, device: torch.device) -> torch.dtype | None:
    """What the setting "auto", "fp32" or "bf16" means on a device: bf16, or None for fp32; "auto" is bf16 on CUDA."""
    return torch.bfloat16 if setting == "bf16" or (setting == "auto" and device.type == "cuda") else None


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to `dtype`; None changes nothing."""
    # On a CPU, fused attention's backward pass in bf16 is five times slower than its plain form (torch 2.13).
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" and dtype is not None else nullcontext()
    with torch.autocast(device.type, dtype, enabled=dtype is not None), plain:
        yield
