"""Reports: what a page and a report in Markdown hold, that pages are self-contained, and that the same values give the same bytes."""

import json
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from syzygy.core.errors import UserError
from syzygy.lab import report
from syzygy.lab.plots import bar_plot, line_plot
from syzygy.lab.report import Figure, Gallery, GalleryRow, Items, Note, Picture, Report, Section, Table, generated

EVIL = "<script>alert('\"&\"')</script>"
IMAGE = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)


class Content(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def whole() -> Report:
    """One of each block, with names that a person may have chosen."""
    return Report(
        f"Title {EVIL}",
        ["`syzygy demo` found **this**.", f"Lead {EVIL}"],
        [
            Section("Plots", [line_plot(EVIL, {EVIL: [(1, 2, 0.5), (2, 3, 0.25)]}, x="σ", file="line.svg"),
                              bar_plot("accuracy", {"$a_b$": (0.5, 0.4, 0.6), EVIL: (1.0, 1.0, 1.0)})]),
            Section("", [Table(["", "n | m"], [[EVIL, "1 | 2"]], f"Caption {EVIL}"), Note(EVIL), Items([EVIL, "two"])]),
            Section("Images", [Gallery([EVIL], [GalleryRow(EVIL, "colour, seen", [generated(IMAGE, EVIL, True)])], "Some", "s.jpg"),
                               Picture(IMAGE, f"a sheet {EVIL}", "caption")]),
        ],
        limits=f"Limits {EVIL}",
        provenance={"machine": EVIL},
    )  # fmt: skip


def test_a_page_shows_everything_and_runs_nothing() -> None:
    page = whole().html()
    found = Content(page)
    assert found.text.count(EVIL) >= 12
    assert not found.all("script")
    assert not found.all("link")
    assert "://" not in page
    assert "@import" not in page
    assert [one["name"] for one in found.all("meta") if "name" in one] == ["viewport", "color-scheme"]
    assert "<code>syzygy demo</code>" in page
    assert "<b>this</b>" in page
    first, second = found.all("img")
    assert (first["alt"], first["class"], first["width"]) == (f"{EVIL}: all facts are right", "right", "96")
    assert (second["alt"], "class" in second) == (f"a sheet {EVIL}", False)
    assert all(str(one["src"]).startswith("data:image/png;base64,") for one in (first, second))
    assert [one["aria-label"] for one in found.all("svg")] == [
        f"{EVIL}, over σ: {EVIL}",
        f"accuracy: $a_b$ 50 %, {EVIL} 100 %",
    ]


def test_markdown_holds_texts_and_tables_and_names_files() -> None:
    text = whole().markdown()
    assert text.startswith(f"# Title {EVIL}\n\n`syzygy demo` found **this**.\n\nLead")
    assert f"|  | n \\| m |\n| --- | --- |\n| {EVIL} | 1 \\| 2 |" in text
    assert "(line.svg)" in text
    assert "![Some](s.jpg)" in text
    assert text.count("](") == 2, "the second plot and the sheet are no files"
    assert f"## What this does not show\n\nLimits {EVIL}\n\nmachine:" in text


def test_files_of_a_report(tmp_path: Path) -> None:
    whole().write(tmp_path, {"one": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "line.svg", "report.md", "results.json"]
    assert json.loads((tmp_path / "results.json").read_text()) == {"one": 1}
    root = ElementTree.parse(tmp_path / "line.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert EVIL in ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "background" in root.attrib["style"]


def test_the_same_values_give_the_same_bytes() -> None:
    assert whole().html() == whole().html()


def test_plots_are_drawn_in_the_colours_of_the_page() -> None:
    figure = line_plot("loss", {"": []}, x="steps")
    assert isinstance(figure, Figure)
    assert "currentColor" in figure.svg
    assert "#010203" not in figure.svg
    assert figure.description == "loss, over steps"
    assert len(figure.svg) < 12_000
    log = line_plot("loss", {"a": [(0.01, 1), (0.1, 2), (1, 3)]}, x="share", log=True).svg
    assert ">0.1</text>" in log
    assert "mathdefault" not in log


def test_pages_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    report.require_lab()
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(
        UserError, match=r"pages need the extra lab, and matplotlib cannot.*run pip install -e '\.\[lab\]'"
    ):
        report.require_lab()


def test_the_template_is_part_of_the_package() -> None:
    assert files("syzygy.lab").joinpath("templates", "report.html").is_file()
