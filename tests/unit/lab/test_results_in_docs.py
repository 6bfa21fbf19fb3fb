"""The results in `docs/results` stay readable: today's reports of their JSON hold the numbers of their tables."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from syzygy.lab.report import Gallery, Report
from syzygy.lab.reproduce import eclipse_experiment, experts_experiment, text_encoder_experiment

RESULTS = Path(__file__).parents[3] / "docs" / "results"
REPORTS: dict[str, Callable[[Mapping[str, Any], Gallery], Report]] = {
    "eclipse": eclipse_experiment.report,
    "experts": experts_experiment.report,
    "text-encoder": text_encoder_experiment.report,
}


def lines(text: str) -> list[str]:
    """Lines of tables below their headers, in today's words."""
    found = [line for line in text.splitlines() if line.startswith("| ") and line[2] not in " -"]
    return [line.replace("held out", "unseen").replace(" less ", " minus ") for line in found]


def printed(page: str) -> str:
    """The part of a page that the command printed: what follows the section written by hand."""
    _, learned, rest = page.partition("\n## What was learned")
    assert learned
    return rest[rest.index("\n## ") :]


@pytest.mark.parametrize("name", REPORTS)
def test_reports_of_earlier_results(name: str) -> None:
    results = json.loads((RESULTS / f"{name}.json").read_text())
    report = REPORTS[name](results, Gallery([], [], "Images", f"{name}.jpg"))
    published, today = lines(printed((RESULTS / f"{name}.md").read_text())), set(lines(report.markdown()))
    assert len(published) > 40
    assert [line for line in published if line not in today] == []
    assert f"![Images]({name}.jpg)" in report.markdown()
    for figure in report.figures():
        assert (RESULTS / figure.file).is_file()
    assert "<svg" in report.html()
