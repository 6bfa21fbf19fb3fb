"""The guards around every test do guard."""

import os
import socket

import pytest
import torch
from jaxtyping import TypeCheckError


@pytest.mark.parametrize("connect", ["connect", "connect_ex"])
def test_a_connection_to_elsewhere_fails_the_test(connect: str) -> None:
    elsewhere = ("192.0.2.1", 80)  # RFC 5737: for documentation, never routed
    with (
        socket.socket() as client,
        pytest.raises(pytest.fail.Exception, match="tried to reach"),
    ):
        getattr(client, connect)(elsewhere)


def test_a_connection_to_this_machine_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()


def test_shapes_are_checked() -> None:
    from syzygy.diffusion.paint import Painting, attention, strength

    with pytest.raises(TypeCheckError):
        strength(torch.ones(2, dtype=torch.int64))
    painting, x = Painting(torch.zeros(2, 3, 2, 2), (2, 2), torch.ones(2)), torch.zeros(2, 1, 4, 8)
    assert attention(x, x, x, painting).shape == x.shape
    with pytest.raises(TypeCheckError):
        attention(x, x[:1], x, painting)


def test_one_thread_and_an_empty_home_of_models() -> None:
    from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE

    assert torch.get_num_threads() == 1
    assert os.environ["HF_HOME"] == HF_HOME
    assert HF_HUB_OFFLINE
