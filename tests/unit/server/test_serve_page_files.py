"""The page's files: what is served, under which rules, and that they name nobody else."""

import re

import httpx
import pytest
from fastapi import FastAPI

from syzygy.server.page_assets import KINDS, assets, attach

FILES = assets()


@pytest.fixture(scope="module")
def client() -> httpx.Client:
    from starlette.testclient import TestClient

    app = FastAPI()
    attach(app)
    return TestClient(app)


def test_every_file_is_served_under_the_same_rules(client: httpx.Client) -> None:
    assert {"index.html", "main.js", "style.css", "icon.svg"} <= set(FILES)
    for name, content in FILES.items():
        path = "/" if name == "index.html" else f"/page/{name}"
        answer = client.get(path)
        assert answer.content == content
        assert answer.headers["Content-Type"].partition(";")[0] == KINDS[name.rpartition(".")[2]]
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert not re.search(r"https?:|\*|unsafe", policy)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py"]
)
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_names_another_server_or_makes_code_of_texts(name: str) -> None:
    text = FILES[name].decode().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z0-9.-]+\.[a-z]{2,}/|innerHTML|outerHTML|eval\(|document\.write", text)
    assert len(text.splitlines()) <= 400


def test_what_the_page_loads_is_there() -> None:
    named = re.findall(r'(?:src|href)="page/([^"]+)"', FILES["index.html"].decode())
    named += [
        one
        for name, text in FILES.items()
        if name.endswith(".js")
        for one in re.findall(r'from "\./([^"]+)"', text.decode())
    ]
    assert set(named) == set(FILES) - {"index.html"}
    ids = set(re.findall(r'id="([^"]+)"', FILES["index.html"].decode()))
    used = {
        one
        for name, text in FILES.items()
        if name.endswith(".js")
        for one in re.findall(r'find\("([^"]+)"\)', text.decode())
    }
    assert used <= ids
