"""What holds for every test: two threads, no network, no user's caches, the same examples at every run."""

import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# Set before torch and huggingface_hub are first imported, and for subprocesses too. Hugging Face gets an empty home:
# a model in the user's cache must not make a test pass.
_home = tempfile.TemporaryDirectory(prefix="syzygy-tests-")
os.environ |= {"HF_HOME": _home.name, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}

settings.register_profile("syzygy", deadline=None, derandomize=True, database=None)
settings.load_profile("syzygy")


def is_local(address: Any) -> bool:
    """True for a Unix socket, `localhost` and the loopback ranges."""
    if not isinstance(address, tuple):
        return True
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return address[0] == "localhost"


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A connection to anything but this machine fails the test that tries."""

    def guarded(connect: Any) -> Any:
        def connect_locally(self: socket.socket, address: Any) -> Any:
            if not is_local(address):
                pytest.fail(f"a test tried to reach {address}")
            return connect(self, address)

        return connect_locally

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


def pytest_unconfigure() -> None:
    _home.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))
