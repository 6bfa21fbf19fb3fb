"""The files of `deploy/`: nginx in front of two server processes, the systemd units, and the steps of the Dockerfile."""

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from syzygy.server import responses
from syzygy.server.app import create_app
from syzygy.server.http_server import KEEP_ALIVE_SECONDS, SENDING_SECONDS, listening, serving
from syzygy.server.limits import Limits
from tests.documents import ROOT
from tests.e2e.test_docs_commands import parsed
from tests.tiny_server import PATIENCE, Held, tiny_engine, waited

GENERATIONS = "/v1/images/generations"
PLAIN = {"prompt": "a circle", "steps": 1}
NAME = "pictures.example.org"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
UNITS = sorted((ROOT / "deploy").glob("*.service"))


@contextmanager
def nginx(folder: Path, ports: list[int]) -> Iterator[str]:
    """`deploy/nginx.conf` with these server processes, on a free port; yields its URL."""
    assert NGINX
    with listening("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    site = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
    for written, real in {"127.0.0.1:8000": ports[0], "127.0.0.1:8001": ports[1]}.items():
        assert written in site
        site = site.replace(written, f"127.0.0.1:{real}")
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};")
    places = "".join(f"{kind}_temp_path {folder};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.getuid() == 0 else ""
    own = (
        f"{user}daemon off; pid {folder}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n{places}{site}}}"
    )
    (folder / "nginx.conf").write_text(own)
    with subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]) as process:
        try:
            assert waited(lambda: reached(port) or process.poll() is not None)
            assert process.poll() is None
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def reached(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Site:
    """Two server processes behind nginx, whose engines can be held; one request may wait in each."""

    def __init__(self, stack: ExitStack, folder: Path, model: Path) -> None:
        self.engines = [Held(tiny_engine(model)) for _ in range(2)]
        limits = Limits(queue=1)
        self.apps: list[Any] = [create_app(one, limits, hosts=[NAME]) for one in self.engines]  # type: ignore[arg-type]
        urls = [stack.enter_context(serving(app)) for app in self.apps]
        self.url = stack.enter_context(nginx(folder, [httpx.URL(url).port or 0 for url in urls]))

    def post(self, body: Any = PLAIN, address: str = "127.0.0.1", **headers: str) -> httpx.Response:
        with self.client(address) as client:
            return client.post(GENERATIONS, json=body, headers=headers)

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        transport = httpx.HTTPTransport(local_address=address)
        return httpx.Client(base_url=self.url, headers={"Host": NAME}, timeout=PATIENCE, transport=transport)

    def asking(self, found: list[int]) -> threading.Thread:
        thread = threading.Thread(target=lambda: found.append(self.post().status_code))
        thread.start()
        return thread

    @property
    def inside(self) -> list[int]:
        """Requests that each process has admitted."""
        return [app.state.server.worker.waiting + app.state.server.worker.running for app in self.apps]

    def go(self) -> None:
        for one in self.engines:
            one.go.set()


@pytest.fixture
def site(tmp_path: Path, tiny_model: Path) -> Iterator[Site]:
    if NGINX is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    with ExitStack() as stack:
        site = Site(stack, tmp_path, tiny_model)
        yield site
        site.go()


def test_requests_go_to_the_process_with_fewer_and_not_to_a_full_queue(site: Site) -> None:
    found: list[int] = []
    threads = []
    for number in range(4):
        threads.append(site.asking(found))
        assert waited(lambda number=number: sum(site.inside) == number + 1)
    assert site.inside == [2, 2]
    full = site.post()
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert "Retry-After" in full.headers
    site.go()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [200] * 4


def test_what_a_stopping_process_refuses_the_other_one_answers(site: Site) -> None:
    site.go()
    site.apps[0].state.server.stop()
    assert [site.post().status_code for _ in range(4)] == [200] * 4
    assert not site.engines[0].batches


def test_a_request_whose_process_ends_is_computed_by_the_other_one(site: Site) -> None:
    found: list[int] = []
    thread = site.asking(found)
    assert waited(lambda: sum(site.inside) == 1)
    busy = site.inside.index(1)
    for connection in [*site.apps[busy].state.server.connections]:
        connection.loop.call_soon_threadsafe(connection.transport.abort)
    assert waited(lambda: site.inside[1 - busy] == 1)
    site.go()
    thread.join(PATIENCE)
    assert found == [200]


def test_the_url_of_an_image_answers_whichever_process_has_it(site: Site) -> None:
    site.go()
    asked = {**PLAIN, "response_format": "url"}
    paths = [httpx.URL(site.post(asked).json()["data"][0]["url"]).path for _ in range(4)]
    assert all(one.batches for one in site.engines)
    with site.client() as client:
        for path in paths:
            answers = [client.get(path) for _ in range(4)]
            assert {(one.status_code, one.headers["Content-Type"]) for one in answers} == {(200, "image/png")}
            assert len({one.content for one in answers}) == 1
        missing = client.get(f"{paths[0]}a")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "image_not_found")


def test_events_pass_through_nginx_when_they_happen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "SILENCE_SECONDS", 0.2)
    found: list[int] = []
    threads = [site.asking(found) for _ in range(2)]
    assert waited(lambda: site.inside == [1, 1])
    asked = {**PLAIN, "stream": True, "progress": True}
    with site.client() as client, client.stream("POST", GENERATIONS, json=asked) as answer:
        lines = answer.iter_lines()
        assert "event: syzygy.queue" in lines
        assert ": waiting" in lines
        # The answer has not ended, so nginx does not keep it back.
        assert not any(one.go.is_set() for one in site.engines)
        site.go()
        assert "event: image_generation.completed" in lines
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [200] * 2


def test_a_client_that_leaves_nginx_frees_its_place(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "SILENCE_SECONDS", 0.2)
    with site.client() as client, client.stream("POST", GENERATIONS, json={**PLAIN, "stream": True}):
        assert sum(site.inside) == 1
    assert waited(lambda: sum(site.inside) == 0)


def test_the_page_is_the_same_from_all_processes(site: Site) -> None:
    with site.client() as client:
        for path in ("/", "/page/main.js"):
            answers = [client.get(path) for _ in range(4)]
            assert {one.status_code for one in answers} == {200}
            (tag,) = {one.headers["ETag"] for one in answers}
            known = [client.get(path, headers={"If-None-Match": tag}).status_code for _ in range(4)]
            assert known == [304] * 4


def test_names_origins_and_addresses_arrive_as_the_client_has_them(site: Site) -> None:
    assert site.post(Host="evil.example").status_code == 421
    port = httpx.URL(site.url).port
    site.go()
    assert site.post(Host=f"{NAME}:{port}", Origin=f"http://{NAME}:{port}").status_code == 200
    assert site.post(Origin="http://evil.example").status_code == 403
    for one in site.engines:
        one.go.clear()
    found: list[int] = []
    forged = {"X-Forwarded-For": "203.0.113.9"}
    thread = threading.Thread(target=lambda: found.append(site.post(address="127.0.0.2", **forged).status_code))
    thread.start()
    assert waited(lambda: sum(site.inside) == 1)
    clients = [entry.client for app in site.apps for entry in app.state.server.admission._entries]
    assert clients == ["127.0.0.2"]
    site.go()
    thread.join(PATIENCE)
    assert found == [200]


def test_nginx_and_the_server_have_one_limit_for_bodies(site: Site) -> None:
    site.go()
    most = Limits().upload
    for size, status in ((most, 400), (most + 1, 413)):
        content = b'{"prompt": "%s"}' % (b"a" * (size - 14))
        with site.client() as client:
            answer = client.post(GENERATIONS, content=content, headers={"Content-Type": "application/json"})
        assert (len(content), answer.status_code) == (size, status)
        assert ("string_above_max_length" in answer.text) == (status == 400)  # else it is nginx's page


def test_nginx_closes_idle_connections_before_the_server_does() -> None:
    found = re.search(r"keepalive_timeout (\d+)s;", (ROOT / "deploy" / "nginx.conf").read_text("utf-8"))
    assert found
    assert int(found[1]) < KEEP_ALIVE_SECONDS


def unit(path: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path, "utf-8")
    return parser["Service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_stop_the_server_later_than_it_stops_itself(path: Path) -> None:
    service = unit(path)
    program, *arguments = shlex.split(service["ExecStart"].replace("%i", "1"))
    assert program.endswith("/.venv/bin/syzygy")
    grace = parsed(arguments).params["grace"]
    assert int(service["TimeoutStopSec"]) > grace + 2 * SENDING_SECONDS
    assert int(service["LimitNOFILE"]) > 2048 + Limits().connections


def test_units_are_hardened_alike() -> None:
    assert [path.name for path in UNITS] == ["syzygy.service", "syzygy@.service"]
    one, several = (path.read_text("utf-8").partition("# Hardening")[2].splitlines() for path in UNITS)
    assert set(one) - set(several) == {"PrivateDevices=yes"}  # the template needs the GPU
    assert set(several) <= set(one)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_units(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name.replace("@.", "@1.")
    text = path.read_text("utf-8")
    copy.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", copy], check=False, capture_output=True, text=True)
    assert (done.returncode, path.name.partition(".")[0] in done.stderr) == (0, False), done.stderr
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", copy]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-200:]


def succeeds(command: list[str], environment: dict[str, str]) -> bool:
    return subprocess.run(command, check=False, env=environment, stderr=subprocess.DEVNULL).returncode == 0


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: their names and arguments."""
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def built(folder: Path, environment: dict[str, str]) -> None:
    """Run the COPY and RUN steps of the Dockerfile in a folder.

    The virtual environment is new, but sees the packages that are installed here, so that pip has only Syzygy itself to build.
    """
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = folder / target / ("" if (ROOT / source).is_dir() else source)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, place)
        elif name == "RUN" and rest == "python -m venv .venv":
            venv.create(folder / ".venv", symlinks=True)
            (here,) = (folder / ".venv" / "lib").glob("*/site-packages")
            places = [path for path in sys.path if path.endswith("site-packages")]
            (here / "installed.pth").write_text("\n".join(places))
            (folder / ".venv" / "bin" / "pip").write_text(
                f"#!{folder}/.venv/bin/python\nfrom pip._internal.cli.main import main\nmain()\n"
            )
            (folder / ".venv" / "bin" / "pip").chmod(0o755)
        elif name == "RUN":
            subprocess.run(["/bin/sh", "-c", rest], check=True, cwd=folder, env=environment)


def test_docker_is_sent_what_is_copied() -> None:
    copied = {source for name, rest in instructions() if name == "COPY" for source in rest.split()[:-1]}
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    find_spec("hatchling") is None or find_spec("pip") is None, reason="pip or hatchling is not installed"
)
def test_the_steps_of_the_dockerfile_give_a_server_that_runs(tmp_path: Path, tiny_model: Path) -> None:
    folder, weights = tmp_path / "syzygy", tmp_path / "weights"
    folder.mkdir()
    weights.mkdir()
    own = {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    built(folder, own | {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    steps = dict(instructions())
    for line in (rest for name, rest in instructions() if name == "ENV"):
        own |= {name: value for name, value in (word.split("=", 1) for word in line.split()) if name != "PATH"}
    assert own["HF_HUB_OFFLINE"] == "1"
    own |= {"HF_HOME": str(weights), "SYZYGY_API_KEY": "secret"}
    assert int(steps["USER"].partition(":")[0]) > 0
    command = [*json.loads(steps["CMD"]), "--model", str(tiny_model), "--device", "cpu", "--json"]
    port = steps["EXPOSE"]
    check = json.loads(steps["HEALTHCHECK"].partition(" CMD ")[2])
    with listening("127.0.0.1", 0) as free:
        real = str(free.getsockname()[1])
    with subprocess.Popen([*command, "--port", real], cwd=tmp_path, env=own, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            about = json.loads(process.stdout.readline())
            assert about["url"] == f"http://0.0.0.0:{real}"
            assert port in check[-1]
            command = [*check[:-1], check[-1].replace(port, real)]
            assert waited(lambda: succeeds(command, own))
            place = subprocess.run(
                ["python", "-c", "import syzygy; print(syzygy.__file__)"],
                check=True,
                env=own,
                capture_output=True,
                text=True,
            ).stdout
            assert place.startswith(str(folder))
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
            assert not succeeds(command, own)
        finally:
            process.kill()


@pytest.mark.parametrize(
    "path", [*UNITS, ROOT / "deploy" / "nginx.conf", ROOT / "deploy" / "Dockerfile"], ids=lambda path: path.name
)
def test_the_page_shows_the_files_as_they_are(path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text("utf-8")
    assert f"\n{path.read_text('utf-8')}```\n" in page
