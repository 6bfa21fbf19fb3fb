"""Freed memory goes back to the system."""

import platform
from pathlib import Path

import pytest

from syzygy.server import memory


def resident() -> int:
    """MiB of memory that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_given_back() -> None:
    blocks = [b"x" * 2**16 for _ in range(3000)]
    last = blocks.pop()  # at the end of the heap, which therefore does not shrink by itself
    before = resident()
    del blocks
    memory.release()
    assert before - resident() > 100, last[:1]
