"""Measure how fast the page of `syzygy serve` is, in headless Chromium, or take a screenshot of it.

    python -m benchmarks.serve_page
    python -m benchmarks.serve_page --picture docs/serve.png

Prints the time from the server's first byte to a page that can be used (target: at most 1 s), and what one piece of a stroke
costs, from the pointer's event to the pixels that it leads to (target: at most 16 ms). Both come with the processor time of the
browser's main thread, because the machine may have other work. The model is in this process, idle.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PROMPT = "a red star left of a blue ring"
PLACES = {
    "red star": [(0.2, 0.3), (0.34, 0.44), (0.2, 0.56), (0.3, 0.68), (0.3, 0.36), (0.24, 0.5)],
    "blue ring": [(0.72, 0.34), (0.82, 0.46), (0.76, 0.62), (0.66, 0.56), (0.68, 0.42), (0.74, 0.48)],
}
PIECES = 200
PIECE = """
async ([pieces, x, y, width]) => {
  const canvas = document.getElementById("canvas"), context = canvas.getContext("2d"), costs = [];
  for (let i = 0; i < pieces; i++) {
    const at = { clientX: x + (width * i) / pieces, clientY: y + 20 * Math.sin(i / 9) };
    const told = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove", { pointerId: 1, isPrimary: true, bubbles: true, ...at }));
    const heard = performance.now() - told;
    await new Promise((drawn) => {
      requestAnimationFrame((frame) => {  // the page has asked for its drawing before: that is done now, but for the pixels
        context.getImageData(0, 0, 1, 1);
        costs.push(heard + performance.now() - frame);
        drawn();
      });
    });
  }
  return costs;
}
"""
"""Time in the handler, and in the frame up to pixels that can be read; the wait for the frame between them is none of the page's."""


def executable() -> str | None:
    """Chromium or Chrome as the system has it; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """The system's Chromium, without a screen and without a profile."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        yield found
        found.close()


def ready(page: Page, url: str) -> None:
    """Open the page, up to where it can be used."""
    page.goto(url)
    page.wait_for_selector("#go:enabled")


def select(page: Page, words: str) -> None:
    """Select words of the prompt."""
    script = "([field, words]) => { field.focus(); const at = field.value.indexOf(words); field.setSelectionRange(at, at + words.length); }"
    page.evaluate(script, [page.locator("#prompt").element_handle(), words])
    page.wait_for_selector("#phrases .candidate, #phrases [aria-pressed=true]")


def advanced(page: Page) -> None:
    """Unfold the advanced settings."""
    page.eval_on_selector("#advanced", "(fold) => (fold.open = true)")


def stroke(page: Page, places: list[tuple[float, float]]) -> None:
    """Draw with the mouse, from place to place of the canvas (from 0 to 1)."""
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    assert box, "the canvas is on the page"
    for number, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6 if number else 1)
        if not number:
            page.mouse.down()
    page.mouse.up()


def generated(page: Page) -> None:
    """Press the button, and wait for all images."""
    page.click("#go")
    page.wait_for_selector("#go:not(.stop)", timeout=300_000)
    holds(page, "[...document.querySelectorAll('.done img')].every((one) => one.complete)")


def holds(page: Page, condition: str, timeout: float = 20.0) -> None:
    """Wait until a JavaScript expression is true. (`wait_for_function` evaluates it in the page again, which the page's security policy forbids
    if it is not true at first.)

    Raises:
        TimeoutError: it is still false after `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while not page.evaluate(condition):
        if time.monotonic() > end:
            raise TimeoutError(f"{condition} is false after {timeout:g} seconds")
        page.wait_for_timeout(20)


class Clock:
    """Processor time of a page's main thread."""

    def __init__(self, page: Page) -> None:
        self.session = page.context.new_cdp_session(page)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})

    @property
    def milliseconds(self) -> float:
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return next(1000 * one["value"] for one in metrics if one["name"] == "TaskDuration")


def usable_ms(found: Browser, url: str) -> tuple[float, float]:
    """From the first byte of the page to its use, in a browser that has never seen it; and the processor time of that."""
    context = found.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    clock = Clock(page)
    ready(page, url)
    script = "performance.getEntriesByName('usable')[0].startTime - performance.getEntriesByType('navigation')[0].responseStart"
    value = page.evaluate(script), clock.milliseconds
    context.close()
    return value


def stroke_ms(found: Browser, url: str) -> tuple[list[float], float]:
    """The cost of each piece of a stroke, next to another region that is drawn already; and the mean processor time of one."""
    page = found.new_page(viewport={"width": 1280, "height": 800})
    clock = Clock(page)
    ready(page, url)
    page.fill("#prompt", PROMPT)
    for words, places in PLACES.items():
        select(page, words)
        stroke(page, places)
    box = page.locator("#canvas").bounding_box()
    assert box, "the canvas is on the page"
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    before = clock.milliseconds
    costs = page.evaluate(PIECE, [PIECES, box["x"] + 20, box["y"] + box["height"] / 2, box["width"] - 40])
    spent = clock.milliseconds - before
    page.mouse.up()
    page.close()
    return costs, spent / PIECES


def picture(found: Browser, url: str, path: Path, steps: int, scheme: str) -> None:
    """The page with a prompt, regions and images."""
    page = found.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5, color_scheme=scheme)
    ready(page, url)
    page.fill("#prompt", PROMPT)
    advanced(page)
    page.fill("#steps", str(steps))
    page.eval_on_selector("#advanced", "(fold) => (fold.open = false)")
    page.fill("#seed", "7")
    for words, places in PLACES.items():
        select(page, words)
        stroke(page, places)
    generated(page)
    page.mouse.move(1270, 790)
    page.screenshot(path=path)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--loads", type=int, default=7, help="How often the page is opened.")
    parser.add_argument(
        "--picture", type=Path, metavar="PNG", help="Write a picture of the page in the place of measuring."
    )
    parser.add_argument("--steps", type=int, default=25, help="Sampling steps of the pictures on it.")
    parser.add_argument("--scheme", choices=["light", "dark"], default="light")
    arguments = parser.parse_args()
    if executable() is None:
        parser.error(f"there is no browser: install one of {', '.join(NAMES)}.")
    from benchmarks.serve_load import studio_of
    from syzygy.server.app import create_app
    from syzygy.server.http_server import serving

    with serving(create_app(studio_of(arguments.model))) as url, browser() as found:
        if arguments.picture:
            picture(found, url, arguments.picture, arguments.steps, arguments.scheme)
            return
        loads = [usable_ms(found, url) for _ in range(arguments.loads)]
        costs, processor = stroke_ms(found, url)
    waits, work = zip(*loads, strict=True)
    tail = statistics.quantiles(costs, n=100)
    print(
        f"usable after the first byte: {statistics.median(waits):.0f} ms (median of {len(waits)}), {max(waits):.0f} at most"
    )
    print(f"  processor time: {statistics.median(work):.0f} ms")
    print(
        f"a piece of a stroke: {statistics.median(costs):.1f} ms (median of {len(costs)}), p95 {tail[94]:.1f}, p99 {tail[98]:.1f}"
    )
    print(f"  processor time: {processor:.1f} ms (mean)")


if __name__ == "__main__":
    main()
