"""The guards around every test do guard."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

ROOT = Path(__file__).parents[2]


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
    from syzygy.regions.region_bias import RegionBias, attention, noise_factor

    with pytest.raises(TypeCheckError):
        noise_factor(torch.ones(2, dtype=torch.int64))
    bias, x = RegionBias(torch.zeros(2, 3, 2, 2), (2, 2), torch.ones(2)), torch.zeros(2, 1, 4, 8)
    assert attention(x, x, x, bias).shape == x.shape
    with pytest.raises(TypeCheckError):
        attention(x, x[:1], x, bias)


def test_the_end_says_what_was_skipped_and_how_to_get_it(tmp_path: Path) -> None:
    lines = ["import pytest", "@pytest.mark.skip(reason='they need a thing; install it')", "def test_a(): pass"]
    (tmp_path / "test_it.py").write_text("\n".join([*lines, lines[1], "def test_b(): pass", "def test_c(): pass"]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    *_, line, end = done.stdout.splitlines()
    assert line == "2 tests were skipped: they need a thing; install it.", done.stdout + done.stderr
    assert end.startswith("1 passed, 2 skipped in")


@pytest.mark.parametrize(("capability", "level"), [("default", "SSE41"), ("avx2", "AVX2"), (None, None)])
def test_kernels_of_an_older_processor_are_its_own_everywhere(capability: str | None, level: str | None) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")}
    script = "import os, tests.conftest; print(os.environ.get('ONEDNN_MAX_CPU_ISA'))"
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment | ({"ATEN_CPU_CAPABILITY": capability} if capability else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(level)


def test_one_thread_and_an_empty_home_of_models() -> None:
    from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE

    assert torch.get_num_threads() == int(os.environ.get("SYZYGY_TEST_THREADS", "1"))
    assert os.environ["HF_HOME"] == HF_HOME
    assert HF_HUB_OFFLINE
