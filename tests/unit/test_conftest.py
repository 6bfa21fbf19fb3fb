"""The guards around every test do guard."""

import os
import socket

import pytest
import torch


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


def test_one_thread_and_an_empty_home_of_models() -> None:
    from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE

    assert torch.get_num_threads() == 1
    assert os.environ["HF_HOME"] == HF_HOME
    assert HF_HUB_OFFLINE
