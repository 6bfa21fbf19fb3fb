"""Plots of reports, as SVG: the same values give the same bytes, and text follows the page's colours."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from syzygy.lab.report import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#3b6fd4", "#d4643b", "#3ba06a", "#8a5ad0", "#8f8f8f", "#c2a01e")
MARKED = 12
"""Lines of up to so many points show each of them."""
INK = "#010203"
"""Stands for `currentColor` while matplotlib draws."""
STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text: small files
    "svg.hashsalt": "syzygy",
    "text.parse_math": False,  # a name may hold a "$"
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "#888",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
DROPPED = re.compile(
    r"<\?xml[^>]*\?>\s*|<!DOCTYPE[^>]*>\s*|<metadata>.*?</metadata>\s*|<style.*?</style>|(?<=<g) id=\"[^\"]*\"",
    re.DOTALL,
)

Point = tuple[float, float] | tuple[float, float, float]
"""(x, y), or (x, y, half the width of the interval)."""
Bar = tuple[float, float, float]
"""(mean, low, high)."""


def line_plot(
    title: str,
    lines: Mapping[str, Sequence[Point]],
    *,
    x: str,
    log: bool = False,
    size: tuple[float, float] = (4.8, 2.8),
    file: str = "",
) -> Figure:
    """Named series over x, with intervals where points have them.

    Args:
        log: space x, which is then positive, by ratios.
        size: width and height in inches.
        file: see `Figure.file`.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    def draw(axes: "Axes") -> None:
        for i, (name, points) in enumerate(lines.items()):
            look: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "label": name, "linewidth": 1.8}
            look |= {"marker": "o", "markersize": 4} if len(points) <= MARKED else {}
            half = [point[2] if len(point) == 3 else 0.0 for point in points]
            axes.errorbar([p[0] for p in points], [p[1] for p in points], half if any(half) else None, **look)
        axes.set_title(title)
        axes.set_xlabel(x)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if any(lines):
            axes.legend()

    names = ", ".join(filter(None, lines))
    return Figure(_svg(draw, size), f"{title}, over {x}{f': {names}' if names else ''}", file=file)


def bar_plot(title: str, values: Mapping[str, Bar], *, file: str = "") -> Figure:
    """Horizontal bars of shares in [0, 1], in per cent, with their intervals."""

    def draw(axes: "Axes") -> None:
        places = range(len(values))
        axes.barh(
            places,
            [100 * mean for mean, _, _ in values.values()],
            color=[COLOURS[i % len(COLOURS)] for i in places],
            height=0.7,
        )
        for i, (mean, low, high) in enumerate(values.values()):
            axes.plot([100 * low, 100 * high], [i, i], color=INK, linewidth=1.2)
            axes.annotate(
                f"{100 * mean:.0f} %", (100 * max(mean, high), i), (5, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(places, list(values))
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_title(title)

    shares = ", ".join(f"{name} {100 * mean:.0f} %" for name, (mean, _, _) in values.items())
    return Figure(_svg(draw, (5.8, 0.7 + 0.27 * len(values))), f"{title}: {shares}", file=file)


def _svg(draw: Callable[["Axes"], None], size: tuple[float, float]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    out = io.StringIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has other fonts
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas.add_subplot())
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = DROPPED.sub("", out.getvalue()).replace(INK, "currentColor")
    return re.sub(r"\s*\n\s*", " ", text)
