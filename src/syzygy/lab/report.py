"""Reports of evaluations and experiments: one data model, written as a self-contained page or as Markdown.

A page holds its pictures and plots, runs no script and makes no request. Texts may mark `code` and **bold**; everything else
in them is shown as it is.
"""

import base64
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from syzygy.core import artifacts
from syzygy.core.errors import UserError, install

PAGE, MARKDOWN, RESULTS = "index.html", "report.md", "results.json"
MARKED = (re.compile(r"`([^`]+)`"), r"<code>\1</code>"), (re.compile(r"\*\*([^*]+)\*\*"), r"<b>\1</b>")
SVG_ATTRIBUTES = re.compile(r' xmlns(:xlink)?="[^"]*"| version="1\.1"')


def require_lab() -> None:
    """Check, before long work starts, that pages can be written.

    Raises:
        UserError: the packages of the extra "lab" are missing.
    """
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise UserError(f"pages need the extra lab, and {' and '.join(missing)} cannot be found: {install('lab')}")


@dataclass(frozen=True)
class Note:
    """A paragraph in fine print."""

    kind: ClassVar = "note"
    text: str


@dataclass(frozen=True)
class Items:
    """A list in fine print."""

    kind: ClassVar = "items"
    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells of plain text."""

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    first_number: int = 1
    """The column from which on cells are numbers, which are aligned to the right."""


@dataclass(frozen=True)
class Figure:
    """A plot, from `lab.plots`."""

    kind: ClassVar = "figure"
    svg: str
    """A document that stands alone; its text and axes are drawn in `currentColor`."""
    description: str
    """What it shows, for people who do not see it."""
    caption: str = ""
    file: str = ""
    """Its name next to the report in Markdown, which leaves out figures without one."""

    def document(self) -> bytes:
        """The plot as a file of its own, on white."""
        return self.svg.replace(' version="1.1"', ' version="1.1" style="background:#fff"', 1).encode()


@dataclass(frozen=True)
class Picture:
    """An image that is embedded in the page."""

    kind: ClassVar = "picture"
    image: UInt8[Tensor, "3 H W"] | Image.Image
    description: str
    """For people who do not see it."""
    caption: str = ""
    width: int | None = None
    """Pixels on the page; None: those of the image."""
    correct: bool | None = None
    """Draws a green frame (True) or a red one (False)."""

    def pil(self) -> Image.Image:
        """The image for Pillow."""
        return (
            self.image if isinstance(self.image, Image.Image) else Image.fromarray(self.image.permute(1, 2, 0).numpy())
        )


def generated(image: UInt8[Tensor, "3 H W"] | Image.Image, prompt: str, correct: bool | None = None) -> Picture:
    """An image that was generated from a prompt, as a cell of a gallery; its frame says whether it shows what the prompt names."""
    verdict = "" if correct is None else ": all facts are right" if correct else ": not all facts are right"
    return Picture(image, f"{prompt}{verdict}", width=96, correct=correct)


@dataclass(frozen=True)
class GalleryRow:
    """What several candidates generated from one prompt."""

    prompt: str
    note: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Gallery:
    """Generated images: a row for each prompt, a column for each candidate."""

    kind: ClassVar = "gallery"
    columns: Sequence[str]
    rows: Sequence[GalleryRow]
    caption: str = ""
    file: str = ""
    """The contact sheet that shows the same next to the report in Markdown, which leaves out galleries without one."""


Block = str | Note | Items | Table | Figure | Picture | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """What was done and found."""

    title: str
    lead: Sequence[str]
    """Paragraphs: what this is, and how it was measured."""
    sections: Sequence[Section]
    limits: str = ""
    """What the numbers do not show."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Such as the command, the machine and the versions."""
    limits_title: ClassVar = "What this does not show"

    def html(self) -> str:
        """A self-contained page."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters |= {"inline": _inline, "inline_svg": _inline_svg, "png": _png}
        return environment.get_template("report.html").render(report=self) + "\n"

    def markdown(self) -> str:
        """The texts and tables, with links to the figures and contact sheets that are files."""
        parts = [f"# {self.title}", *self.lead]
        for section in self.sections:
            blocks = [text for block in section.blocks if (text := _markdown(block))]
            if blocks:
                parts += [f"## {section.title}"] * bool(section.title) + blocks
        if self.limits:
            parts += [f"## {self.limits_title}", self.limits]
        if self.provenance:
            parts.append(" · ".join(f"{name}: {value}" for name, value in self.provenance.items()))
        return "\n\n".join(parts) + "\n"

    def figures(self) -> Iterator[Figure]:
        """Those that are files of their own in a report in Markdown."""
        for section in self.sections:
            yield from (block for block in section.blocks if isinstance(block, Figure) and block.file)

    def write_page(self, file: Path) -> None:
        """Write the page."""
        artifacts.write_bytes(file, self.html().encode())

    def write(self, out: Path, results: Mapping[str, Any]) -> None:
        """Write everything to a folder: the results as JSON, the report in Markdown with its figures, and the page."""
        artifacts.write_json(out / RESULTS, results)
        artifacts.write_bytes(out / MARKDOWN, self.markdown().encode())
        for figure in self.figures():
            artifacts.write_bytes(out / figure.file, figure.document())
        self.write_page(out / PAGE)


def _markdown(block: Block) -> str:
    match block:
        case str():
            return block
        case Note():
            return block.text
        case Items():
            return "\n".join(f"- {text}" for text in block.texts)
        case Table():
            lines = [block.header, ["---"] * len(block.header), *block.rows]
            rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
            return "\n".join([*[f"{block.caption}\n"] * bool(block.caption), *rows])
        case Figure() | Gallery():
            described = block.description if isinstance(block, Figure) else block.caption
            return f"![{described}]({block.file})" if block.file else ""
        case Picture():
            return ""


def _inline(text: str) -> Any:
    from markupsafe import Markup

    text = html.escape(text)
    for pattern, tag in MARKED:
        text = pattern.sub(tag, text)
    return Markup(text)


def _inline_svg(svg: str, description: str) -> Any:
    from markupsafe import Markup

    text = SVG_ATTRIBUTES.sub("", svg)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1))


def _png(picture: Picture) -> str:
    data = io.BytesIO()
    picture.pil().save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()
