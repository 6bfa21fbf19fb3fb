"""Self-contained HTML: pictures as data, plots as inline SVG, no script, no request."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

COLOURS = ("#3b6fd4", "#d4643b", "#3ba06a", "#8a5ad0", "#8f8f8f", "#c2a01e")
MARKED = 12
"""Up to so many points of a line are marked."""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { margin-top: 2.2rem; font-size: 1.2rem }
table { border-collapse: collapse; } td, th { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
img { image-rendering: auto; border-radius: 4px; display: block }
.right { outline: 3px solid #3ba06a; } .wrong { outline: 3px solid #d4643b66; }
small, figcaption, .note { color: #888; } code { background: var(--soft); padding: .1rem .3rem; border-radius: 4px }
figure { display: inline-block; margin: 0 1.5rem 1rem 0 } svg text { font: 12px system-ui, sans-serif; fill: currentColor }
.scroll { overflow-x: auto }
"""


def page(title: str, body: str) -> str:
    """A whole document."""
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{html.escape(title)}</title>"
    )
    return f"<!doctype html><html lang='en'><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


def picture(image: UInt8[Tensor, "3 H W"] | Image.Image, *, width: int = 96, agrees: bool | None = None) -> str:
    """A picture as an `img` with its data inside, framed by whether it agrees with its prompt."""
    pil = image if isinstance(image, Image.Image) else Image.fromarray(image.permute(1, 2, 0).numpy())
    data = io.BytesIO()
    pil.save(data, "PNG")
    frame = "" if agrees is None else " class='right'" if agrees else " class='wrong'"
    alt = "" if agrees is None else "agrees with its prompt" if agrees else "does not agree with its prompt"
    source = base64.b64encode(data.getvalue()).decode()
    return f"<img{frame} alt='{alt}' width='{width}' src='data:image/png;base64,{source}'>"


def rows(header: Sequence[str], lines: Sequence[Sequence[str]], *, numbers_from: int | None = None) -> str:
    """A table; cells are HTML. Columns from `numbers_from` on are set as numbers."""
    first = len(header) if numbers_from is None else numbers_from
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=number' if i >= first else ''}>{c}</td>" for i, c in enumerate(line)) + "</tr>"
        for line in lines
    )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


Point = tuple[float, float] | tuple[float, float, float]
"""(x, y), or with half the length of a whisker."""


def curves(
    title: str, lines: Mapping[str, Sequence[Point]], *, x: str, log: bool = False, size: tuple[int, int] = (440, 240)
) -> str:
    """A line plot of named series; few points are marked. `log` spaces x (which is then positive) by ratios."""
    width, height = size
    left, bottom, top, right = 48, 42, 24, 8
    points = [p for line in lines.values() for p in line]
    if not points:
        return ""
    place = math.log if log else float
    spans = [(p[1] - (p[2] if len(p) == 3 else 0), p[1] + (p[2] if len(p) == 3 else 0)) for p in points]
    x0, x1 = min(p[0] for p in points), max(p[0] for p in points)
    y0, y1 = min(low for low, _ in spans), max(high for _, high in spans)
    x_range, y_range = (place(x1) - place(x0)) or 1, (y1 - y0) or 1

    def across(value: float) -> float:
        return left + (place(value) - place(x0)) / x_range * (width - left - right)

    def down(value: float) -> float:
        return height - bottom - (value - y0) / y_range * (height - bottom - top)

    parts = [f"<text x='{left}' y='14'>{html.escape(title)}</text>"]
    for share in (0, 0.5, 1):
        v = down(y0 + share * y_range)
        parts.append(f"<line x1='{left}' x2='{width - right}' y1='{v:.1f}' y2='{v:.1f}' stroke='#8884'/>")
        parts.append(f"<text x='{left - 6}' y='{v + 4:.1f}' text-anchor='end'>{y0 + share * y_range:.3g}</text>")
    parts.append(f"<text x='{left}' y='{height - 26}'>{x0:g}</text>")
    parts.append(f"<text x='{width - right}' y='{height - 26}' text-anchor='end'>{x1:g} {html.escape(x)}</text>")
    for i, (name, line) in enumerate(lines.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{across(p[0]):.1f},{down(p[1]):.1f}" for p in line)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        for p in line if len(line) <= MARKED else ():
            u = f"{across(p[0]):.1f}"
            parts.append(f"<circle cx='{u}' cy='{down(p[1]):.1f}' r='3' fill='{colour}'/>")
            if len(p) == 3:
                low, high = down(p[1] - p[2]), down(p[1] + p[2])
                parts.append(f"<line x1='{u}' x2='{u}' y1='{low:.1f}' y2='{high:.1f}' stroke='{colour}'/>")
        parts.append(f"<text x='{left + 110 * i}' y='{height - 6}' style='fill:{colour}'>{html.escape(name)}</text>")
    return f"<figure><svg width='{width}' height='{height}' role='img' aria-label='{html.escape(title)}'>{''.join(parts)}</svg></figure>"


def bars(title: str, values: Mapping[str, tuple[float, float, float]], *, width: int = 560) -> str:
    """Horizontal bars of shares in [0, 1] with their intervals (mean, low, high)."""
    left, step = 200, 26
    height = 30 + step * len(values)
    parts = [f"<text x='0' y='14'>{html.escape(title)}</text>"]

    def across(share: float) -> float:
        return left + share * (width - left - 60)

    for i, (name, (mean, low, high)) in enumerate(values.items()):
        y = 26 + step * i
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f"<text x='{left - 8}' y='{y + 13}' text-anchor='end'>{html.escape(name)}</text>")
        parts.append(f"<rect x='{left}' y='{y}' width='{across(mean) - left:.1f}' height='18' fill='{colour}' rx='2'/>")
        parts.append(
            f"<line x1='{across(low):.1f}' x2='{across(high):.1f}' y1='{y + 9}' y2='{y + 9}' stroke='currentColor'/>"
        )
        parts.append(f"<text x='{max(across(high), across(mean)) + 6:.1f}' y='{y + 13}'>{100 * mean:.0f} %</text>")
    return f"<figure><svg width='{width}' height='{height}' role='img' aria-label='{html.escape(title)}'>{''.join(parts)}</svg></figure>"
