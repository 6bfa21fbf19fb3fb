"""The page in Chromium: type, select, draw, generate, restore. Skipped only if no Chromium is installed."""

import base64
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from benchmarks import serve_page
from benchmarks.serve_page import select, stroke
from syzygy.core.options import NOISE_LEVEL, Option
from syzygy.server.app import create_app
from syzygy.server.engine import Engine
from syzygy.server.http_server import serving
from syzygy.server.limits import Limits
from tests.page_driver import NEEDS_CHROMIUM, Open, downloaded, drop, expected, masks, picture, pixels, record, watched
from tests.tiny_server import PATIENCE, Held, tiny_engine, waited

expect.set_options(timeout=20_000)  # a busy machine
pytestmark = pytest.mark.skipif(serve_page.executable() is None, reason=NEEDS_CHROMIUM)
SECRET = "s3cret"
LIMITS = Limits(number=4, steps=10, queue=1)
LEFT, RIGHT = [(0.2, 0.3), (0.2, 0.7)], [(0.7, 0.3), (0.9, 0.7)]
LETTERS = "aaAbßSs ıİς.,-月星1é🌟e\u0301\u00a0\n'’\u00ad\ufe0f\u1100\u1161가"


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return tiny_engine(tiny_model)


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    with serving(create_app(engine, LIMITS)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with serve_page.browser() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Open]:
    with watched(browser, url) as new:
        yield new


def test_type_select_draw_generate_restore(opened: Open) -> None:
    page = opened()
    page.click("#prompt")
    page.keyboard.type("a red star and a blue ring")
    page.fill("#n", "2")
    page.fill("#steps", "3")
    page.fill("#seed", "7")
    page.fill("#negative_prompt", "a square")
    box = page.locator("#prompt").bounding_box()
    assert box
    page.mouse.dblclick(box["x"] + 50, box["y"] + 25)  # a word, as a mouse selects it
    expect(page.locator(".candidate .words")).to_have_text("red")
    stroke(page, LEFT)
    select(page, "blue ring")
    page.click("[data-tool=rectangle]")
    stroke(page, RIGHT)
    page.locator("[aria-label='Strength of blue ring']").fill("2")
    with page.expect_request("**/v1/images/generations") as waiting:
        serve_page.generated(page)
    asked = waiting.value.post_data_json
    assert (asked["stream"], asked["progress"], len(asked["regions"])) == (True, True, 2)
    expect(page.locator("figure.done")).to_have_count(2)
    first, second = downloaded(page, 0), downloaded(page, 1)
    made = record(second)
    assert [made[name] for name in ("prompt", "seed", "steps", "negative_prompt")] == [
        "a red star and a blue ring",
        8,
        3,
        "a square",
    ]
    assert [(one["phrase"], one["weight"]) for one in made["regions"]] == [("red", 1), ("blue ring", 2)]
    red, blue = masks(made)
    assert red.shape == blue.shape == (256, 256)
    assert red[128, 51] == 255
    assert red[:, 128:].max() == 0
    assert blue[:, :128].max() == 0

    other = opened()
    drop(other, first)
    expect(other.locator("#notice")).to_contain_text("Generate makes this image again")
    expect(other.locator("#prompt")).to_have_value("a red star and a blue ring")
    expect(other.locator("#seed")).to_have_value("7")
    expect(other.locator("#negative_prompt")).to_have_value("a square")
    expect(other.locator(".phrases .words")).to_have_text(["red", "blue ring"])
    expect(other.locator("[aria-label='Strength of blue ring']")).to_have_value("2")
    serve_page.generated(other)
    expect(other.locator("figure.done")).to_have_count(2)  # the dropped one, and its twin
    again = downloaded(other, 0)
    assert record(again)["regions"] == record(first)["regions"]
    assert pixels(again) == pixels(first)


def test_keys_alone_are_enough(opened: Open) -> None:
    page = opened()
    page.keyboard.type("a red star")  # the prompt has the focus from the start
    page.keyboard.press("Control+Shift+ArrowLeft")
    expect(page.locator(".candidate .words")).to_have_text("star")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#canvas")).to_be_focused()
    page.keyboard.press("Space")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#said")).to_contain_text("Down at 50 %")
    page.keyboard.press("Space")
    expect(page.locator("#said")).to_contain_text("Lifted at 60 %")
    expect(page.locator(".phrases .state")).to_have_text("")
    page.keyboard.press("Control+z")
    expect(page.locator(".phrases .state")).to_have_text("not drawn yet")
    page.keyboard.press("Control+Shift+z")
    expect(page.locator(".phrases .state")).to_have_text("")
    page.keyboard.press("e")
    expect(page.locator("[data-tool=eraser]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("r")
    for key in ("Space", "Shift+ArrowUp", "Shift+ArrowUp", "Shift+ArrowLeft", "Escape"):
        page.keyboard.press(key)
    page.fill("#steps", "2")
    page.fill("#n", "1")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    expect(page.locator("figure.done")).to_have_count(1)
    (mask,) = masks(record(downloaded(page)))
    assert (mask[128, 128], mask[128, 153], mask[128, 200]) == (255, 255, 0)
    assert mask[90].max() == 0  # the rectangle was given up


def test_brush_eraser_undo_and_a_phrase_that_leaves(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star, a blue ring")
    select(page, "red star")
    stroke(page, LEFT)
    page.click("[data-tool=eraser]")
    page.fill("#brush-size", "60")
    stroke(page, LEFT)
    expect(page.locator(".phrases .state")).to_have_text("not drawn yet")
    page.click("#undo")
    expect(page.locator(".phrases .state")).to_have_text("")
    page.fill("#prompt", "a blue ring")
    expect(page.locator(".phrases .lost")).to_contain_text("Not in the prompt, so it is not used.")
    page.fill("#steps", "2")
    page.fill("#n", "1")
    with page.expect_request("**/generations") as waiting:
        serve_page.generated(page)
    assert "regions" not in waiting.value.post_data_json
    expect(page.locator("#go-note")).to_have_text("Regions without words in the prompt were not used: “red star”.")
    page.fill("#prompt", "the Red Star")
    expect(page.locator(".phrases .lost")).to_be_hidden()
    expect(page.locator("#go-note")).to_be_hidden()
    page.click("[aria-label='Remove red star']")
    expect(page.locator(".phrases li")).to_have_count(0)
    page.click("#undo")
    expect(page.locator(".phrases li")).to_have_count(1)


def test_a_full_queue_is_waited_for_and_work_is_cancelled(opened: Open, engine: Engine) -> None:
    held = Held(engine)
    app = create_app(held, LIMITS)
    worker = app.state.server.worker
    with serving(app) as url:
        first, second, third = (opened(url) for _ in range(3))
        for page in (first, second, third):
            page.fill("#prompt", "a red star")
            page.fill("#n", "1")
            page.click("#go")
            if page is first:
                assert held.begun.wait(PATIENCE)
            elif page is second:
                expect(page.locator("#go-status")).to_contain_text("Waiting")
                page.wait_for_timeout(200)
        expect(third.locator("#go-status")).to_contain_text("queue is full. Trying again in")
        expect(third.locator("#go")).to_have_text("Cancel")
        third.click("#go")
        expect(third.locator("#go-status")).to_have_text("Cancelled.")
        expect(third.locator("#go")).to_have_text("Generate one image")
        second.click("#go")
        expect(second.locator("#go-status")).to_have_text("Cancelled.")
        assert waited(lambda: worker.waiting == 0)  # the page does not wait until the server has seen it
        third.click("#go")
        held.go.set()
        expect(third.locator("figure.done")).to_have_count(1)
        expect(first.locator("figure.done")).to_have_count(1)
        expect(second.locator("figure")).to_have_count(0)


def test_a_key_is_asked_for_and_kept_in_this_tab(opened: Open, engine: Engine) -> None:
    with serving(create_app(engine, LIMITS, api_key=SECRET)) as url:
        page = opened(url, ready=False)
        for key in ("wrong", SECRET):
            page.fill("#key", key)
            page.click("#key-form button")
            if key == "wrong":
                expect(page.locator("#key-note")).to_have_text("The server does not accept this key.")
        page.wait_for_selector("#go:enabled")
        page.fill("#prompt", "a red star")
        page.fill("#n", "1")
        serve_page.generated(page)
        expect(page.locator("figure.done")).to_have_count(1)
        assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", f"{url}/"]
        page.reload()
        page.wait_for_selector("#go:enabled")


def test_errors_are_next_to_their_cause_and_leave_with_it(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star")
    select(page, "red star")
    stroke(page, LEFT)
    params: list[str | None] = []

    def refuse(route: Route) -> None:
        error = {"message": "this will not do.", "type": "invalid_request_error", "param": params[-1], "code": None}
        route.fulfill(status=400, json={"error": error})

    page.route("**/generations", refuse)
    for param, place in {
        "prompt": "#prompt-note",
        "regions.0.mask": "[data-region] .note",
        "regions[0].phrase": "[data-region] .note",
        "regions": "#regions-note",
        "steps": "[data-param=steps] .note",
        "style": "#style-part .note",
        None: "#go-note",
        "unheard_of": "#go-note",
    }.items():
        params.append(param)
        page.click("#go")
        expect(page.locator(place)).to_have_text("This will not do.")
        expect(page.locator(".note:visible")).to_have_count(1)
    page.fill("#n", "2")  # whatever the error was about, something has changed
    expect(page.locator(".note:visible")).to_have_count(0)
    expect(page.locator("figure")).to_have_count(0)
    page.unroute("**/generations")
    page.fill("#n", "0")
    page.click("#go")
    expect(page.locator("[data-param=n] .note")).to_have_text(
        "Images must be a whole number of at least 1 and at most 4."
    )
    page.fill("#n", "1")
    expect(page.locator(".note:visible")).to_have_count(0)
    page.fill("#seed", "9007199254740993")
    page.click("#go")
    expect(page.locator("[data-param=seed] .note")).to_contain_text("up to 9007199254740991")
    page.fill("#seed", "")
    page.fill("#prompt", " ")
    page.click("#go")
    expect(page.locator("#prompt-note")).to_have_text("Describe the image.")
    drop(page, b"no picture")
    expect(page.locator("#notice")).to_contain_text("dropped.png cannot be restored: ")


def test_style_variations_and_mixtures(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star")
    page.fill("#n", "1")
    page.fill("#steps", "2")
    page.fill("#seed", "5")
    drop(page, picture("orange"), "#style-drop")
    expect(page.locator("#style-picture")).to_be_visible()
    page.fill("#style_guidance", "2")
    page.fill("#style_content", " a blue ring")
    serve_page.generated(page)
    made = record(downloaded(page))
    assert (made["style_guidance"], made["style_content"]) == (2, "a blue ring")
    assert pixels(base64.b64decode(made["style"]["data"]))[3][3] == [255, 165, 0]

    page.click("figure.done .open")
    page.click("text=Generate one variation")
    expect(page.locator("figure.done")).to_have_count(2)
    drop(page, picture("green"), "#mix-part")
    expect(page.locator(".sources img")).to_have_count(1)
    expect(page.locator("#mix-go")).to_have_text("Generate one variation")
    page.click("#mix-text")
    expect(page.locator("#mix-go")).to_have_text("Generate one mixture")
    page.fill(".sources input[type=text]", "a blue ring")
    page.locator(".sources input[type=range]").nth(1).fill("0.25")
    page.click("#mix-go")
    expect(page.locator("figure.done")).to_have_count(3)

    other = opened()
    drop(other, downloaded(page))
    expect(other.locator(".sources input[type=text]")).to_have_value("a blue ring")
    expect(other.locator(".sources input[type=range]").nth(1)).to_have_value("0.25")
    expect(other.locator(".sources img")).to_have_count(1)
    expect(other.locator("#style-picture")).to_be_hidden()
    expect(other.locator("#notice")).to_contain_text("Generate mixture makes this image again")
    expect(other.locator("#mix-go")).to_be_focused()
    other.click("#mix-go")
    expect(other.locator("figure.done")).to_have_count(2)
    assert pixels(downloaded(other)) == pixels(downloaded(page))
    other.click("figure.done .open >> nth=0")
    other.click("text=Use as canvas background")
    expect(other.locator("#background")).to_be_visible()


def test_what_the_model_cannot_do_is_not_offered(opened: Open, engine: Engine) -> None:
    can = {
        "regions": False,
        "style": False,
        "mixes": False,
        "samplers": [],
        "size": None,
        "languages": ["en", "de", "zh"],
    }
    page = opened(ready=False)

    def other(route: Route) -> None:
        answer = route.fetch()
        card = answer.json()
        card["data"][0]["capabilities"] |= can
        route.fulfill(response=answer, json=card)

    page.route("**/v1/models", other)
    serve_page.ready(page, page.url)
    expect(page.locator("#languages")).to_have_text("Write in English, German or Chinese.")
    for hidden in (
        "#place",
        "#phrases-part",
        "#overlay-part",
        "#style-part",
        "#mix-part",
        "#sampler",
        "#region_strength",
    ):
        expect(page.locator(hidden)).to_be_hidden()
    page.fill("#prompt", "a red star")
    page.fill("#size", "48x32")
    with page.expect_request("**/generations") as waiting:
        page.click("#go")
    assert set(waiting.value.post_data_json) == {
        "prompt", "n", "steps", "guidance_scale", "size", "stream", "progress", "partial_images"
    }  # fmt: skip
    expect(page.locator("[data-param=size] .note")).to_contain_text("48x32")


def test_a_decoders_options_have_fields(opened: Open, engine: Engine) -> None:
    options = (NOISE_LEVEL, Option(name="mode", type=str, choices=("a", "b"), help="Mode."))
    page = opened(ready=False)

    def other(route: Route) -> None:
        answer = route.fetch()
        card = answer.json()
        card["data"][0]["capabilities"]["options"] = {option.name: option.json_schema() for option in options}
        route.fulfill(response=answer, json=card)

    page.route("**/v1/models", other)
    serve_page.ready(page, page.url)
    serve_page.advanced(page)
    page.fill("#prompt", "a red star")
    page.fill("#noise_level", "1000")
    page.click("#go")
    note = page.locator("[data-param=noise_level] .note")
    expect(note).to_have_text("Noise level must be a whole number of at least 0 and at most 999.")
    page.fill("#noise_level", "7")
    page.select_option("#mode", "b")
    with page.expect_request("**/generations") as waiting:
        page.click("#go")
    assert (waiting.value.post_data_json["noise_level"], waiting.value.post_data_json["mode"]) == (7, "b")


def test_phrases_are_found_as_the_server_finds_them(opened: Open) -> None:
    page = opened()
    draw = random.Random(0)
    pairs = [
        tuple("".join(draw.choice(LETTERS) for _ in range(draw.randint(1, most))) for most in (12, 3))
        for _ in range(1500)
    ]
    pairs += [
        ("a Red star, a red stars", "red star"),
        ("die große Straße", "GROSSE"),
        ("赤い星と月", "星"),
        ("🌟 star 🌟", "star"),
        ("un cafe\u0301 rouge", "CAF\u00c9"),
        ("the king\u2019s\u00a0 crown", "king's crown"),
    ]
    script = "async (pairs) => { const { places } = await import('/page/phrases.js'); return pairs.map((pair) => places(...pair)); }"
    found = page.evaluate(script, pairs)
    assert found == [expected(*pair) for pair in pairs]
    assert sum(map(bool, found)) > 50
    script = "async (asked) => { const { snapped } = await import('/page/phrases.js'); return asked.map((one) => snapped(...one)); }"
    asked = [
        ("a red star!", 3, 8),
        ("a red star!", 2, 3),
        ("a  star", 1, 3),
        ("a star", 2, 2),
        ("a, b", 1, 3),
        ("赤い星", 2, 3),
    ]
    assert page.evaluate(script, asked) == [[2, 10], [2, 5], None, None, None, [2, 3]]


def test_everything_that_can_be_reached_has_a_name(opened: Open) -> None:
    page = opened()
    page.fill("#prompt", "a red star")
    select(page, "red star")
    stroke(page, LEFT)
    page.click("#mix-part summary")
    page.click("#mix-text")
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    reached = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if any(one["name"] == "focusable" and one["value"]["value"] for one in node.get("properties", []))
    ]
    assert len(reached) > 25
    assert [role for role, name in reached if not name and role != "RootWebArea"] == []
