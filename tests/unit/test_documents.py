"""The documents are readable and their links lead somewhere; a file of the source is found by its name."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import ROOT

LONGEST = 120
TABLE_OR_IMAGE = re.compile(r"\s*(\||!\[|    )")
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
SHARED_NAMES = {"__init__", "training", "presets", "config"}
"""File names that several packages have, because each means the same in all of them."""
GENERATED = {"reference/command-line.md", "reference/architecture.md"}
"""Pages that docs/hooks.py makes."""
HISTORY = {"LOG.md", "CHANGELOG.md", "0001-layers.md"}
"""Pages that name files as they were."""
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines outside code blocks, tables and images; links count as their text."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not TABLE_OR_IMAGE.match(line):
            yield number, re.sub(r"\]\([^)]*\)", "]", line)


def links(text: str) -> list[str]:
    """Targets of the relative links and images of a page, outside code."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    plain = re.sub(r"`[^`\n]*`", "", plain)
    return [target for target in LINK.findall(plain) if not re.match(r"[a-z]+:|#", target)]


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_lines_are_short(path: Path) -> None:
    long = {number: len(line) for number, line in prose(path.read_text("utf-8")) if len(line) > LONGEST}
    assert long == {}


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_to_files(path: Path) -> None:
    folder, docs = path.parent, ROOT / "docs"
    missing = []
    for target in links(path.read_text("utf-8")):
        file = (folder / target.partition("#")[0]).resolve()
        made = docs in file.parents and str(file.relative_to(docs)) in GENERATED
        if not file.exists() and not made:
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("path", [page for page in PAGES if page.name not in HISTORY], ids=page_name)
def test_named_files_exist(path: Path) -> None:
    """Files of the source, tests, benchmarks and examples in backticks."""
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*/[a-z_]+\.(?:py|ipynb))`", path.read_text("utf-8"))
    places = (ROOT, ROOT / "src", ROOT / "src" / "syzygy")
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_names_of_files_are_unique() -> None:
    names = Counter(path.stem for path in (ROOT / "src").rglob("*.py") if path.stem not in SHARED_NAMES)
    assert [name for name, count in names.items() if count > 1] == []


def test_what_is_wrong_is_found() -> None:
    text = f"# T\n\n{'word ' * 30}\n\n| {'cell ' * 40} |\n\n```sh\n{'x' * 200}\n```\n\n[a](no.md#b) [b](https://x.y) `](z)`\n"
    assert [number for number, line in prose(text) if len(line) > LONGEST] == [3]
    assert links(text) == ["no.md#b"]
